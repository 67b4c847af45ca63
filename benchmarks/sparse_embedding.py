"""Does the cost of a sparse step grow with the embedding table?

A step of `AdamaxClipped` on `tf.IndexedSlices` of 64 rows, for a table of
10,000 and of 1,000,000 rows of 64 numbers; the same of Keras's Adamax, which
makes the gradient dense. Prints ratios, from interleaved repetitions of one
run. Rerun with

    python benchmarks/sparse_embedding.py

TensorFlow only: there alone does `fit` give sparse gradients.
"""

import statistics
import time

from _harness import bars, options, results, timing

PARSER = options.make_parser(__doc__, only="tensorflow", rounds=7)
PARSER.add_argument("--small", type=int, default=10_000)
PARSER.add_argument("--large", type=int, default=1_000_000)
PARSER.add_argument("--jit-compile", action="store_true")
PARSER.set_defaults(check=True)  # whether or not it is asked to
ARGUMENTS = options.parse(PARSER, small=200, large=2_000, rounds=2)

import keras
import numpy as np
import tensorflow as tf

import keras_adamax

WIDTH = 64
BATCH = 64
OURS = "AdamaxClipped"
# How to make each optimizer, and the steps between two looks at the clock.
OPTIMIZERS = {
    OURS: (keras_adamax.AdamaxClipped, 100),
    "AdamaxClipped, clipnorm": (
        lambda: keras_adamax.AdamaxClipped(clipnorm=1.0),
        100,
    ),
    "keras.optimizers.Adamax": (keras.optimizers.Adamax, 2),
}


def make_step(optimizer, num_rows):
    """A compiled step on new rows of an embedding table each time."""
    table = keras.Variable(np.zeros((num_rows, WIDTH), "float32"), name="table")
    optimizer.build([table])
    rng = np.random.default_rng(0)
    batches = tf.constant(rng.integers(0, num_rows, (1000, BATCH)), tf.int32)
    values = tf.constant(rng.normal(size=(BATCH, WIDTH)), tf.float32)
    shape = tf.constant([num_rows, WIDTH])

    @tf.function(jit_compile=ARGUMENTS.jit_compile)
    def step(indices):
        optimizer.apply([tf.IndexedSlices(values, indices, shape)], [table])

    def run(number):
        step(batches[number % 1000])

    return run


def make_sampler(optimizer, num_rows, steps):
    """A function that returns the seconds of a step, a median of five."""
    step = make_step(optimizer, num_rows)
    step(0)  # what compiles is not measured

    def sample():
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            for number in range(steps):
                step(number)
            seconds.append((time.perf_counter() - start) / steps)
        return statistics.median(seconds)

    return sample


def measure(name):
    """Compares an optimizer on the large table with itself on the small."""
    make, steps = OPTIMIZERS[name]
    sizes = {"small": ARGUMENTS.small, "large": ARGUMENTS.large}
    samplers = {
        size: make_sampler(make(), num_rows, steps)
        for size, num_rows in sizes.items()
    }
    rounds = timing.interleave(samplers, ARGUMENTS.rounds)
    large = timing.compare(rounds, "small")["large"]
    print(
        f"{name}: {ARGUMENTS.large:,} rows cost "
        f"{large['ratio']['median']:.2f} times what {ARGUMENTS.small:,} cost "
        f"({timing.range_of_rounds(large)}; "
        f"{large['median_seconds'] * 1e3:.2f} ms)"
    )
    return large


def main():
    """Measures, prints and writes."""
    found = results.begin("sparse_embedding", ARGUMENTS)
    print(
        f"A step on {BATCH} rows of a table of {WIDTH} columns, TensorFlow "
        f"{'jit' if ARGUMENTS.jit_compile else 'graph'}"
    )
    found["large_tables"] = {name: measure(name) for name in OPTIMIZERS}
    judged = bars.judge_one(
        found["large_tables"][OURS]["ratio"]["median"],
        bars.SPARSE_STEP,
        quick=ARGUMENTS.quick,
    )
    found["bars"] = [judged]
    results.end(found, ARGUMENTS, "sparse_embedding", [judged])


if __name__ == "__main__":
    main()
