// The update for XLA's CPU backend, a handler of its foreign function interface
// (C API, whose header comes with jaxlib and with TensorFlow); registered by
// `jax.py`, and for TensorFlow by `tensorflow_xla.cpp`.

#include <stdint.h>
#include <string.h>

#include "tasks.h"
#include "xla/ffi/api/c_api.h"

namespace {

using RowOf = RowsBy<XLA_FFI_DataType, XLA_FFI_DataType_F32,
                     XLA_FFI_DataType_F64, XLA_FFI_DataType_F16,
                     XLA_FFI_DataType_BF16>;

XLA_FFI_Error* error(const XLA_FFI_Api* api, XLA_FFI_Error_Code code,
                     const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE,
                                    nullptr, message, code};
  return api->XLA_FFI_Error_Create(&args);
}

// Whether there was none; forgets it.
bool succeeded(const XLA_FFI_Api* api, XLA_FFI_Error* error) {
  if (!error) return true;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE,
                                     nullptr, error};
  api->XLA_FFI_Error_Destroy(&args);
  return false;
}

XLA_FFI_Error* describe(XLA_FFI_Extension_Base* extension) {
  XLA_FFI_Metadata* metadata =
      reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
  metadata->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr,
                           XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  metadata->traits = 0;
  metadata->state_type_id = XLA_FFI_UNKNOWN_TYPE_ID;
  return nullptr;
}

int64_t threads_of_pool(const XLA_FFI_CallFrame& frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, frame.ctx,
      &threads};
  const bool has_pool = succeeded(
      frame.api, frame.api->XLA_FFI_ThreadPool_NumThreads(&args));
  return has_pool ? threads : 1;
}

const XLA_FFI_Buffer& argument(const XLA_FFI_CallFrame& frame, int64_t i) {
  return *static_cast<XLA_FFI_Buffer*>(frame.args.args[i]);
}

const XLA_FFI_Buffer& result(const XLA_FFI_CallFrame& frame, int64_t i) {
  return *static_cast<XLA_FFI_Buffer*>(frame.rets.rets[i]);
}

int64_t elements(const XLA_FFI_Buffer& buffer) {
  int64_t size = 1;
  for (int64_t i = 0; i < buffer.rank; ++i) size *= buffer.dims[i];
  return size;
}

const void* attribute(const XLA_FFI_CallFrame& frame, const char* name) {
  for (int64_t i = 0; i < frame.attrs.size; ++i) {
    const XLA_FFI_ByteSpan& span = *frame.attrs.names[i];
    if (span.len == strlen(name) && !memcmp(span.ptr, name, span.len)) {
      return frame.attrs.attrs[i];
    }
  }
  return nullptr;
}

// An attribute that is an int64; null where there is none.
const int64_t* integer(const XLA_FFI_CallFrame& frame, const char* name) {
  const auto* found =
      static_cast<const XLA_FFI_Scalar*>(attribute(frame, name));
  return found ? static_cast<const int64_t*>(found->value) : nullptr;
}

// An attribute that is an array of `count` int64; null where there is none.
const int64_t* integers(const XLA_FFI_CallFrame& frame, const char* name,
                        int64_t count) {
  const auto* found =
      static_cast<const XLA_FFI_Array*>(attribute(frame, name));
  return found && int64_t(found->size) == count
             ? static_cast<const int64_t*>(found->data)
             : nullptr;
}

double scalar(const XLA_FFI_Buffer& buffer, int64_t i) {
  return buffer.dtype == XLA_FFI_DataType_F64
             ? static_cast<const double*>(buffer.data)[i]
             : double(static_cast<const float*>(buffer.data)[i]);
}

// A result has its argument's memory, unless XLA could not give it that.
void* in_place(const XLA_FFI_Buffer& from, const XLA_FFI_Buffer& to,
               int64_t bytes) {
  if (from.data != to.data && bytes) memcpy(to.data, from.data, bytes);
  return to.data;
}

int64_t bytes_of(XLA_FFI_DataType dtype) {
  return dtype == XLA_FFI_DataType_F64   ? 8
         : dtype == XLA_FFI_DataType_F32 ? 4
                                         : 2;
}

// Writes what was found of a tensor to place `i` of a result: as digits, or,
// where it is of a sample, as one number.
void write_found(float* found, int64_t i, int64_t number) {
  write_digits(found + kDigits * i, number);
}

void write_found(int32_t* found, int64_t i, int64_t number) {
  found[i] = int32_t(number);
}

// Does all blocks, with the threads of XLA that have nothing else to do.
// Writes what was found of each tensor to `found`, and lets go of `shared`.
template <typename Found>
void work_together(const XLA_FFI_CallFrame& frame, Shared* shared, Found* found,
                   float* sums = nullptr) {
  work_with_helpers(shared, threads_of_pool(frame), [&frame, shared] {
    XLA_FFI_ThreadPool_Schedule_Args args = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, frame.ctx,
        work_of_task, shared};
    return succeeded(frame.api, frame.api->XLA_FFI_ThreadPool_Schedule(&args));
  });
  for (int64_t i = 0; i < shared->all.count; ++i) {
    write_found(found, i, shared->all.found[i]);
    if (sums) write_sums(shared->all, i, sums + kSums * i);
  }
  release(shared);
}

// Whether the optimizer's variable `i` is not clipped: there may be no
// exclusions at all.
bool is_excluded(const XLA_FFI_Buffer& exclusions, int64_t i) {
  return elements(exclusions) > 0 &&
         static_cast<const float*>(exclusions.data)[i] > 0;
}

XLA_FFI_Error* no_memory(const XLA_FFI_Api* api) {
  return error(api, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED,
               "keras_adamax: no memory");
}

XLA_FFI_Error* does_not_fit(const XLA_FFI_Api* api) {
  return error(api, XLA_FFI_Error_Code_INVALID_ARGUMENT,
               "keras_adamax: a call that does not fit this handler");
}

XLA_FFI_Error* strange_dtype(const XLA_FFI_Api* api) {
  return error(api, XLA_FFI_Error_Code_UNIMPLEMENTED,
               "keras_adamax: dtypes that this handler does not have");
}

// Whether a buffer has `count` numbers in digits.
bool are_digits(const XLA_FFI_Buffer& buffer, int64_t count) {
  return buffer.dtype == XLA_FFI_DataType_F32 &&
         elements(buffer) == kDigits * count;
}

// Does what XLA asks of a handler: to say what it is, or to run.
XLA_FFI_Error* answer(const XLA_FFI_CallFrame& frame,
                      XLA_FFI_Error* (*run)(const XLA_FFI_CallFrame&)) {
  XLA_FFI_Extension_Base* extension = frame.extension_start;
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {
    return describe(extension);
  }
  if (frame.stage != XLA_FFI_ExecutionStage_EXECUTE) {
    return does_not_fit(frame.api);
  }
  return run(frame);
}

// Counts what is not finite.
//
// Arguments: tensors. Result: how many of the elements of each are NaN or
// infinite (digits).
XLA_FFI_Error* count_nonfinite_elements(const XLA_FFI_CallFrame& frame) {
  if (!are_digits(result(frame, 0), frame.args.size)) {
    return does_not_fit(frame.api);
  }
  Shared* shared = make_shared(frame.args.size);
  if (!shared) return no_memory(frame.api);
  Tensors& all = shared->all;
  all.run = count_block;
  for (int64_t i = 0; i < all.count; ++i) {
    const XLA_FFI_Buffer& tensor = argument(frame, i);
    all.kinds[i] = RowOf::dtype(tensor.dtype);
    if (all.kinds[i] < 0) {
      release(shared);
      return strange_dtype(frame.api);
    }
    all.sizes[i] = elements(tensor);
    all.gradients[i] = tensor.data;
  }
  work_together(frame, shared, static_cast<float*>(result(frame, 0).data));
  return nullptr;
}

// Counts what exceeds its bound.
//
// Arguments: `clip_multiplier` and `clip_epsilon`; then `n` gradients, whole or
// samples of them, and `n` norms of the whole variables. Result: how many
// elements of each sample exceed their bound (int32). Attribute: `strides` of
// the samples (array of int64).
XLA_FFI_Error* count_elements_above(const XLA_FFI_CallFrame& frame) {
  const int64_t count = (frame.args.size - 1) / 2;
  const int64_t* strides = integers(frame, "strides", count);
  const XLA_FFI_Buffer& found = result(frame, 0);
  if (!strides || frame.args.size != 1 + 2 * count ||
      found.dtype != XLA_FFI_DataType_S32 || elements(found) != count) {
    return does_not_fit(frame.api);
  }
  Shared* shared = make_shared(count);
  if (!shared) return no_memory(frame.api);
  Tensors& all = shared->all;
  all.run = count_above_block;
  all.strides = strides;
  all.scalars = {};
  all.scalars.clip_multiplier = scalar(argument(frame, 0), 0);
  all.scalars.clip_epsilon = scalar(argument(frame, 0), 1);
  for (int64_t i = 0; i < count; ++i) {
    const XLA_FFI_Buffer& gradient = argument(frame, 1 + i);
    const XLA_FFI_Buffer& norm = argument(frame, 1 + count + i);
    all.kinds[i] = RowOf::dtype(gradient.dtype);
    all.sizes[i] = sample_size(elements(norm), strides[i]);
    all.flags[i] = elements(gradient) == elements(norm);
    const int64_t state = RowOf::dtype(norm.dtype);
    if (all.kinds[i] < 0 || state != (all.kinds[i] == 1) ||
        !(all.flags[i] || elements(gradient) == all.sizes[i])) {
      release(shared);
      return strange_dtype(frame.api);
    }
    all.gradients[i] = gradient.data;
    all.norms[i] = norm.data;
  }
  work_together(frame, shared, static_cast<int32_t*>(found.data));
  return nullptr;
}

// Updates `n` variables in place.
//
// Arguments: the scalars, in the order of `Scalars`, and whether anything is to
// change (> 0); of all the optimizer's variables, > 0 where one is not clipped
// (read where there are any); then `n`
// gradients, weights, momentums, norms. Results: new weights, momentums, norms,
// how many elements of each gradient were clipped (digits), and, where there is
// one more, what each variable measures (`kSums` numbers). Attributes: `clips`,
// whether any is clipped (int64), and `indices`, which `n` of the optimizer's
// variables they are (array of int64).
XLA_FFI_Error* update_variables(const XLA_FFI_CallFrame& frame) {
  const int64_t count = (frame.args.size - 2) / 4;
  const int64_t* indices = integers(frame, "indices", count);
  const int64_t* clips = integer(frame, "clips");
  const bool measures = frame.rets.size == 2 + 3 * count;
  if (!indices || !clips || frame.args.size != 2 + 4 * count ||
      frame.rets.size != 1 + 3 * count + measures ||
      elements(argument(frame, 0)) != 8 ||
      !are_digits(result(frame, 3 * count), count)) {
    return does_not_fit(frame.api);
  }
  float* sums = nullptr;
  if (measures) {
    const XLA_FFI_Buffer& buffer = result(frame, 3 * count + 1);
    if (buffer.dtype != XLA_FFI_DataType_F32 ||
        elements(buffer) != kSums * count) {
      return does_not_fit(frame.api);
    }
    sums = static_cast<float*>(buffer.data);
  }
  Shared* shared = make_shared(count);
  if (!shared) return no_memory(frame.api);
  Tensors& all = shared->all;
  all.run = update_block;

  const XLA_FFI_Buffer& scalars = argument(frame, 0);
  all.scalars = {scalar(scalars, 0), scalar(scalars, 1), scalar(scalars, 2),
                 scalar(scalars, 3), scalar(scalars, 4), scalar(scalars, 5),
                 scalar(scalars, 6)};
  const bool changes = scalar(scalars, 7) > 0;
  const XLA_FFI_Buffer& exclusions = argument(frame, 1);
  for (int64_t i = 0; i < count; ++i) {
    const XLA_FFI_Buffer& gradient = argument(frame, 2 + i);
    const XLA_FFI_Buffer& weight = argument(frame, 2 + count + i);
    const XLA_FFI_Buffer& momentum = argument(frame, 2 + 2 * count + i);
    const XLA_FFI_Buffer& norm = argument(frame, 2 + 3 * count + i);
    all.kinds[i] = RowOf::kind(weight.dtype, gradient.dtype);
    if (all.kinds[i] < 0) {
      release(shared);
      return strange_dtype(frame.api);
    }
    all.flags[i] = *clips && !is_excluded(exclusions, indices[i]);
    all.sizes[i] = elements(weight);
    const int64_t state_bytes = all.sizes[i] * bytes_of(norm.dtype);
    all.gradients[i] = gradient.data;
    all.weights[i] = in_place(weight, result(frame, i),
                              all.sizes[i] * bytes_of(weight.dtype));
    all.momentums[i] =
        in_place(momentum, result(frame, count + i), state_bytes);
    all.norms[i] =
        in_place(norm, result(frame, 2 * count + i), state_bytes);
    if (!changes) all.sizes[i] = 0;
  }
  if (measures && !make_sums(shared)) {
    release(shared);
    return no_memory(frame.api);
  }
  work_together(frame, shared,
                static_cast<float*>(result(frame, 3 * count).data), sums);
  return nullptr;
}

// Adds one step to the rows of `clip_counts`, in place.
//
// Arguments: the rows of all the optimizer's variables; exclusions, as of the
// update; then what updates found, in digits. Result: the new rows. Attributes
// (arrays of int64): `indices`, which of the variables these are of, one
// argument after the other, and `sizes`, how many elements each of them has.
XLA_FFI_Error* add_to_counts(const XLA_FFI_CallFrame& frame) {
  int64_t count = 0;
  for (int64_t i = 2; i < frame.args.size; ++i) {
    const XLA_FFI_Buffer& found = argument(frame, i);
    if (!are_digits(found, elements(found) / kDigits)) {
      return does_not_fit(frame.api);
    }
    count += elements(found) / kDigits;
  }
  const int64_t* index = integers(frame, "indices", count);
  const int64_t* size = integers(frame, "sizes", count);
  if (!index || !size || frame.args.size < 2) return does_not_fit(frame.api);
  const XLA_FFI_Buffer& rows = argument(frame, 0);
  const XLA_FFI_Buffer& exclusions = argument(frame, 1);
  float* counts = static_cast<float*>(in_place(
      rows, result(frame, 0), elements(rows) * bytes_of(rows.dtype)));
  for (int64_t i = 2; i < frame.args.size; ++i) {
    const XLA_FFI_Buffer& found = argument(frame, i);
    const float* digits = static_cast<const float*>(found.data);
    const float* end = digits + elements(found);
    for (; digits < end; digits += kDigits, ++index, ++size) {
      if (is_excluded(exclusions, *index)) continue;
      add_counts(counts + kRowLength * *index, read_digits(digits), *size);
    }
  }
  return nullptr;
}

}  // namespace

#define KERAS_ADAMAX_HANDLER(name, run)                             \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error*  \
  name(XLA_FFI_CallFrame* frame) {                                  \
    return answer(*frame, run);                                     \
  }

KERAS_ADAMAX_HANDLER(keras_adamax_count_nonfinite_in_xla,
                     count_nonfinite_elements)
KERAS_ADAMAX_HANDLER(keras_adamax_count_above_in_xla, count_elements_above)
KERAS_ADAMAX_HANDLER(keras_adamax_update_in_xla, update_variables)
KERAS_ADAMAX_HANDLER(keras_adamax_add_counts_in_xla, add_to_counts)
