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

#include "_cpu_tasks.h"

namespace {

namespace tf = tensorflow;

// Less is not worth waking another thread.
constexpr int64_t kElementsPerThread = 1 << 17;

// The row of `kUpdates`, or -1.
int64_t kind_of(tf::DataType weight, tf::DataType gradient) {
  switch (weight) {
    case tf::DT_FLOAT:
      return gradient == tf::DT_FLOAT ? 0 : -1;
    case tf::DT_DOUBLE:
      return gradient == tf::DT_DOUBLE ? 1 : -1;
    case tf::DT_HALF:
      return gradient == tf::DT_HALF ? 2 : gradient == tf::DT_FLOAT ? 3 : -1;
    case tf::DT_BFLOAT16:
      return gradient == tf::DT_BFLOAT16 ? 4
             : gradient == tf::DT_FLOAT  ? 5
                                         : -1;
    default:
      return -1;
  }
}

// The row of `kCounts`, or -1.
int64_t count_of(tf::DataType dtype) {
  return dtype == tf::DT_FLOAT      ? 0
         : dtype == tf::DT_DOUBLE   ? 1
         : dtype == tf::DT_HALF     ? 2
         : dtype == tf::DT_BFLOAT16 ? 3
                                    : -1;
}

double scalar(const tf::Tensor& tensor) {
  return tensor.dtype() == tf::DT_DOUBLE
             ? *static_cast<const double*>(tensor.data())
             : double(*static_cast<const float*>(tensor.data()));
}

// Does all blocks, with the threads that TensorFlow has for one operation.
void work_together(tf::OpKernelContext* context, Shared* shared) {
  int64_t elements = 0;
  for (int64_t i = 0; i < shared->all.count; ++i) {
    elements += shared->all.sizes[i];
  }
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
  tf::Status add(tf::OpKernelContext* context, const char* name) {
    int begin, end;
    TF_RETURN_IF_ERROR(context->op_kernel().InputRange(name, &begin, &end));
    for (int i = begin; i < end; ++i) {
      tf::core::RefCountPtr<tf::Var> variable;
      TF_RETURN_IF_ERROR(tf::LookupResource(
          context, tf::HandleFromInput(context, i), &variable));
      variables_.push_back(std::move(variable));
    }
    return tf::Status();
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

  const tf::Tensor& value(int64_t i) const { return *variables_[i]->tensor(); }

  // Memory to write the next value of variable `i` to, which holds the present
  // one. What was read of the variable keeps its value.
  tf::Status writable(tf::OpKernelContext* context, int64_t i, void** memory) {
    tf::Tensor* tensor = variables_[i]->tensor();
    if (!tensor->RefCountIsOne()) {
      tf::Tensor copy;
      TF_RETURN_IF_ERROR(
          context->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
      memcpy(copy.data(), tensor->data(), tensor->TotalBytes());
      *tensor = copy;
    }
    *memory = tensor->data();
    return tf::Status();
  }

 private:
  std::vector<tf::core::RefCountPtr<tf::Var>> variables_;
  std::vector<tf::mutex*> mutexes_;
  bool is_locked_ = false;
};

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
  }

  void Compute(tf::OpKernelContext* context) override {
    const int64_t count = int64_t(indices_.size());
    tf::OpInputList gradients, scalars, exclusions;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    OP_REQUIRES_OK(context, context->input_list("scalars", &scalars));
    OP_REQUIRES_OK(context, context->input_list("exclusions", &exclusions));
    LockedVariables variables;
    for (const char* name : {"weights", "momentums", "norms", "clip_counts"}) {
      OP_REQUIRES_OK(context, variables.add(context, name));
    }
    Shared* shared = make_shared(count);
    OP_REQUIRES(context, shared,
                tf::errors::ResourceExhausted("keras_adamax: no memory"));
    const Release at_the_end = {shared};
    Tensors& all = shared->all;
    all.run = update_block;
    all.scalars = {scalar(scalars[0]), scalar(scalars[1]), scalar(scalars[2]),
                   scalar(scalars[3]), scalar(scalars[4]), scalar(scalars[5]),
                   scalar(scalars[6])};
    const int64_t last = *std::max_element(indices_.begin(), indices_.end());
    const float* excluded = nullptr;
    if (exclusions.size()) {
      OP_REQUIRES(context, exclusions[0].NumElements() > last, does_not_fit());
      excluded = static_cast<const float*>(exclusions[0].data());
    }

    variables.lock();
    for (int64_t i = 0; i < count; ++i) {
      const tf::Tensor& gradient = gradients[i];
      const tf::Tensor& weight = variables.value(i);
      const tf::Tensor& momentum = variables.value(count + i);
      const tf::Tensor& norm = variables.value(2 * count + i);
      all.kinds[i] = kind_of(weight.dtype(), gradient.dtype());
      all.sizes[i] = weight.NumElements();
      const tf::DataType state = all.kinds[i] == 1 ? tf::DT_DOUBLE
                                                   : tf::DT_FLOAT;
      OP_REQUIRES(
          context,
          all.kinds[i] >= 0 && momentum.dtype() == state &&
              norm.dtype() == state &&
              gradient.NumElements() == all.sizes[i] &&
              momentum.NumElements() == all.sizes[i] &&
              norm.NumElements() == all.sizes[i],
          does_not_fit());
      all.clips[i] = clips_ && !(excluded && excluded[indices_[i]] > 0);
      all.gradients[i] = gradient.data();
    }
    float* counts = nullptr;
    if (counts_) {
      const tf::Tensor& value = variables.value(3 * count);
      OP_REQUIRES(context,
                  value.dtype() == tf::DT_FLOAT && value.dims() == 2 &&
                      value.dim_size(1) == 6 && value.dim_size(0) > last,
                  does_not_fit());
      void* memory;
      OP_REQUIRES_OK(context, variables.writable(context, 3 * count, &memory));
      counts = static_cast<float*>(memory);
    }
    for (int64_t i = 0; i < count; ++i) {
      OP_REQUIRES_OK(context,
                     variables.writable(context, i, &all.weights[i]));
      OP_REQUIRES_OK(
          context, variables.writable(context, count + i, &all.momentums[i]));
      OP_REQUIRES_OK(
          context, variables.writable(context, 2 * count + i, &all.norms[i]));
    }
    work_together(context, shared);
    if (!counts) return;
    for (int64_t i = 0; i < count; ++i) {
      if (!all.clips[i]) continue;
      float* row = counts + 6 * indices_[i];
      add_to_limbs(row, all.found[i]);
      add_to_limbs(row + 3, all.sizes[i]);
    }
  }

 private:
  static tf::Status does_not_fit() {
    return tf::errors::InvalidArgument(
        "keras_adamax: tensors that do not fit this operation");
  }

  std::vector<int64_t> indices_;
  bool clips_;
  int64_t counts_;
};

class IsFiniteOp : public tf::OpKernel {
 public:
  using tf::OpKernel::OpKernel;

  void Compute(tf::OpKernelContext* context) override {
    tf::Tensor* result;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &result));
    Shared* shared = make_shared(context->num_inputs());
    OP_REQUIRES(context, shared,
                tf::errors::ResourceExhausted("keras_adamax: no memory"));
    const Release at_the_end = {shared};
    Tensors& all = shared->all;
    all.run = count_block;
    for (int64_t i = 0; i < all.count; ++i) {
      const tf::Tensor& tensor = context->input(int(i));
      all.kinds[i] = count_of(tensor.dtype());
      all.sizes[i] = tensor.NumElements();
      all.gradients[i] = tensor.data();
    }
    work_together(context, shared);
    *static_cast<bool*>(result->data()) =
        std::all_of(all.found, all.found + all.count,
                    [](int64_t found) { return found == 0; });
  }
};

// Updates variables in place, and their rows of `clip_counts`.
//
// `scalars` are in the order of `Scalars`; `exclusions`, where there are any,
// says of each of the optimizer's variables whether it is not clipped (> 0);
// `indices` says which of them these are.
REGISTER_OP("KerasAdamaxUpdate")
    .Input("weights: n * resource")
    .Input("momentums: n * resource")
    .Input("norms: n * resource")
    .Input("clip_counts: counts * resource")
    .Input("gradients: dtypes")
    .Input("scalars: scalar_count * dtype")
    .Input("exclusions: excluding * float")
    .Attr("n: int >= 1")
    .Attr("scalar_count: int >= 7")
    .Attr("counts: int >= 0")
    .Attr("excluding: int >= 0")
    .Attr("dtypes: list({float, double, half, bfloat16})")
    .Attr("dtype: {float, double}")
    .Attr("indices: list(int)")
    .Attr("clips: bool")
    .SetIsStateful()
    .SetShapeFn(tf::shape_inference::NoOutputs);

// Whether all elements of all tensors are finite.
REGISTER_OP("KerasAdamaxIsFinite")
    .Input("tensors: dtypes")
    .Output("is_finite: bool")
    .Attr("dtypes: list({float, double, half, bfloat16})")
    .SetShapeFn(tf::shape_inference::ScalarShape);

REGISTER_KERNEL_BUILDER(Name("KerasAdamaxUpdate").Device(tf::DEVICE_CPU),
                        UpdateOp);
REGISTER_KERNEL_BUILDER(Name("KerasAdamaxIsFinite").Device(tf::DEVICE_CPU),
                        IsFiniteOp);

}  // namespace
