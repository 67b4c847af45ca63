"""What does `optimizer="adamax_clipped"` cost in a whole `fit`?

Three models are trained with "adamax", with "adamax_clipped", and with that
and both loggers, which record each epoch and share a CSV file: the recurrent
network of `examples/quickstart.py` and a small convolutional one on
scikit-learn's digits, and a small transformer on generated sequences. Each arm
has a model of its own from the same start. A sample is one `fit` of some
epochs; the arms take turns, round by round, in random order. Prints the ratios
of the times to "adamax" (median and quartiles of the rounds), and the bars.
The first `fit`, in which everything compiles, is apart. Rerun with

    KERAS_BACKEND=tensorflow python benchmarks/fit.py --output DIR
    KERAS_BACKEND=jax python benchmarks/fit.py --output DIR
    KERAS_BACKEND=torch python benchmarks/fit.py --output DIR

On TensorFlow both modes are measured, the plain graph that Keras uses on a
CPU, and `jit_compile`. The progress bar is off, and each `fit` starts its
callbacks anew: both make the loggers look as dear as can be.
"""

import gc
import tempfile
from pathlib import Path

from _harness import bars, figure, options, results, timing

MODELS = ("quickstart", "cnn", "transformer")
PARSER = options.make_parser(__doc__, rounds=15)
options.add_mode(PARSER)
PARSER.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
PARSER.add_argument("--epochs", type=int, default=2, help="of a sample")
ARGUMENTS = options.parse(PARSER, rounds=2)

import _models
import keras

BASELINE = "keras_adamax"
WORDS = {
    BASELINE: '"adamax"',
    "ours": '"adamax_clipped"',
    "ours_callbacks": '"adamax_clipped", callbacks',
}


def make_model(task, optimizer, mode):
    """A compiled model, from the same start each time."""
    keras.utils.set_random_seed(0)
    model = task.build()
    model.compile(
        optimizer=optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=(
            mode == "jit" if ARGUMENTS.backend == "tensorflow" else "auto"
        ),
    )
    return model


def make_sampler(arm, task, mode, csv_file):
    """A function that trains on and returns the seconds of an epoch."""
    optimizer = "adamax" if arm == BASELINE else "adamax_clipped"
    model = make_model(task, optimizer, mode)
    if arm != "ours_callbacks":
        return task.sampler(model, ARGUMENTS.epochs)
    return task.sampler(
        model,
        ARGUMENTS.epochs,
        lambda: _models.both_loggers(filename=csv_file),
    )


def measure_case(name, mode, csv_file):
    """Compares the arms on one model."""
    task = _models.TASKS[name](ARGUMENTS.quick)
    if ARGUMENTS.quick:
        task = task.cut(2)
    samplers = {arm: make_sampler(arm, task, mode, csv_file) for arm in WORDS}
    first = {
        arm: sample() * ARGUMENTS.epochs for arm, sample in samplers.items()
    }
    rounds = timing.interleave(samplers, ARGUMENTS.rounds)
    arms = timing.compare(rounds, BASELINE)
    for arm, result in arms.items():
        result["first_fit_seconds"] = first[arm]
    return {
        "model": name,
        "mode": mode,
        "weights": make_model(task, "adamax", mode).count_params(),
        "batches": task.batches,
        "epochs_of_a_sample": ARGUMENTS.epochs,
        "arms": arms,
    }


def print_case(case):
    """Prints the table of a case."""
    print(
        f"\n{case['model']} ({case['mode']}): {case['weights']:,} weights, "
        f"{case['batches']} batches an epoch"
    )
    print(
        f"    {'':28} {'ratio':>6}  {'quartiles':15} {'fastest':>7} "
        f"{'epoch':>8}  first fit"
    )
    for arm, result in case["arms"].items():
        ratio = result["ratio"]
        print(
            f"    {WORDS[arm]:28} {ratio['median']:6.3f}  "
            f"{ratio['lower_quartile']:6.3f} - {ratio['upper_quartile']:6.3f} "
            f"{result['ratio_of_fastest']:7.3f} "
            f"{result['median_seconds']:6.3f} s "
            f"{result['first_fit_seconds']:8.1f} s",
            flush=True,
        )


def draw(found, path):
    """Draws the ratios, one panel for each model and mode."""
    panels = [
        figure.Panel(
            title=f"{case['model']} ({case['mode']}), "
            f"{case['weights']:,} weights",
            rows=WORDS,
            series={
                "whole epochs of `fit`": {
                    arm: result["ratio"] for arm, result in case["arms"].items()
                }
            },
            notes={
                arm: f"{result['median_seconds']:.3g} s"
                for arm, result in case["arms"].items()
            },
            limits=bars.ratio_limits(
                found["bars"], case["mode"], case["model"]
            ),
        )
        for case in found["cases"]
    ]
    title = f"Whole `fit`, {ARGUMENTS.backend} on {found['device']}"
    figure.draw_ratios(panels, title, "time of an epoch", path)


def main():
    """Measures, prints and writes."""
    found = results.begin_on_device("fit", ARGUMENTS, cases=[])
    values = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ARGUMENTS.models:
            for mode in options.modes(ARGUMENTS):
                csv_file = Path(folder) / f"{name}_{mode}.csv"
                case = measure_case(name, mode, csv_file)
                print_case(case)
                found["cases"].append(case)
                for arm, result in case["arms"].items():
                    value = result["ratio"]["median"]
                    values[mode, name, arm, "ratio"] = value
                gc.collect()
    found["bars"] = bars.judge(bars.FIT, values, found)
    bars.print_judged(found["bars"])
    name = f"fit_{ARGUMENTS.backend}"
    results.end(found, ARGUMENTS, name, found["bars"], draw)


if __name__ == "__main__":
    main()
