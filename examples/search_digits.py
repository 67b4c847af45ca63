"""Search hyperparameters of `AdamaxClipped`, and use what was found.

A small network reads scikit-learn's 1,797 handwritten digits. The search
tries learning rates, clipping and decay rates, and the width of the network
with them; each trial is a row of an SQLite database, so that the same command
goes on after any crash. A fresh process then loads the best model and
evaluates it: it must reach the score that was recorded.

    python examples/search_digits.py --backend jax --workers 2
    python examples/search_digits.py --data my_digits.npz

Nothing is downloaded: the images are part of scikit-learn. Data of your own
come from a `.npz` file with the arrays x_train, y_train, x_val and y_val; a
label is a whole number from 0, a sample anything that can be flattened.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Search hyperparameters of AdamaxClipped on digits."
    )
    parser.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        default="tensorflow",
        help="what Keras computes with (default: %(default)s)",
    )
    parser.add_argument("--data", type=Path, help=".npz file of your own")
    parser.add_argument(
        "--trials", type=int, default=8, help="default: %(default)s"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="default: %(default)s"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes on this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("search_output"),
        help="folder of the search (default: %(default)s)",
    )
    # Used by this script itself, when it starts the fresh process.
    parser.add_argument(
        "--evaluate", type=Path, help=argparse.SUPPRESS, metavar="MODEL"
    )
    return parser.parse_args()


# Keras reads its backend when it is imported, so the options come first. The
# processes of `--workers` import this script, and read the same options.
ARGUMENTS = parse_arguments()
os.environ["KERAS_BACKEND"] = ARGUMENTS.backend
# For images this small PyTorch's threads only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras  # noqa: E402
import numpy as np  # noqa: E402

# Registers the optimizer with Keras; needed to load the best model, too.
import keras_adamax  # noqa: E402, F401
from keras_adamax_tuning import AdamaxClippedSpace, run_search  # noqa: E402

# What is not named here is searched in its standard range.
SPACE = AdamaxClippedSpace(
    learning_rate=(1e-3, 3e-2),
    epsilon=1e-8,
    bias_correction=False,
    weight_decay=None,
    spike_threshold=None,
)


def load_data() -> dict[str, np.ndarray]:
    """Returns training and validation data by their names."""
    if ARGUMENTS.data is not None:
        with np.load(ARGUMENTS.data) as file:
            return {name: file[name] for name in file.files}
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images.astype("float32") / 8.0 - 1.0
    parts = train_test_split(
        images, digits.target, test_size=0.2, random_state=0
    )
    return dict(
        zip(("x_train", "x_val", "y_train", "y_val"), parts, strict=True)
    )


def build_model(hp) -> keras.Model:
    """Returns a compiled model; the search sets its optimizer."""
    data = load_data()
    model = keras.Sequential(
        [
            keras.Input(data["x_train"].shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(
                hp.Int("units", 16, 64, sampling="log"), activation="relu"
            ),
            keras.layers.Dense(
                int(data["y_train"].max()) + 1, activation="softmax"
            ),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def evaluate(saved: Path) -> None:
    """Prints loss and accuracy of a saved model on the validation data."""
    model = keras.saving.load_model(saved)
    data = load_data()
    loss, accuracy = model.evaluate(data["x_val"], data["y_val"], verbose=0)
    print(f"loss {loss:.6f}, accuracy {accuracy:.4f}")


def main() -> int:
    """Runs the script and returns its exit code."""
    if ARGUMENTS.evaluate:  # this is the fresh process
        evaluate(ARGUMENTS.evaluate)
        return 0
    result = run_search(
        build_model,
        load_data,
        space=SPACE,
        max_trials=ARGUMENTS.trials,
        epochs=ARGUMENTS.epochs,
        workers=ARGUMENTS.workers,
        seed=0,
        output=ARGUMENTS.output,
    )
    best = result.best_trial
    if best is None:
        return 3
    print(f"\nBest: trial {best.number}, val_loss {best.score:.6f}")
    print(f"Its optimizer: {result.load_best_optimizer().get_config()}")

    print("A fresh process loads the best model: ", end="", flush=True)
    command = [sys.executable, __file__, "--backend", ARGUMENTS.backend]
    if ARGUMENTS.data is not None:
        command += ["--data", str(ARGUMENTS.data)]
    command += ["--evaluate", str(ARGUMENTS.output / "best.keras")]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout, end="")
    loss = float(done.stdout.split()[1].rstrip(","))
    if abs(loss - best.score) > 1e-4 * max(1.0, abs(best.score)):
        print("This is NOT the recorded score.")
        return 1
    print("This is the recorded score.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
