// Work on tensors that is shared with the threads of somebody else's pool, for
// `xla.cpp` and `tensorflow_operation.cpp`.

#ifndef KERAS_ADAMAX_CPU_TASKS_H_
#define KERAS_ADAMAX_CPU_TASKS_H_

#include <sched.h>
#include <stdint.h>
#include <stdlib.h>

#include "update.h"

namespace {

// What all threads of one call share; the last of them frees it. A task that
// a pool starts when all is done finds no block left, and touches no tensor.
struct Shared {
  Tensors all;
  int64_t references;
};

void release(Shared* shared) {
  if (__atomic_sub_fetch(&shared->references, 1, __ATOMIC_ACQ_REL) == 0) {
    free(shared->all.sums);
    free(shared);
  }
}

void work_of_task(void* argument) {
  Shared* shared = static_cast<Shared*>(argument);
  work(&shared->all);
  release(shared);
}

// Room for what a call has to say of `count` tensors; null where there is none.
Shared* make_shared(int64_t count) {
  const size_t words = size_t(9 * count + 1);
  Shared* shared = static_cast<Shared*>(
      malloc(sizeof(Shared) + words * sizeof(int64_t)));
  if (!shared) return nullptr;
  shared->references = 1;
  shared->all.sums = nullptr;
  int64_t* room = reinterpret_cast<int64_t*>(shared + 1);
  void** pointers = reinterpret_cast<void**>(room + 5 * count + 1);
  shared->all.count = count;
  shared->all.kinds = room;
  shared->all.flags = room + count;
  shared->all.sizes = room + 2 * count;
  shared->all.found = room + 3 * count;
  shared->all.starts = room + 4 * count;
  shared->all.gradients = pointers;
  shared->all.weights = pointers + count;
  shared->all.momentums = pointers + 2 * count;
  shared->all.norms = pointers + 3 * count;
  return shared;
}

// Room for what the blocks measure, whose sizes are known; false where there is
// none.
bool make_sums(Shared* shared) {
  Tensors& all = shared->all;
  int64_t blocks = 0;
  for (int64_t i = 0; i < all.count; ++i) blocks += blocks_of(all.sizes[i]);
  all.sums = static_cast<double*>(
      malloc(size_t(kSums * blocks + 1) * sizeof(double)));
  return all.sums != nullptr;
}

// Does all blocks, with up to `threads` threads. `schedule` lets another thread
// call `work_of_task(shared)` some time, and returns whether it will.
template <typename Schedule>
void work_with_helpers(Shared* shared, int64_t threads, Schedule schedule) {
  Tensors& all = shared->all;
  divide_into_blocks(all);
  const int64_t blocks = all.starts[all.count];
  const int64_t helpers = (blocks < threads ? blocks : threads) - 1;
  for (int64_t i = 0; i < helpers; ++i) {
    __atomic_fetch_add(&shared->references, 1, __ATOMIC_RELAXED);
    if (!schedule()) {
      release(shared);
      break;
    }
  }
  work(&all);
  // Only for blocks that another thread has begun: nothing here waits for a
  // task that may never start.
  while (__atomic_load_n(&all.done, __ATOMIC_ACQUIRE) < blocks) sched_yield();
}

}  // namespace

#endif  // KERAS_ADAMAX_CPU_TASKS_H_
