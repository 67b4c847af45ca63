// The update for TensorFlow, operations on variables in the CPU's memory;
// called by `_tensorflow_compiled.py`.

// Where only the name of the binary is looked for, TensorFlow's headers stay
// out: there are too many of them to be read in each process.
#ifndef KERAS_ADAMAX_OWN_HEADERS_ONLY
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/threadpool.h"
#endif

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "tasks.h"

namespace {

namespace tf = tensorflow;

// Less is not worth waking another thread.
constexpr int64_t kElementsPerThread = 1 << 17;

using RowOf = RowsBy<tf::DataType, tf::DT_FLOAT, tf::DT_DOUBLE, tf::DT_HALF,
                     tf::DT_BFLOAT16>;

double scalar(const tf::Tensor& tensor) {
  return tensor.dtype() == tf::DT_DOUBLE
             ? *static_cast<const double*>(tensor.data())
             : double(*static_cast<const float*>(tensor.data()));
}

int64_t elements_of(const Tensors& all) {
  int64_t elements = 0;
  for (int64_t i = 0; i < all.count; ++i) elements += all.sizes[i];
  return elements;
}

// Does all blocks, with the threads that TensorFlow has for one operation.
void work_together(tf::OpKernelContext* context, Shared* shared,
                   int64_t elements) {
  auto* pool = context->device()->tensorflow_cpu_worker_threads();
  const int64_t threads = std::min<int64_t>(
      pool->num_threads, 1 + elements / kElementsPerThread);
  work_with_helpers(shared, threads, [pool, shared] {
    pool->workers->Schedule([shared] { work_of_task(shared); });
    return true;
  });
}

// Variables that nobody else reads or writes while this lives.
class LockedVariables {
 public:
  absl::Status add(tf::OpKernelContext* context, const char* name) {
    int begin, end;
    TF_RETURN_IF_ERROR(context->op_kernel().InputRange(name, &begin, &end));
    for (int i = begin; i < end; ++i) {
      tf::core::RefCountPtr<tf::Var> variable;
      TF_RETURN_IF_ERROR(tf::LookupResource(
          context, tf::HandleFromInput(context, i), &variable));
      variables_.push_back(std::move(variable));
    }
    return absl::OkStatus();
  }

  void lock() {
    for (const auto& variable : variables_) mutexes_.push_back(variable->mu());
    // In one order, as TensorFlow's own operations on many variables.
    std::sort(mutexes_.begin(), mutexes_.end());
    mutexes_.erase(std::unique(mutexes_.begin(), mutexes_.end()),
                   mutexes_.end());
    for (tf::mutex* mutex : mutexes_) mutex->lock();
    is_locked_ = true;
  }

  ~LockedVariables() {
    if (!is_locked_) return;
    for (tf::mutex* mutex : mutexes_) mutex->unlock();
  }

  int64_t size() const { return int64_t(variables_.size()); }

  const tf::Tensor& value(int64_t i) const { return *variables_[i]->tensor(); }

  // Memory to write the next value of variable `i` to, which holds the present
  // one. What was read of the variable keeps its value.
  absl::Status writable(tf::OpKernelContext* context, int64_t i,
                        void** memory) {
    tf::Tensor* tensor = variables_[i]->tensor();
    if (!tensor->RefCountIsOne()) {
      tf::Tensor copy;
      TF_RETURN_IF_ERROR(
          context->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
      memcpy(copy.data(), tensor->data(), tensor->TotalBytes());
      *tensor = copy;
    }
    *memory = tensor->data();
    return absl::OkStatus();
  }

 private:
  std::vector<tf::core::RefCountPtr<tf::Var>> variables_;
  std::vector<tf::mutex*> mutexes_;
  bool is_locked_ = false;
};

absl::Status does_not_fit() {
  return tf::errors::InvalidArgument(
      "keras_adamax: tensors that do not fit this operation");
}

absl::Status no_memory() {
  return tf::errors::ResourceExhausted("keras_adamax: no memory");
}

// The dtype of the state that a kind has.
tf::DataType state_of(int64_t kind) {
  return kind == 1 ? tf::DT_DOUBLE : tf::DT_FLOAT;
}

Scalars scalars_of(const tf::OpInputList& scalars) {
  return {scalar(scalars[0]), scalar(scalars[1]), scalar(scalars[2]),
          scalar(scalars[3]), scalar(scalars[4]), scalar(scalars[5]),
          scalar(scalars[6])};
}

// Of all the optimizer's variables, > 0 where one is not clipped; null where
// all are alike. `last` is the highest one that is asked for.
absl::Status find_exclusions(const tf::OpInputList& exclusions, int64_t last,
                           const float** found) {
  *found = nullptr;
  if (!exclusions.size()) return absl::OkStatus();
  if (exclusions[0].NumElements() <= last) return does_not_fit();
  *found = static_cast<const float*>(exclusions[0].data());
  return absl::OkStatus();
}

// The rows of `clip_counts`, which is variable `i`.
absl::Status find_counts(tf::OpKernelContext* context,
                         LockedVariables& variables, int64_t i, int64_t last,
                         float** found) {
  const tf::Tensor& value = variables.value(i);
  if (value.dtype() != tf::DT_FLOAT || value.dims() != 2 ||
      value.dim_size(1) != kRowLength || value.dim_size(0) <= last) {
    return does_not_fit();
  }
  void* memory;
  TF_RETURN_IF_ERROR(variables.writable(context, i, &memory));
  *found = static_cast<float*>(memory);
  return absl::OkStatus();
}

// Lets go of what threads share.
struct Release {
  Shared* shared;
  ~Release() { release(shared); }
};

class UpdateOp : public tf::OpKernel {
 public:
  explicit UpdateOp(tf::OpKernelConstruction* construction)
      : tf::OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("indices", &indices_));
    OP_REQUIRES_OK(construction, construction->GetAttr("clips", &clips_));
    OP_REQUIRES_OK(construction, construction->GetAttr("counts", &counts_));
    OP_REQUIRES_OK(construction, construction->GetAttr("measures", &measures_));
  }

  void Compute(tf::OpKernelContext* context) override {
    const int64_t count = int64_t(indices_.size());
    float* sums = nullptr;
    if (measures_) {
      tf::Tensor* result;
      OP_REQUIRES_OK(context,
                     context->allocate_output(0, {count, kSums}, &result));
      sums = static_cast<float*>(result->data());
    }
    tf::OpInputList gradients, scalars, exclusions;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    OP_REQUIRES_OK(context, context->input_list("scalars", &scalars));
    OP_REQUIRES_OK(context, context->input_list("exclusions", &exclusions));
    LockedVariables variables;
    for (const char* name : {"weights", "momentums", "norms", "clip_counts"}) {
      OP_REQUIRES_OK(context, variables.add(context, name));
    }
    OP_REQUIRES(context,
                gradients.size() == count &&
                    variables.size() == 3 * count + counts_,
                does_not_fit());
    Shared* shared = make_shared(count);
    OP_REQUIRES(context, shared, no_memory());
    const Release at_the_end = {shared};
    Tensors& all = shared->all;
    all.run = update_block;
    all.scalars = scalars_of(scalars);
    const int64_t last = *std::max_element(indices_.begin(), indices_.end());
    const float* excluded;
    OP_REQUIRES_OK(context, find_exclusions(exclusions, last, &excluded));

    variables.lock();
    for (int64_t i = 0; i < count; ++i) {
      const tf::Tensor& gradient = gradients[i];
      const tf::Tensor& weight = variables.value(i);
      const tf::Tensor& momentum = variables.value(count + i);
      const tf::Tensor& norm = variables.value(2 * count + i);
      all.kinds[i] = RowOf::kind(weight.dtype(), gradient.dtype());
      all.sizes[i] = weight.NumElements();
      const tf::DataType state = state_of(all.kinds[i]);
      OP_REQUIRES(
          context,
          all.kinds[i] >= 0 && momentum.dtype() == state &&
              norm.dtype() == state &&
              gradient.NumElements() == all.sizes[i] &&
              momentum.NumElements() == all.sizes[i] &&
              norm.NumElements() == all.sizes[i],
          does_not_fit());
      all.flags[i] = clips_ && !(excluded && excluded[indices_[i]] > 0);
      all.gradients[i] = gradient.data();
    }
    float* counts = nullptr;
    if (counts_) {
      OP_REQUIRES_OK(context, find_counts(context, variables, 3 * count, last,
                                          &counts));
    }
    for (int64_t i = 0; i < count; ++i) {
      OP_REQUIRES_OK(context,
                     variables.writable(context, i, &all.weights[i]));
      OP_REQUIRES_OK(
          context, variables.writable(context, count + i, &all.momentums[i]));
      OP_REQUIRES_OK(
          context, variables.writable(context, 2 * count + i, &all.norms[i]));
    }
    OP_REQUIRES(context, !sums || make_sums(shared), no_memory());
    work_together(context, shared, elements_of(all));
    for (int64_t i = 0; sums && i < count; ++i) {
      write_sums(all, i, sums + kSums * i);
    }
    if (!counts) return;
    for (int64_t i = 0; i < count; ++i) {
      if (!all.flags[i]) continue;
      add_counts(counts + kRowLength * indices_[i], all.found[i], all.sizes[i]);
    }
  }

 private:
  std::vector<int64_t> indices_;
  bool clips_;
  int64_t counts_;
  int64_t measures_;
};

// What the threads that update rows share.
struct Rows {
  int64_t kind;
  bool clips;
  int64_t width;
  // Bytes of an element.
  int64_t value_size;
  int64_t weight_size;
  int64_t state_size;
  int64_t value_dtype;
  const char* values;
  char* weights;
  char* momentums;
  char* norms;
  // Which rows of the variable, each once.
  std::vector<int64_t> rows;
  // Where the values of row `rows[i]` are: from `starts[i]` to `starts[i + 1]`
  // in `order`.
  std::vector<int64_t> starts;
  std::vector<int64_t> order;
  // Rows of a chunk.
  int64_t chunk;
};

// Puts the occurrences of each row together, and keeps their order.
template <typename Index>
bool sort_rows(const tf::Tensor& indices, int64_t table_rows, Rows& all) {
  const Index* index = static_cast<const Index*>(indices.data());
  const int64_t length = indices.NumElements();
  for (int64_t i = 0; i < length; ++i) {
    if (index[i] < 0 || int64_t(index[i]) >= table_rows) return false;
  }
  all.order.resize(length);
  if (table_rows <= 16 * length) {
    std::vector<int64_t> next(table_rows + 1, 0);
    for (int64_t i = 0; i < length; ++i) ++next[index[i] + 1];
    for (int64_t row = 0; row < table_rows; ++row) next[row + 1] += next[row];
    for (int64_t i = 0; i < length; ++i) all.order[next[index[i]]++] = i;
  } else {
    for (int64_t i = 0; i < length; ++i) all.order[i] = i;
    std::stable_sort(
        all.order.begin(), all.order.end(),
        [index](int64_t i, int64_t j) { return index[i] < index[j]; });
  }
  for (int64_t i = 0; i < length; ++i) {
    const int64_t row = index[all.order[i]];
    if (i == 0 || row != all.rows.back()) {
      all.rows.push_back(row);
      all.starts.push_back(i);
    }
  }
  all.starts.push_back(length);
  return true;
}

int64_t update_chunk(const Tensors& tensors, int64_t i, int64_t, int64_t) {
  const Rows& all = *static_cast<const Rows*>(tensors.gradients[i]);
  const Update update = kUpdates[all.kind][all.clips][tensors.sums != nullptr];
  const int64_t bytes = all.width * all.value_size;
  const int64_t end =
      std::min<int64_t>((i + 1) * all.chunk, int64_t(all.rows.size()));
  std::vector<char> sum(bytes);
  int64_t clipped = 0;
  double sums[kSums], totals[kSums] = {};
  for (int64_t k = i * all.chunk; k < end; ++k) {
    const char* gradient = all.values + all.order[all.starts[k]] * bytes;
    if (all.starts[k + 1] - all.starts[k] > 1) {
      memcpy(sum.data(), gradient, bytes);
      for (int64_t j = all.starts[k] + 1; j < all.starts[k + 1]; ++j) {
        kAdds[all.value_dtype](sum.data(), all.values + all.order[j] * bytes,
                               all.width);
      }
      gradient = sum.data();
    }
    const int64_t first = all.rows[k] * all.width;
    // An update counts the elements of a block, and a row may have more.
    for (int64_t begin = 0; begin < all.width; begin += kBlock) {
      clipped += update(gradient, all.weights + first * all.weight_size,
                        all.momentums + first * all.state_size,
                        all.norms + first * all.state_size, begin,
                        std::min(begin + kBlock, all.width), tensors.scalars,
                        sums);
      for (int64_t s = 0; tensors.sums && s < kSums; ++s) totals[s] += sums[s];
    }
  }
  if (tensors.sums) std::copy(totals, totals + kSums, tensors.sums + kSums * i);
  return clipped;
}

class UpdateRowsOp : public tf::OpKernel {
 public:
  explicit UpdateRowsOp(tf::OpKernelConstruction* construction)
      : tf::OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("index", &index_));
    OP_REQUIRES_OK(construction, construction->GetAttr("clips", &clips_));
    OP_REQUIRES_OK(construction, construction->GetAttr("counts", &counts_));
    OP_REQUIRES_OK(construction, construction->GetAttr("measures", &measures_));
  }

  void Compute(tf::OpKernelContext* context) override {
    float* sums = nullptr;
    if (measures_) {
      tf::Tensor* result;
      OP_REQUIRES_OK(context,
                     context->allocate_output(0, {1, kSums}, &result));
      sums = static_cast<float*>(result->data());
      std::fill(sums, sums + kSums, 0.0f);
    }
    const tf::Tensor *indices, *values;
    tf::OpInputList scalars, exclusions;
    OP_REQUIRES_OK(context, context->input("rows", &indices));
    OP_REQUIRES_OK(context, context->input("values", &values));
    OP_REQUIRES_OK(context, context->input_list("scalars", &scalars));
    OP_REQUIRES_OK(context, context->input_list("exclusions", &exclusions));
    LockedVariables variables;
    for (const char* name : {"weight", "momentum", "norm", "clip_counts"}) {
      OP_REQUIRES_OK(context, variables.add(context, name));
    }
    const float* excluded;
    OP_REQUIRES_OK(context, find_exclusions(exclusions, index_, &excluded));

    variables.lock();
    const tf::Tensor& weight = variables.value(0);
    const int64_t length = indices->NumElements();
    Rows all;
    all.kind = RowOf::kind(weight.dtype(), values->dtype());
    OP_REQUIRES(context, all.kind >= 0 && weight.dims() > 0, does_not_fit());
    const int64_t table_rows = weight.dim_size(0);
    all.width = table_rows ? weight.NumElements() / table_rows : 0;
    for (int64_t i = 1; i < 3; ++i) {
      OP_REQUIRES(context,
                  variables.value(i).dtype() == state_of(all.kind) &&
                      variables.value(i).NumElements() == weight.NumElements(),
                  does_not_fit());
    }
    OP_REQUIRES(context,
                !length || values->NumElements() == length * all.width,
                does_not_fit());
    all.clips = clips_ && !(excluded && excluded[index_] > 0);
    all.value_dtype = RowOf::dtype(values->dtype());
    all.value_size = tf::DataTypeSize(values->dtype());
    all.weight_size = tf::DataTypeSize(weight.dtype());
    all.state_size = tf::DataTypeSize(state_of(all.kind));
    all.values = static_cast<const char*>(values->data());
    const bool are_rows =
        indices->dtype() == tf::DT_INT32
            ? sort_rows<int32_t>(*indices, table_rows, all)
            : sort_rows<int64_t>(*indices, table_rows, all);
    OP_REQUIRES(context, are_rows,
                tf::errors::InvalidArgument(
                    "keras_adamax: a gradient's row must be one of the ",
                    table_rows, " that its variable has"));

    float* counts = nullptr;
    if (counts_) {
      OP_REQUIRES_OK(context,
                     find_counts(context, variables, 3, index_, &counts));
    }
    const int64_t distinct = int64_t(all.rows.size());
    if (!distinct || !all.width) return;
    all.chunk = std::max<int64_t>(1, kBlock / all.width);
    const int64_t chunks = (distinct + all.chunk - 1) / all.chunk;
    Shared* shared = make_shared(chunks);
    OP_REQUIRES(context, shared, no_memory());
    const Release at_the_end = {shared};
    Tensors& tensors = shared->all;
    tensors.run = update_chunk;
    tensors.scalars = scalars_of(scalars);
    for (int64_t i = 0; i < chunks; ++i) {
      tensors.sizes[i] = 1;
      tensors.gradients[i] = &all;
    }
    void* memory[3];
    for (int64_t i = 0; i < 3; ++i) {
      OP_REQUIRES_OK(context, variables.writable(context, i, &memory[i]));
    }
    all.weights = static_cast<char*>(memory[0]);
    all.momentums = static_cast<char*>(memory[1]);
    all.norms = static_cast<char*>(memory[2]);
    OP_REQUIRES(context, !sums || make_sums(shared), no_memory());
    work_together(context, shared, length * all.width);
    if (sums) {
      double totals[kSums] = {};
      for (int64_t i = 0; i < kSums * chunks; ++i) {
        totals[i % kSums] += tensors.sums[i];
      }
      std::copy(totals, totals + kSums, sums);
    }
    if (!counts || !all.clips) return;
    int64_t clipped = 0;
    for (int64_t i = 0; i < chunks; ++i) clipped += tensors.found[i];
    add_counts(counts + kRowLength * index_, clipped, distinct * all.width);
  }

 private:
  int64_t index_;
  bool clips_;
  int64_t counts_;
  int64_t measures_;
};

class CountNonfiniteOp : public tf::OpKernel {
 public:
  using tf::OpKernel::OpKernel;

  void Compute(tf::OpKernelContext* context) override {
    tf::Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, {context->num_inputs()}, &result));
    Shared* shared = make_shared(context->num_inputs());
    OP_REQUIRES(context, shared, no_memory());
    const Release at_the_end = {shared};
    Tensors& all = shared->all;
    all.run = count_block;
    for (int64_t i = 0; i < all.count; ++i) {
      const tf::Tensor& tensor = context->input(int(i));
      all.kinds[i] = RowOf::dtype(tensor.dtype());
      all.sizes[i] = tensor.NumElements();
      all.gradients[i] = tensor.data();
    }
    work_together(context, shared, elements_of(all));
    std::copy(all.found, all.found + all.count,
              static_cast<int64_t*>(result->data()));
  }
};

class CountAboveOp : public tf::OpKernel {
 public:
  explicit CountAboveOp(tf::OpKernelConstruction* construction)
      : tf::OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("strides", &strides_));
  }

  void Compute(tf::OpKernelContext* context) override {
    const int64_t count = int64_t(strides_.size());
    tf::OpInputList gradients, scalars;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    OP_REQUIRES_OK(context, context->input_list("scalars", &scalars));
    LockedVariables variables;
    OP_REQUIRES_OK(context, variables.add(context, "norms"));
    tf::Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(0, {count}, &result));
    OP_REQUIRES(
        context, gradients.size() == count && variables.size() == count,
        does_not_fit());
    Shared* shared = make_shared(count);
    OP_REQUIRES(context, shared, no_memory());
    const Release at_the_end = {shared};
    Tensors& all = shared->all;
    all.run = count_above_block;
    all.strides = strides_.data();
    all.scalars = {};
    all.scalars.clip_multiplier = scalar(scalars[0]);
    all.scalars.clip_epsilon = scalar(scalars[1]);
    variables.lock();
    for (int64_t i = 0; i < count; ++i) {
      const tf::Tensor& gradient = gradients[i];
      const tf::Tensor& norm = variables.value(i);
      all.kinds[i] = RowOf::dtype(gradient.dtype());
      all.sizes[i] = sample_size(norm.NumElements(), strides_[i]);
      all.flags[i] = gradient.NumElements() == norm.NumElements();
      OP_REQUIRES(
          context,
          all.kinds[i] >= 0 && strides_[i] >= 1 &&
              RowOf::dtype(norm.dtype()) == (all.kinds[i] == 1) &&
              (all.flags[i] || gradient.NumElements() == all.sizes[i]),
          does_not_fit());
      all.gradients[i] = gradient.data();
      all.norms[i] = norm.data();
    }
    work_together(context, shared, elements_of(all));
    for (int64_t i = 0; i < count; ++i) {
      static_cast<int32_t*>(result->data())[i] = int32_t(all.found[i]);
    }
  }

 private:
  std::vector<int64_t> strides_;
};

// Updates variables in place, and their rows of `clip_counts`.
//
// `scalars` are in the order of `Scalars`; `exclusions`, where there are any,
// says of each of the optimizer's variables whether it is not clipped (> 0);
// `indices` says which of them these are. `sums`, where they are asked for, have
// what each variable measures.
REGISTER_OP("KerasAdamaxUpdate")
    .Input("weights: n * resource")
    .Input("momentums: n * resource")
    .Input("norms: n * resource")
    .Input("clip_counts: counts * resource")
    .Input("gradients: dtypes")
    .Input("scalars: scalar_count * dtype")
    .Input("exclusions: excluding * float")
    .Output("sums: measures * float")
    .Attr("n: int >= 1")
    .Attr("scalar_count: int >= 7")
    .Attr("counts: int >= 0")
    .Attr("excluding: int >= 0")
    .Attr("dtypes: list({float, double, half, bfloat16})")
    .Attr("dtype: {float, double}")
    .Attr("indices: list(int)")
    .Attr("clips: bool")
    .Attr("measures: int >= 0")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext* context) {
      int64_t count;
      TF_RETURN_IF_ERROR(context->GetAttr("n", &count));
      for (int i = 0; i < context->num_outputs(); ++i) {
        context->set_output(i, context->Matrix(count, kSums));
      }
      return absl::OkStatus();
    });

// The same for rows of one variable, which may repeat: their sum counts then.
REGISTER_OP("KerasAdamaxUpdateRows")
    .Input("weight: resource")
    .Input("momentum: resource")
    .Input("norm: resource")
    .Input("clip_counts: counts * resource")
    .Input("rows: row_dtype")
    .Input("values: value_dtype")
    .Input("scalars: scalar_count * dtype")
    .Input("exclusions: excluding * float")
    .Output("sums: measures * float")
    .Attr("counts: int >= 0")
    .Attr("excluding: int >= 0")
    .Attr("scalar_count: int >= 7")
    .Attr("row_dtype: {int32, int64}")
    .Attr("value_dtype: {float, double, half, bfloat16}")
    .Attr("dtype: {float, double}")
    .Attr("index: int >= 0")
    .Attr("clips: bool")
    .Attr("measures: int >= 0")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext* context) {
      for (int i = 0; i < context->num_outputs(); ++i) {
        context->set_output(i, context->Matrix(1, kSums));
      }
      return absl::OkStatus();
    });

// How many elements of each tensor are NaN or infinite.
REGISTER_OP("KerasAdamaxCountNonfinite")
    .Input("tensors: dtypes")
    .Output("nonfinite: int64")
    .Attr("dtypes: list({float, double, half, bfloat16})")
    .SetShapeFn([](tf::shape_inference::InferenceContext* context) {
      context->set_output(0, context->Vector(context->num_inputs()));
      return absl::OkStatus();
    });

// How many elements of samples exceed their bound; see `xla.cpp`.
REGISTER_OP("KerasAdamaxCountAbove")
    .Input("norms: n * resource")
    .Input("gradients: dtypes")
    .Input("scalars: scalar_count * dtype")
    .Output("above: int32")
    .Attr("n: int >= 1")
    .Attr("dtypes: list({float, double, half, bfloat16})")
    .Attr("scalar_count: int >= 2")
    .Attr("dtype: {float, double}")
    .Attr("strides: list(int)")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext* context) {
      int64_t count;
      TF_RETURN_IF_ERROR(context->GetAttr("n", &count));
      context->set_output(0, context->Vector(count));
      return absl::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("KerasAdamaxUpdate").Device(tf::DEVICE_CPU),
                        UpdateOp);
REGISTER_KERNEL_BUILDER(Name("KerasAdamaxUpdateRows").Device(tf::DEVICE_CPU),
                        UpdateRowsOp);
REGISTER_KERNEL_BUILDER(
    Name("KerasAdamaxCountNonfinite").Device(tf::DEVICE_CPU),
    CountNonfiniteOp);
REGISTER_KERNEL_BUILDER(Name("KerasAdamaxCountAbove").Device(tf::DEVICE_CPU),
                        CountAboveOp);

}  // namespace
