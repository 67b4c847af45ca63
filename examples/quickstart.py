"""Train, save, reload and continue with `optimizer="adamax_clipped"`.

A small recurrent network reads scikit-learn's 1,797 handwritten digits, one
row of 8 pixels after another, while two callbacks record how often gradients
are clipped and how far the weights move; a figure shows it. The trained model
is saved; a fresh process loads it and trains it on, this process trains its
own copy on as well, and both must end at the same weights and the same
optimizer state.

    python examples/quickstart.py --backend jax --epochs 20 --output my_output

Nothing is downloaded: the images are part of scikit-learn.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Train a small recurrent network with AdamaxClipped, "
        "save it, and continue in another process."
    )
    parser.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        default="tensorflow",
        help="what Keras computes with (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=20,
        help="passes over the training images (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("quickstart_output"),
        help="folder for models, records and figure (default: %(default)s)",
    )
    # Used by this script itself, when it starts the fresh process.
    parser.add_argument(
        "--continue-from", type=Path, help=argparse.SUPPRESS, metavar="MODEL"
    )
    return parser.parse_args()


if __name__ == "__main__":
    # Keras reads its backend when it is imported, so the options come first.
    ARGUMENTS = parse_arguments()
    os.environ["KERAS_BACKEND"] = ARGUMENTS.backend
    # For images this small PyTorch's threads only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402

import keras_adamax  # noqa: E402
from keras_adamax import plots  # noqa: E402

BATCH_SIZE = 16
CONTINUE_EPOCHS = 3
RECORD_EVERY = 20  # batches

# TensorFlow and JAX repeat a computation on the CPU to the last bit. PyTorch
# does not promise it: its sums may depend on the number of threads.
TOLERANCE = 1e-5 if keras.backend.backend() == "torch" else 0.0


def load_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns train images, test images, train labels and test labels.

    The split shuffles the images, always in the same way. `fit` shuffles no
    more, so that every process sees the same batches in the same order.
    """
    digits = load_digits()
    images = digits.images.astype("float32") / 8.0 - 1.0  # (1797, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images,
        digits.target,
        test_size=0.2,
        random_state=0,
        stratify=digits.target,
    )
    return train_x, test_x, train_y, test_y


def build_model() -> keras.Model:
    """Returns a compiled model: a recurrent layer over the 8 image rows."""
    model = keras.Sequential(
        [
            keras.Input((8, 8), name="rows"),
            keras.layers.GRU(128, return_sequences=True, name="gru"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile(
        optimizer="adamax_clipped",
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def train(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains `model` for `epochs`, with the batches in a fixed order."""
    model.fit(
        images,
        labels,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        shuffle=False,
        callbacks=list(callbacks),
    )


def make_loggers(csv_file: Path) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that record the training in `csv_file`."""
    csv_file.unlink(missing_ok=True)  # of an earlier run of this script
    return [
        keras_adamax.ClipRateLogger(RECORD_EVERY, filename=csv_file),
        keras_adamax.WeightDeltaLogger(RECORD_EVERY, filename=csv_file),
    ]


def print_clip_rates(optimizer: keras_adamax.AdamaxClipped) -> None:
    """Prints which part of all gradient elements was clipped, and where."""
    print(f"Clipped gradient elements: {optimizer.clip_rate():.2%}, most in")
    rates = sorted(optimizer.clip_rates().items(), key=lambda item: -item[1])
    for path, rate in rates[:3]:
        print(f"    {path}: {rate:.2%}")


def start_fresh_process(saved: Path) -> None:
    """Runs this script again, to train on from the model in `saved`."""
    print(f"\nA fresh process trains {saved} on:", flush=True)
    command = [sys.executable, __file__, "--backend", ARGUMENTS.backend]
    command += ["--output", str(ARGUMENTS.output)]
    command += ["--continue-from", str(saved)]
    subprocess.run(command, check=True)


def largest_difference(first: keras.Model, second: keras.Model) -> float:
    """Returns the largest difference of two models and their optimizers."""
    ours = first.weights + first.optimizer.variables
    theirs = second.weights + second.optimizer.variables
    difference = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        gap = np.abs(
            keras.ops.convert_to_numpy(mine).astype("float64")
            - keras.ops.convert_to_numpy(other).astype("float64")
        )
        difference = max(difference, float(gap.max(initial=0.0)))
    return difference


def main() -> int:
    """Runs the script and returns its exit code."""
    train_x, test_x, train_y, test_y = load_data()
    saved = ARGUMENTS.output / "digits.keras"
    continued = ARGUMENTS.output / "digits_continued.keras"

    if ARGUMENTS.continue_from:  # this is the fresh process
        model = keras.saving.load_model(ARGUMENTS.continue_from)
        train(model, train_x, train_y, CONTINUE_EPOCHS)
        model.save(continued)
        return 0

    ARGUMENTS.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    model = build_model()
    records = ARGUMENTS.output / "training.csv"
    loggers = make_loggers(records)
    train(model, train_x, train_y, ARGUMENTS.epochs, loggers)
    _, accuracy = model.evaluate(test_x, test_y, verbose=0)
    print(f"\nTest accuracy: {accuracy:.4f}")
    print_clip_rates(model.optimizer)
    model.save(saved)
    print(f"Saved the model and its optimizer to {saved}")
    figure = ARGUMENTS.output / "training.png"
    plots.save_report(records, figure)
    print(f"Saved the records to {records} and a figure of them to {figure}")

    start_fresh_process(saved)
    print("\nThis process trains its own copy on:")
    train(model, train_x, train_y, CONTINUE_EPOCHS)
    difference = largest_difference(model, keras.saving.load_model(continued))
    print(f"\nThe continued model is in {continued}")
    if not difference <= TOLERANCE:
        print(f"The weights DIFFER between the processes: by {difference:.2g}")
        return 1
    how = "to the last bit" if difference == 0 else f"within {difference:.2g}"
    print(f"The weights agree between the two processes, {how}.")
    return 0


if __name__ == "__main__":
    # On the CPU, where results are reproducible, and faster for 8 x 8 images.
    with keras.device("cpu"):
        sys.exit(main())
