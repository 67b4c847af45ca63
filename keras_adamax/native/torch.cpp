// The update for torch, called by `_torch_compiled.py` through ctypes.

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "update.h"

namespace {

constexpr int kMostThreads = 256;

void* work_of_thread(void* argument) {
  work(argument);
  return nullptr;
}

void work_on_threads(Tensors& all, int64_t threads) {
  divide_into_blocks(all);
  pthread_t others[kMostThreads];
  int running = 0;
  while (running < threads - 1 && running < kMostThreads &&
         pthread_create(&others[running], nullptr, work_of_thread, &all) == 0) {
    ++running;
  }
  work(&all);
  for (int i = 0; i < running; ++i) pthread_join(others[i], nullptr);
}

}  // namespace

// Counts the elements of samples of `count` gradients that exceed their bounds.
//
// `kinds` are the dtypes of the gradients, `are_whole` says which are more than
// the sample. `sizes` are the lengths of the samples, `norms` those of the whole
// variables. `found` is room for `count` numbers, `starts` for one more.
extern "C" __attribute__((visibility("default"))) void keras_adamax_count_above(
    int64_t count, int64_t* kinds, int64_t* are_whole, int64_t* sizes,
    const int64_t* strides, void** gradients, void** norms, int64_t* found,
    int64_t* starts, double clip_multiplier, double clip_epsilon,
    int64_t threads) {
  Tensors all = {count_above_block,
                 count, kinds,  are_whole, sizes, gradients, nullptr, nullptr,
                 norms, found,  {},        starts, 0,        0,       strides,
                 nullptr};
  all.scalars.clip_multiplier = clip_multiplier;
  all.scalars.clip_epsilon = clip_epsilon;
  work_on_threads(all, threads);
}

// Updates `count` tensors in place on up to `threads` threads.
//
// Unless it is null, `clip_counts` has for each tensor its row of statistics.
// `clipped` is room for `count` numbers, `starts` for one more; `scalars` are
// in the order of `Scalars`. Unless it is null, `sums` gets a row of what each
// tensor measures, and `of_blocks` is room for one of each block.
//
// The threads are made here and end here: beside what they do, that costs
// little, and there is nothing that a fork could break or that could be in the
// way of torch's own.
extern "C" __attribute__((visibility("default"))) void keras_adamax_update(
    int64_t count, int64_t* kinds, int64_t* clips, int64_t* sizes,
    void** gradients, void** weights, void** momentums, void** norms,
    float* const* clip_counts,
    int64_t* clipped, int64_t* starts, const double* scalars,
    double* of_blocks, float* sums, int64_t threads) {
  Tensors all = {update_block, count,   kinds,     clips, sizes,
                 gradients,    weights, momentums, norms, clipped,
                 {},           starts,  0,         0,     nullptr,
                 sums ? of_blocks : nullptr};
  memcpy(&all.scalars, scalars, sizeof all.scalars);
  work_on_threads(all, threads);
  for (int64_t i = 0; sums && i < count; ++i) {
    write_sums(all, i, sums + kSums * i);
  }
  if (!clip_counts) return;
  for (int64_t i = 0; i < count; ++i) {
    if (!clips[i]) continue;
    add_counts(clip_counts[i], clipped[i], sizes[i]);
  }
}
