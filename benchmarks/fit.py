"""What does `optimizer="adamax_clipped"` cost in a whole `fit`?

Three models are trained with "adamax", with "adamax_clipped", and with that
and both loggers, which record each epoch and share a CSV file: the recurrent
network of `examples/quickstart.py` and a small convolutional one on
scikit-learn's digits, and a small transformer on generated sequences. Each has
a model of its own from the same start; a sample is one `fit` of some epochs,
taken in turn, round by round, in random order. Prints the ratios of the times
to "adamax" (median and quartiles of the rounds), and the bars (`_bars.py`).
The first `fit`, in which everything compiles, is apart. Rerun with

    KERAS_BACKEND=tensorflow python benchmarks/fit.py --output DIR
    KERAS_BACKEND=jax python benchmarks/fit.py --output DIR
    KERAS_BACKEND=torch python benchmarks/fit.py --output DIR

On TensorFlow both modes are measured, the plain graph that Keras uses on a
CPU, and `jit_compile`. The progress bar is off, and each `fit` starts its
callbacks anew: both make the loggers look as dear as can be.
"""

import argparse
import gc
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

import _bars
import _report

MODELS = ("quickstart", "cnn", "transformer")
ROUNDS = 15
EPOCHS = 2
BASELINE = "keras_adamax"
WORDS = {
    BASELINE: '"adamax"',
    "ours": '"adamax_clipped"',
    "ours_callbacks": '"adamax_clipped", callbacks',
}
TOKENS, LENGTH, WIDTH, HEADS = 64, 32, 64, 4


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = _report.make_parser(__doc__, ROUNDS)
    parser.add_argument(
        "--mode",
        choices=("graph", "jit"),
        help="of TensorFlow (default: both)",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="of a sample"
    )
    return parser.parse_args()


# Keras reads its backend when it is imported, so the options come first.
ARGUMENTS = parse_arguments()
os.environ["KERAS_BACKEND"] = ARGUMENTS.backend
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import _steps  # noqa: E402
import _timing  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from _machine import describe_machine  # noqa: E402

import keras_adamax  # noqa: E402


def import_quickstart():
    """The example, which reads its own arguments when it is imported."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    arguments = sys.argv[1:]
    threads = os.environ.get("OMP_NUM_THREADS")
    sys.argv[1:] = ["--backend", ARGUMENTS.backend]
    try:
        return importlib.import_module("quickstart")
    finally:
        sys.argv[1:] = arguments
        if threads is None:
            # It is for the example alone.
            os.environ.pop("OMP_NUM_THREADS", None)


QUICKSTART = import_quickstart()


def make_cnn():
    """A small convolutional network."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def make_transformer():
    """Two layers that predict the next token."""
    layers = keras.layers
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(TOKENS, WIDTH)(tokens)
    # Computed from the input, or it would be no part of the model.
    positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    x = x + layers.Embedding(LENGTH, WIDTH)(positions)
    for _ in range(1 if ARGUMENTS.quick else 2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(
            y, y, use_causal_mask=True
        )
        y = layers.LayerNormalization()(x)
        y = layers.Dense(4 * WIDTH, activation="gelu")(y)
        x = x + layers.Dense(WIDTH)(y)
    x = layers.LayerNormalization()(x)
    x = layers.Dense(TOKENS, activation="softmax")(x)
    return keras.Model(tokens, x)


def make_sequences(count):
    """Tokens that count on in steps of 1 to 7, and the token after each."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, TOKENS, (count, 1))
    step = rng.integers(1, 8, (count, 1))
    tokens = ((start + step * np.arange(LENGTH + 1)) % TOKENS).astype("int32")
    return tokens[:, :-1], tokens[:, 1:]


def make_data(name):
    """Inputs, targets and the batch size."""
    if name == "transformer":
        x, y = make_sequences(1024)
        batch_size = 32
    else:
        x, _, y, _ = QUICKSTART.load_data()
        batch_size = QUICKSTART.BATCH_SIZE
        if name == "cnn":
            x, batch_size = x[..., None], 32
    if ARGUMENTS.quick:
        x, y = x[: 2 * batch_size], y[: 2 * batch_size]
    return x, y, batch_size


def make_model(name, optimizer, mode):
    """A compiled model, from the same start each time."""
    keras.utils.set_random_seed(0)
    make = {
        "quickstart": QUICKSTART.build_model,
        "cnn": make_cnn,
        "transformer": make_transformer,
    }
    model = make[name]()
    model.compile(
        optimizer=optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=(
            mode == "jit" if ARGUMENTS.backend == "tensorflow" else "auto"
        ),
    )
    return model


def make_sampler(name, arm, mode, data, folder):
    """A function that trains on and returns the seconds of an epoch."""
    optimizer = "adamax" if arm == BASELINE else "adamax_clipped"
    model = make_model(name, optimizer, mode)
    x, y, batch_size = data
    csv_file = folder / f"{name}_{mode}_{arm}.csv"

    def sample():
        callbacks = []
        if arm == "ours_callbacks":
            callbacks = [
                keras_adamax.ClipRateLogger(filename=csv_file),
                keras_adamax.WeightDeltaLogger(filename=csv_file),
            ]
        began = time.perf_counter()
        model.fit(
            x,
            y,
            batch_size=batch_size,
            epochs=ARGUMENTS.epochs,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
        return (time.perf_counter() - began) / ARGUMENTS.epochs

    return sample


def measure_case(name, mode, folder):
    """Compares the arms on one model."""
    data = make_data(name)
    samplers = {
        arm: make_sampler(name, arm, mode, data, folder) for arm in WORDS
    }
    first = {
        arm: sample() * ARGUMENTS.epochs for arm, sample in samplers.items()
    }
    rounds = ARGUMENTS.rounds or (2 if ARGUMENTS.quick else ROUNDS)
    results = _timing.compare(_timing.interleave(samplers, rounds), BASELINE)
    for arm, result in results.items():
        result["first_fit_seconds"] = first[arm]
    model = make_model(name, "adamax", mode)
    return {
        "model": name,
        "mode": mode,
        "weights": model.count_params(),
        "batches": -(-len(data[0]) // data[2]),
        "epochs_of_a_sample": ARGUMENTS.epochs,
        "arms": results,
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


def draw(cases, title, path):
    """Draws the ratios, a panel for each model and mode."""
    arms = list(WORDS)
    panels = []
    for case in cases:
        key = (ARGUMENTS.backend, case["mode"], case["model"])
        panels.append(
            {
                "title": f"{case['model']} ({case['mode']}), "
                f"{case['weights']:,} weights",
                "rows": [WORDS[arm] for arm in arms],
                "series": {
                    "whole epochs of `fit`": {
                        row: case["arms"][arm]["ratio"]
                        for row, arm in enumerate(arms)
                    }
                },
                "notes": {
                    row: f"{case['arms'][arm]['median_seconds']:.3g} s"
                    for row, arm in enumerate(arms)
                },
                "limits": {
                    arms.index(bar.arm): bar.limit
                    for bar in _bars.FIT
                    if (bar.backend, bar.mode, bar.workload) == key
                },
            }
        )
    _report.draw_ratios(panels, title, "time of an epoch", path)


def main():
    """Measures, prints and writes."""
    accelerator = _steps.accelerator()
    results = {
        "benchmark": "fit",
        "command": sys.argv[1:],
        "backend": ARGUMENTS.backend,
        "machine": describe_machine(),
        "device": accelerator or "CPU",
        "quick": ARGUMENTS.quick,
        "cases": [],
    }
    print(results["machine"])
    print(f"{ARGUMENTS.backend} on {results['device']}")
    modes = _steps.MODES[ARGUMENTS.backend]
    if ARGUMENTS.mode and ARGUMENTS.backend == "tensorflow":
        modes = (ARGUMENTS.mode,)
    values = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ARGUMENTS.models:
            for mode in modes:
                case = measure_case(name, mode, Path(folder))
                print_case(case)
                results["cases"].append(case)
                for arm, result in case["arms"].items():
                    value = result["ratio"]["median"]
                    values[mode, name, arm, "ratio"] = value
                gc.collect()
    results["bars"] = _bars.judge(
        () if ARGUMENTS.quick else _bars.FIT,
        values,
        ARGUMENTS.backend,
        accelerator is not None,
    )
    _bars.print_judged(results["bars"])
    if ARGUMENTS.output:
        name = f"fit_{ARGUMENTS.backend}"
        _report.write_json(results, ARGUMENTS.output / f"{name}.json")
        title = f"Whole `fit`, {ARGUMENTS.backend} on {results['device']}"
        draw(results["cases"], title, ARGUMENTS.output / f"{name}.png")
    if ARGUMENTS.check and _bars.any_missed(results["bars"]):
        sys.exit("A bar is missed.")


if __name__ == "__main__":
    main()
