"""What do both loggers add to the time of `fit`?

The model and the images of `examples/quickstart.py`, trained without
callbacks, with `ClipRateLogger` and `WeightDeltaLogger` each epoch, and with
both each 10 batches; they share a CSV file. A sample is one `fit`; the three
take turns, round by round. What is judged is the median of the rounds' ratios
to the time without callbacks. Rerun with

    KERAS_BACKEND=tensorflow python benchmarks/callback_overhead.py
    KERAS_BACKEND=jax python benchmarks/callback_overhead.py --output DIR
    KERAS_BACKEND=torch python benchmarks/callback_overhead.py --check

The progress bar is off, which makes the loggers look as dear as can be.
"""

import tempfile
from pathlib import Path

from _harness import bars, options, results, timing

PARSER = options.make_parser(__doc__, rounds=15)
PARSER.add_argument("--epochs", type=int, default=4, help="of a sample")
PARSER.add_argument("--log-dir", action="store_true", help="event files, too")
ARGUMENTS = options.parse(PARSER, rounds=2)

import _models
import keras

BASELINE = "without"
# How often the loggers of an arm record.
FREQUENCIES = {BASELINE: None, "each epoch": "epoch", "each 10 batches": 10}


def make_sampler(arm, model, task, folder):
    """A function that trains on and returns the seconds of an epoch."""
    update_freq = FREQUENCIES[arm]
    if update_freq is None:
        return task.sampler(model, ARGUMENTS.epochs)
    return task.sampler(
        model,
        ARGUMENTS.epochs,
        lambda: _models.both_loggers(
            update_freq=update_freq,
            filename=folder / f"{update_freq}.csv",
            log_dir=folder if ARGUMENTS.log_dir else None,
        ),
    )


def measure(task):
    """Compares the arms, on one model that all of them train on."""
    model = task.build()
    with tempfile.TemporaryDirectory() as folder:
        samplers = {
            arm: make_sampler(arm, model, task, Path(folder))
            for arm in FREQUENCIES
        }
        for sample in samplers.values():  # what compiles is not measured
            sample()
        rounds = timing.interleave(samplers, ARGUMENTS.rounds)
    return timing.compare(rounds, BASELINE)


def print_arms(arms, judged):
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
    found = results.begin(
        "callback_overhead",
        ARGUMENTS,
        epochs_of_a_sample=ARGUMENTS.epochs,
        event_files=ARGUMENTS.log_dir,
    )
    print(f"quickstart model, {ARGUMENTS.backend}, {ARGUMENTS.epochs} epochs")
    task = _models.digits()
    if ARGUMENTS.quick:
        task = task.cut(12)
    arms = measure(task)
    judged = [
        bars.judge_one(
            arms[arm]["ratio"]["median"], limit, quick=ARGUMENTS.quick, arm=arm
        )
        for arm, limit in bars.CALLBACKS.items()
    ]
    print_arms(arms, judged)
    found |= {"batches": task.batches, "arms": arms, "bars": judged}
    name = f"callback_overhead_{ARGUMENTS.backend}"
    results.end(found, ARGUMENTS, name, judged)


if __name__ == "__main__":
    with keras.device("cpu"):
        main()
