"""Does the cost of a sparse step grow with the embedding table?

A step of `AdamaxClipped` on `tf.IndexedSlices` of 64 rows, for a table of
10,000 and of 1,000,000 rows of 64 numbers; the same of Keras's Adamax, which
makes the gradient dense. Prints ratios, from interleaved repetitions of one
run. Rerun with

    python benchmarks/sparse_embedding.py

TensorFlow only: there alone does `fit` give sparse gradients.
"""

import argparse
import os
import statistics
import sys
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _machine import describe_machine

import keras_adamax

WIDTH = 64
BATCH = 64
LIMIT = 1.5


def make_step(optimizer, num_rows, jit_compile):
    """A compiled step on new rows of an embedding table each time."""
    table = keras.Variable(np.zeros((num_rows, WIDTH), "float32"), name="table")
    optimizer.build([table])
    rng = np.random.default_rng(0)
    batches = tf.constant(rng.integers(0, num_rows, (1000, BATCH)), tf.int32)
    values = tf.constant(rng.normal(size=(BATCH, WIDTH)), tf.float32)
    shape = tf.constant([num_rows, WIDTH])

    @tf.function(jit_compile=jit_compile)
    def step(indices):
        optimizer.apply([tf.IndexedSlices(values, indices, shape)], [table])

    def run(number):
        step(batches[number % 1000])

    return run


def seconds_of(step, steps):
    """Seconds a step, the median of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for number in range(steps):
            step(number)
        rounds.append((time.perf_counter() - start) / steps)
    return statistics.median(rounds)


def main():
    """Measures, prints, and fails if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jit-compile", action="store_true")
    arguments = parser.parse_args()
    sizes = (arguments.small, arguments.large)
    makers = {
        "AdamaxClipped": (keras_adamax.AdamaxClipped, 100),
        "AdamaxClipped, clipnorm": (
            lambda: keras_adamax.AdamaxClipped(clipnorm=1.0),
            100,
        ),
        "keras.optimizers.Adamax": (keras.optimizers.Adamax, 2),
    }
    print(describe_machine())
    print(
        f"A step on {BATCH} rows of a table of {WIDTH} columns, TensorFlow "
        f"{'jit' if arguments.jit_compile else 'graph'}"
    )
    medians = {}
    for name, (maker, steps) in makers.items():
        runs = [make_step(maker(), s, arguments.jit_compile) for s in sizes]
        for run in runs:
            run(0)
        times = [[], []]
        for _ in range(arguments.rounds):
            for run, result in zip(runs, times, strict=True):
                result.append(seconds_of(run, steps))
        ratios = [large / small for small, large in zip(*times, strict=True)]
        medians[name] = statistics.median(ratios)
        print(
            f"{name}: {sizes[1]:,} rows cost {medians[name]:.2f} times what "
            f"{sizes[0]:,} cost (rounds: {min(ratios):.2f} to "
            f"{max(ratios):.2f}; {statistics.median(times[1]) * 1e3:.2f} ms)"
        )
    if medians["AdamaxClipped"] > LIMIT:
        sys.exit(f"The ratio is above the limit of {LIMIT}.")


if __name__ == "__main__":
    main()
