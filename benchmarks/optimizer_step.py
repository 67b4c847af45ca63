"""What does a step of `AdamaxClipped` cost, and how near is it to the limit?

Steps of our optimizer and of its peers, each with weights and state of its
own, on the same heavy-tailed gradients (`_step/workloads.py` says how they are
made and how 0, 1 or 50 % of their elements come to be clipped), timed in turn,
round by round, in random order. Prints, for each workload, the ratios of the
times to `keras.optimizers.Adamax` without clipping (median and quartiles of
the rounds), and which part of the memory bandwidth of this machine a step
reaches (`_step/bandwidth.py` says how both are counted). At the end come the
bars, which are judged where 1 % is clipped. Rerun with

    KERAS_BACKEND=tensorflow python benchmarks/optimizer_step.py --output DIR
    KERAS_BACKEND=jax python benchmarks/optimizer_step.py --output DIR
    KERAS_BACKEND=torch python benchmarks/optimizer_step.py --output DIR

and with `--memory` for the peaks of memory, and the first step of a process
without anything in the caches of compilers, in place of the times. On
TensorFlow both modes are measured, the plain graph that Keras uses on a CPU,
and `jit_compile`.

A sample is as many steps as last 20 ms, after one that is not counted. On
TensorFlow and JAX the gradients are arguments of the compiled step, which adds
the same to all arms (inside of `fit` they never leave the graph).
"""

import argparse

from _harness import bars, options, results
from _step import workloads

PARSER = options.make_parser(__doc__, rounds=15)
options.add_mode(PARSER)
PARSER.add_argument(
    "--workloads",
    nargs="+",
    choices=(*workloads.NAMES, workloads.LARGE),
    help=f"default: all but {workloads.LARGE}; of memory: one and many",
)
PARSER.add_argument("--arms", nargs="+", metavar="ARM", help="default: all")
PARSER.add_argument(
    "--rates",
    nargs="+",
    type=int,
    choices=tuple(workloads.CLIP_MULTIPLIERS),
    help="percent clipped (default: all on one and many, else 1)",
)
PARSER.add_argument(
    "--memory",
    action="store_true",
    help="measure peaks of memory in place of times",
)
# Used by this script itself, for processes that measure memory.
PARSER.add_argument("--measure-memory", help=argparse.SUPPRESS)
ARGUMENTS = options.parse(PARSER, rounds=2)

from _step import peaks, times


def main() -> None:
    """Measures, prints and writes."""
    if ARGUMENTS.measure_memory:
        peaks.measure_here(ARGUMENTS)
        return
    found = results.begin_on_device(
        "optimizer_step",
        ARGUMENTS,
        measured="memory" if ARGUMENTS.memory else "time",
    )
    name, draw = f"optimizer_step_{ARGUMENTS.backend}", None
    if ARGUMENTS.memory:
        limits, name = bars.MEMORY, f"{name}_memory"
        found["cases"] = peaks.measure(ARGUMENTS, __file__)
        values = peaks.bar_values(found["cases"])
    else:
        limits, draw = bars.OPTIMIZER_STEP, times.draw
        found["cases"] = times.measure(ARGUMENTS)
        values = times.bar_values(found["cases"])
    found["bars"] = bars.judge(limits, values, found)
    bars.print_judged(found["bars"])
    results.end(found, ARGUMENTS, name, found["bars"], draw)


if __name__ == "__main__":
    main()
