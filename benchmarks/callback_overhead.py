"""What do both loggers add to the time of `fit`?

The model and the images of `examples/quickstart.py`, trained without
callbacks, with `ClipRateLogger` and `WeightDeltaLogger` each epoch, and with
both each 10 batches; they share a CSV file. Prints ratios of the times, from
interleaved repetitions of one run; the progress bar is off, which makes the
loggers look as dear as can be. Rerun with

    python benchmarks/callback_overhead.py --backend jax
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {"epoch": 1.02, 10: 1.10}

PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument(
    "--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow"
)
PARSER.add_argument("--rounds", type=int, default=15)
PARSER.add_argument("--epochs", type=int, default=4)
PARSER.add_argument("--log-dir", action="store_true", help="event files, too")
ARGUMENTS = PARSER.parse_args()

# The quickstart reads its own arguments when it is imported.
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
sys.argv[1:] = ["--backend", ARGUMENTS.backend]

import keras  # noqa: E402
import quickstart  # noqa: E402
from _machine import describe_machine  # noqa: E402

import keras_adamax  # noqa: E402


def fit_seconds(model, images, labels, update_freq, folder):
    """Seconds of one `fit`; without callbacks where `update_freq` is None."""
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
    start = time.perf_counter()
    model.fit(
        images,
        labels,
        batch_size=quickstart.BATCH_SIZE,
        epochs=ARGUMENTS.epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return time.perf_counter() - start


def main():
    """Measures, prints, and fails if a limit is exceeded."""
    print(describe_machine())
    print(f"quickstart model, {ARGUMENTS.backend}, {ARGUMENTS.epochs} epochs")
    images, _, labels, _ = quickstart.load_data()
    model = quickstart.build_model()
    kinds = (None, *LIMITS)
    times = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        for number in range(ARGUMENTS.rounds + 1):
            # Each is first as often as the others.
            shift = number % len(kinds)
            for kind in kinds[shift:] + kinds[:shift]:
                seconds = fit_seconds(model, images, labels, kind, Path(name))
                if number:  # the first round compiles
                    times[kind].append(seconds)
    failed = []
    for kind, limit in LIMITS.items():
        pairs = zip(times[kind], times[None], strict=True)
        ratios = [seconds / plain for seconds, plain in pairs]
        # Other load on the machine only ever adds: the minima have least.
        ratio = min(times[kind]) / min(times[None])
        words = "each epoch" if kind == "epoch" else f"each {kind} batches"
        print(
            f"both loggers {words}: {ratio:.3f} (of the fastest rounds), "
            f"median of rounds {statistics.median(ratios):.3f}, limit {limit}"
        )
        if min(ratio, statistics.median(ratios)) > limit:
            failed.append(words)
    plain = min(times[None]) / ARGUMENTS.epochs
    print(f"(an epoch without: {plain:.3f} s)")
    if failed:
        sys.exit(f"Above the limit: {', '.join(failed)}.")


if __name__ == "__main__":
    with keras.device("cpu"):
        main()
