// The update of `update_rule.update` for dense tensors in the CPU's memory: one
// pass over each, any number of tensors at once. `torch.cpp` gives it to
// torch, `xla.cpp` to XLA, `tensorflow_operation.cpp` to TensorFlow;
// `build.py` compiles them.
//
// Nothing here needs a symbol of the C++ runtime, so that it compiles in about
// a second and one binary serves many releases. Products and sums must not be
// contracted (-ffp-contract=off): the results are then those of the
// specification, bit for bit.

#ifndef KERAS_ADAMAX_CPU_UPDATE_H_
#define KERAS_ADAMAX_CPU_UPDATE_H_

#include <stdint.h>
#include <string.h>

namespace {

// Small enough that threads share the work evenly, large enough that taking
// the next block costs nothing beside it.
constexpr int64_t kBlock = 1 << 15;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename State>
inline State load(float value) {
  return value;
}

template <typename State>
inline State load(double value) {
  return value;
}

template <typename State>
inline State load(BFloat16 value) {
  return from_bits(uint32_t(value.bits) << 16);
}

template <typename State>
inline State load(Half value) {
  // Normal numbers get another exponent; subnormal ones come out of a
  // subtraction that is exact.
  const uint32_t shifted = uint32_t(value.bits) << 16;
  const uint32_t sign = shifted & 0x80000000u;
  const uint32_t twice = shifted + shifted;
  const float normal = from_bits((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = from_bits((twice >> 17) | (126u << 23)) - 0.5f;
  return from_bits(sign | (twice < (1u << 27) ? to_bits(subnormal)
                                              : to_bits(normal)));
}

inline void store(float* target, float value) { *target = value; }

inline void store(double* target, double value) { *target = value; }

inline void store(BFloat16* target, float value) {
  // To the nearest, ties to even.
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  target->bits = uint16_t(value != value ? 0x7FC0u : rounded);
}

inline void store(Half* target, float value) {
  // To the nearest, ties to even: adding a number of the right exponent makes
  // the processor round at the last bit of a half.
  const uint32_t bits = to_bits(value);
  const uint32_t twice = bits + bits;
  const uint32_t sign = bits & 0x80000000u;
  const float size = from_bits(bits & 0x7FFFFFFFu);
  uint32_t bias = twice & 0xFF000000u;
  bias = bias < 0x71000000u ? 0x71000000u : bias;
  const float base = from_bits((bias >> 1) + 0x07800000u) +
                     size * 0x1.0p+112f * 0x1.0p-110f;
  const uint32_t sum = to_bits(base);
  const uint32_t number = ((sum >> 13) & 0x7C00u) + (sum & 0x0FFFu);
  target->bits =
      uint16_t((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : number));
}

inline float size_of(float value) { return __builtin_fabsf(value); }
inline double size_of(double value) { return __builtin_fabs(value); }
inline float with_sign(float size, float sign) {
  return __builtin_copysignf(size, sign);
}
inline double with_sign(double size, double sign) {
  return __builtin_copysign(size, sign);
}

struct Scalars {
  double learning_rate;
  double beta_1;
  double beta_2;
  double epsilon;
  double clip_multiplier;
  double clip_epsilon;
  double bias_correction;
};

// As of `update_rule.SUMS`.
constexpr int64_t kSums = 5;

// A square and a sum, in one instruction where there is one: of sums, nobody
// expects certain bits.
inline float add_square(float sum, float x) {
#ifdef __FMA__
  return __builtin_fmaf(x, x, sum);
#else
  return sum + x * x;
#endif
}
inline double add_square(double sum, double x) {
#ifdef __FMA__
  return __builtin_fma(x, x, sum);
#else
  return sum + x * x;
#endif
}

// An element is not finite if all bits of its exponent are set.
template <typename Bits, Bits exponent>
int64_t count_nonfinite(const void* elements, int64_t begin, int64_t end) {
  const Bits* bits = static_cast<const Bits*>(elements);
  int32_t found = 0;
#pragma omp simd reduction(+ : found)
  for (int64_t i = begin; i < end; ++i) {
    found += (bits[i] & exponent) == exponent;
  }
  return found;
}

// By dtype: float32, float64, float16, bfloat16.
int64_t (*const kCounts[])(const void*, int64_t, int64_t) = {
    count_nonfinite<uint32_t, 0x7F800000u>,
    count_nonfinite<uint64_t, 0x7FF0000000000000u>,
    count_nonfinite<uint16_t, uint16_t(0x7C00u)>,
    count_nonfinite<uint16_t, uint16_t(0x7F80u)>,
};
// Rows of that table.
constexpr int64_t number_of(float) { return 0; }
constexpr int64_t number_of(double) { return 1; }
constexpr int64_t number_of(Half) { return 2; }
constexpr int64_t number_of(BFloat16) { return 3; }

// Updates some elements; returns how many were clipped. If it `measures`, it
// writes the sums of `update_rule.sums_of` to `sums`.
template <typename Weight, typename Gradient, typename State, bool clips,
          bool measures>
int64_t update(const void* gradients, void* weights, void* momentums,
               void* norms, int64_t begin, int64_t end, const Scalars& scalars,
               double* sums) {
  const Gradient* __restrict gs = static_cast<const Gradient*>(gradients);
  Weight* __restrict ws = static_cast<Weight*>(weights);
  State* __restrict ms = static_cast<State*>(momentums);
  State* __restrict us = static_cast<State*>(norms);
  const State learning_rate = State(scalars.learning_rate);
  const State beta_1 = State(scalars.beta_1);
  const State rest = State(1) - beta_1;
  const State beta_2 = State(scalars.beta_2);
  const State epsilon = State(scalars.epsilon);
  const State clip_multiplier = State(scalars.clip_multiplier);
  const State clip_epsilon = State(scalars.clip_epsilon);
  const State bias_correction = State(scalars.bias_correction);
  const State largest = State(3.40282346638528859812e+38);
  // A block has fewer elements than this can count.
  int32_t clipped = 0;
  State gradient = 0, clipped_gradient = 0, moved = 0, momentum = 0;
#pragma omp simd reduction(+ : clipped, gradient, clipped_gradient, moved, \
                               momentum)
  for (int64_t i = begin; i < end; ++i) {
    State g = load<State>(gs[i]);
    const State old_u = us[i];
    if (measures) gradient = add_square(gradient, g);
    if (clips) {
      State bound = clip_multiplier * old_u + clip_epsilon;
      bound = bound > largest ? largest : bound;
      const State size = size_of(g);
      const bool is_clipped = size > bound;
      clipped += is_clipped;
      const State cut = is_clipped ? with_sign(bound, g) : g;
      // A NaN on either side goes on.
      g = bound != bound ? bound : cut;
    }
    const State m = beta_1 * ms[i] + rest * g;
    const State decayed = beta_2 * old_u;
    const State size = size_of(g);
    State u = size > decayed ? size : decayed;
    u = size != size ? size : u;
    const State sum = u + epsilon;
    const bool is_zero = sum == State(0);
    const State denominator = bias_correction * (is_zero ? State(1) : sum);
    const State change =
        is_zero ? State(0) * m : learning_rate * m / denominator;
    if (measures) {
      clipped_gradient = add_square(clipped_gradient, g);
      moved = add_square(moved, change);
      momentum = add_square(momentum, m);
    }
    ms[i] = m;
    us[i] = u;
    store(&ws[i], load<State>(ws[i]) - change);
  }
  if (measures) {
    sums[0] = gradient;
    sums[1] = clipped_gradient;
    sums[2] = moved;
    sums[3] = momentum;
    // A sum of squares that is finite is one of finite numbers.
    sums[4] = gradient - gradient == State(0)
                  ? 0
                  : kCounts[number_of(Gradient())](gradients, begin, end);
  }
  return clipped;
}

typedef int64_t (*Update)(const void*, void*, void*, void*, int64_t, int64_t,
                          const Scalars&, double*);

template <typename Weight, typename Gradient, typename State>
struct Updates {
  static constexpr Update all[2][2] = {
      {update<Weight, Gradient, State, false, false>,
       update<Weight, Gradient, State, false, true>},
      {update<Weight, Gradient, State, true, false>,
       update<Weight, Gradient, State, true, true>},
  };
};

// By kind, then by whether it clips, and whether it measures. A kind is the
// dtype of weight, gradient and state (`KINDS` in `supported.py`).
const Update (*const kUpdates[])[2] = {
    Updates<float, float, float>::all,   Updates<double, double, double>::all,
    Updates<Half, Half, float>::all,     Updates<Half, float, float>::all,
    Updates<BFloat16, BFloat16, float>::all,
    Updates<BFloat16, float, float>::all,
};

// Tensors to work on, by any number of threads that call `work`.
struct Tensors {
  // Does a part of one of them; what it returns is added up in `found`.
  int64_t (*run)(const Tensors&, int64_t i, int64_t begin, int64_t end);
  int64_t count;
  int64_t* kinds;
  // Of an update: whether the gradient is clipped. Of `count_above_block`:
  // whether the gradient is whole, and not a sample.
  int64_t* flags;
  int64_t* sizes;
  void** gradients;
  void** weights;
  void** momentums;
  void** norms;
  int64_t* found;
  Scalars scalars;
  // Of the first block of each tensor, and of the end.
  int64_t* starts;
  int64_t next;
  int64_t done;
  // Of `count_above_block`: which runs are looked at.
  const int64_t* strides;
  // Of an update: room for `kSums` numbers of each block, which are added up in
  // order afterwards, whoever did which block; null where nothing is measured.
  double* sums;
};

// Returns how many elements were clipped.
int64_t update_block(const Tensors& all, int64_t i, int64_t begin,
                     int64_t end) {
  double* sums = nullptr;
  if (all.sums) sums = all.sums + kSums * (all.starts[i] + begin / kBlock);
  return kUpdates[all.kinds[i]][all.flags[i]][sums != nullptr](
      all.gradients[i], all.weights[i], all.momentums[i], all.norms[i], begin,
      end, all.scalars, sums);
}

// Adds up what the blocks of tensor `i` have measured.
void write_sums(const Tensors& all, int64_t i, float* to) {
  double totals[kSums] = {};
  for (int64_t block = all.starts[i]; block < all.starts[i + 1]; ++block) {
    for (int64_t k = 0; k < kSums; ++k) totals[k] += all.sums[kSums * block + k];
  }
  for (int64_t k = 0; k < kSums; ++k) to[k] = float(totals[k]);
}

int64_t count_block(const Tensors& all, int64_t i, int64_t begin,
                    int64_t end) {
  return kCounts[all.kinds[i]](all.gradients[i], begin, end);
}

// Elements that a sample has side by side (`spike_rule.RUN`).
constexpr int64_t kRun = 16;

// Runs that are asked for ahead: of those far apart, the processor does not
// guess the next.
constexpr int64_t kRunsAhead = 16;

template <typename Gradient, typename State>
int32_t count_above_in(const Gradient* __restrict gs,
                       const State* __restrict us, int64_t length,
                       State clip_multiplier, State clip_epsilon) {
  const State largest = State(3.40282346638528859812e+38);
  int32_t found = 0;
#pragma omp simd reduction(+ : found)
  for (int64_t i = 0; i < length; ++i) {
    const State bound = clip_multiplier * us[i] + clip_epsilon;
    found += size_of(load<State>(gs[i])) > (bound > largest ? largest : bound);
  }
  return found;
}

// How many elements of each `stride`-th run of a gradient exceed their bound.
// The gradient is whole, as the norms are, or has these runs alone.
template <typename Gradient, typename State>
int64_t count_above(const void* gradient, bool is_whole, const void* norms,
                    int64_t stride, int64_t begin, int64_t end,
                    const Scalars& scalars) {
  const Gradient* gs = static_cast<const Gradient*>(gradient);
  const State* us = static_cast<const State*>(norms);
  const State clip_multiplier = State(scalars.clip_multiplier);
  const State clip_epsilon = State(scalars.clip_epsilon);
  if (stride == 1) {
    return count_above_in(gs + begin, us + begin, end - begin, clip_multiplier,
                          clip_epsilon);
  }
  // A block of a sample is a whole number of runs.
  const int64_t last = end / kRun;
  const int64_t gradient_stride = is_whole ? stride : 1;
  int64_t found = 0;
  for (int64_t run = begin / kRun; run < last; ++run) {
    if (run + kRunsAhead < last) {
      const int64_t ahead = (run + kRunsAhead) * kRun;
      __builtin_prefetch(us + ahead * stride);
      __builtin_prefetch(gs + ahead * gradient_stride);
    }
    found += count_above_in(gs + run * kRun * gradient_stride,
                            us + run * kRun * stride, kRun, clip_multiplier,
                            clip_epsilon);
  }
  return found;
}

// By the dtype of the gradient: float32, float64, float16, bfloat16.
int64_t (*const kCountsAbove[])(const void*, bool, const void*, int64_t,
                                int64_t, int64_t, const Scalars&) = {
    count_above<float, float>,
    count_above<double, double>,
    count_above<Half, float>,
    count_above<BFloat16, float>,
};

int64_t count_above_block(const Tensors& all, int64_t i, int64_t begin,
                          int64_t end) {
  return kCountsAbove[all.kinds[i]](all.gradients[i], all.flags[i] != 0,
                                    all.norms[i], all.strides[i], begin, end,
                                    all.scalars);
}

// How many elements a sample has.
inline int64_t sample_size(int64_t size, int64_t stride) {
  if (stride == 1) return size;
  return (size / kRun + stride - 1) / stride * kRun;
}

// Adds a row to a sum, with a rounding each time.
template <typename Number, typename State>
void add_row(void* sum, const void* row, int64_t length) {
  Number* __restrict to = static_cast<Number*>(sum);
  const Number* __restrict from = static_cast<const Number*>(row);
  for (int64_t i = 0; i < length; ++i) {
    store(&to[i], State(load<State>(to[i]) + load<State>(from[i])));
  }
}

// By dtype: float32, float64, float16, bfloat16.
void (*const kAdds[])(void*, const void*, int64_t) = {
    add_row<float, float>,
    add_row<double, double>,
    add_row<Half, float>,
    add_row<BFloat16, float>,
};

// Rows of these tables, -1 where there is none, by dtypes as somebody else
// numbers them.
template <typename Dtype, Dtype f32, Dtype f64, Dtype f16, Dtype bf16>
struct RowsBy {
  // Of `kCounts` and `kAdds`.
  static int64_t dtype(Dtype dtype) {
    return dtype == f32    ? 0
           : dtype == f64  ? 1
           : dtype == f16  ? 2
           : dtype == bf16 ? 3
                           : -1;
  }

  // Of `kUpdates`.
  static int64_t kind(Dtype weight, Dtype gradient) {
    if (gradient != weight && gradient != f32) return -1;
    const bool is_same = gradient == weight;
    return weight == f32    ? 0
           : weight == f64  ? (is_same ? 1 : -1)
           : weight == f16  ? (is_same ? 2 : 3)
           : weight == bf16 ? (is_same ? 4 : 5)
                            : -1;
  }
};

// As of `exact_totals.py`.
constexpr int64_t kLimbs = 3;
constexpr int64_t kRowLength = 2 * kLimbs;

constexpr int64_t kBase = 1 << 20;
constexpr int64_t kDigits = 2;

void add_to_limbs(float* limbs, int64_t number) {
  const int64_t lowest = int64_t(limbs[0]) + number % kBase;
  const int64_t middle = int64_t(limbs[1]) + lowest / kBase + number / kBase;
  limbs[0] = float(lowest % kBase);
  limbs[1] = float(middle % kBase);
  limbs[2] += float(middle / kBase);
}

// A count in two numbers that float32 holds exactly.
inline void write_digits(float* digits, int64_t number) {
  digits[0] = float(number % kBase);
  digits[1] = float(number / kBase);
}

inline int64_t read_digits(const float* digits) {
  return int64_t(digits[0]) + kBase * int64_t(digits[1]);
}

// As `exact_totals.add_to_rows`, for one row.
void add_counts(float* row, int64_t clipped, int64_t counted) {
  add_to_limbs(row, clipped);
  add_to_limbs(row + kLimbs, counted);
}

inline int64_t blocks_of(int64_t size) { return (size + kBlock - 1) / kBlock; }

void divide_into_blocks(Tensors& all) {
  all.starts[0] = 0;
  for (int64_t i = 0; i < all.count; ++i) {
    all.found[i] = 0;
    all.starts[i + 1] = all.starts[i] + blocks_of(all.sizes[i]);
  }
  all.next = 0;
  all.done = 0;
}

void work(void* argument) {
  Tensors& all = *static_cast<Tensors*>(argument);
  int64_t i = 0;
  for (;;) {
    const int64_t block = __atomic_fetch_add(&all.next, 1, __ATOMIC_RELAXED);
    if (block >= all.starts[all.count]) return;
    while (all.starts[i + 1] <= block) ++i;
    const int64_t begin = (block - all.starts[i]) * kBlock;
    const int64_t end =
        begin + kBlock < all.sizes[i] ? begin + kBlock : all.sizes[i];
    const int64_t found = all.run(all, i, begin, end);
    if (found) __atomic_fetch_add(&all.found[i], found, __ATOMIC_RELAXED);
    __atomic_fetch_add(&all.done, 1, __ATOMIC_RELEASE);
  }
}

}  // namespace

#endif  // KERAS_ADAMAX_CPU_UPDATE_H_
