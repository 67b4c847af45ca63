"""What do both loggers add to the time of `fit`?

The model and the images of `examples/quickstart.py`, trained without
callbacks, with `ClipRateLogger` and `WeightDeltaLogger` each epoch, and with
both each 10 batches; they share a CSV file. A sample is one `fit`, taken in
turn, round by round, in random order. What is judged is the median of the
rounds' ratios to the time without callbacks, and nothing else. Rerun with

    KERAS_BACKEND=tensorflow python benchmarks/callback_overhead.py
    KERAS_BACKEND=jax python benchmarks/callback_overhead.py --output DIR
    KERAS_BACKEND=torch python benchmarks/callback_overhead.py --check

The progress bar is off, which makes the loggers look as dear as can be.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import _report

ROUNDS = 15
EPOCHS = 4
BASELINE = "without"
# How often the loggers of an arm record.
FREQUENCIES = {BASELINE: None, "each epoch": "epoch", "each 10 batches": 10}
LIMITS = {"each epoch": 1.02, "each 10 batches": 1.10}


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = _report.make_parser(__doc__, ROUNDS)
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="of a sample"
    )
    parser.add_argument(
        "--log-dir", action="store_true", help="event files, too"
    )
    return parser.parse_args()


# Keras reads its backend when it is imported, so the options come first.
ARGUMENTS = parse_arguments()
OPTIONS = sys.argv[1:]
# The quickstart reads its own arguments when it is imported.
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
sys.argv[1:] = ["--backend", ARGUMENTS.backend]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import _timing  # noqa: E402
import keras  # noqa: E402
import quickstart  # noqa: E402
from _machine import describe_machine  # noqa: E402

import keras_adamax  # noqa: E402


def make_sampler(arm, model, data, folder):
    """A function that trains on and returns the seconds of an epoch."""
    update_freq = FREQUENCIES[arm]
    images, labels = data

    def sample():
        callbacks = []
        if update_freq is not None:
            arguments = {
                "update_freq": update_freq,
                "filename": folder / f"{update_freq}.csv",
                "log_dir": folder if ARGUMENTS.log_dir else None,
            }
            callbacks = [
                keras_adamax.ClipRateLogger(**arguments),
                keras_adamax.WeightDeltaLogger(**arguments),
            ]
        began = time.perf_counter()
        model.fit(
            images,
            labels,
            batch_size=quickstart.BATCH_SIZE,
            epochs=ARGUMENTS.epochs,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
        return (time.perf_counter() - began) / ARGUMENTS.epochs

    return sample


def judge(arms):
    """Compares the median ratio of each arm with its limit."""
    judged = []
    for arm, limit in LIMITS.items():
        value = arms[arm]["ratio"]["median"]
        met = None if ARGUMENTS.quick else value <= limit
        judged.append({"arm": arm, "limit": limit, "value": value, "met": met})
    return judged


def print_results(arms, judged):
    """Prints a line for each arm."""
    limits = {bar["arm"]: bar for bar in judged}
    for arm, result in arms.items():
        ratio = result["ratio"]
        line = (
            f"    {arm:16} {ratio['median']:6.3f}  "
            f"{ratio['lower_quartile']:6.3f} - {ratio['upper_quartile']:6.3f} "
            f"{result['median_seconds']:6.3f} s an epoch"
        )
        if arm in limits:
            word = {True: "met", False: "MISSED", None: "not judged"}
            met = word[limits[arm]["met"]]
            line += f", limit {limits[arm]['limit']:.2f}: {met}"
        print(line)


def main():
    """Measures, prints and writes."""
    results = {
        "benchmark": "callback_overhead",
        "command": OPTIONS,
        "backend": ARGUMENTS.backend,
        "machine": describe_machine(),
        "quick": ARGUMENTS.quick,
        "epochs_of_a_sample": ARGUMENTS.epochs,
        "event_files": ARGUMENTS.log_dir,
    }
    print(results["machine"])
    print(f"quickstart model, {ARGUMENTS.backend}, {ARGUMENTS.epochs} epochs")
    images, _, labels, _ = quickstart.load_data()
    if ARGUMENTS.quick:
        count = 12 * quickstart.BATCH_SIZE
        images, labels = images[:count], labels[:count]
    results["batches"] = -(-len(images) // quickstart.BATCH_SIZE)
    model = quickstart.build_model()
    rounds = ARGUMENTS.rounds or (2 if ARGUMENTS.quick else ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        samplers = {
            arm: make_sampler(arm, model, (images, labels), Path(name))
            for arm in FREQUENCIES
        }
        for sample in samplers.values():  # what compiles is not measured
            sample()
        seconds = _timing.interleave(samplers, rounds)
    results["arms"] = _timing.compare(seconds, BASELINE)
    results["bars"] = judge(results["arms"])
    print_results(results["arms"], results["bars"])
    if ARGUMENTS.output:
        name = f"callback_overhead_{ARGUMENTS.backend}.json"
        _report.write_json(results, ARGUMENTS.output / name)
    if ARGUMENTS.check and any(bar["met"] is False for bar in results["bars"]):
        sys.exit("A limit is exceeded.")


if __name__ == "__main__":
    with keras.device("cpu"):
        main()
