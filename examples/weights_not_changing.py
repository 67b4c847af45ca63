"""Why do my weights not change? Three optimizers, and what they really do.

Someone who studied an optimizer made its step *return* ones, expected all
weights to become 1, and saw them stay where they were: Keras does not look at
what `update_step` returns, it has to *assign*. Nothing said so. Here

- `ReturnsOnes` repeats the mistake: no weight ever changes, and
  `WeightDeltaLogger` says which, and why;
- `AssignsOnes` does what was meant: every weight becomes 1 in the first step;
- `AdamaxClipped` is an optimizer that learns.

The weights of one layer are printed every 50 steps.

    python examples/weights_not_changing.py --backend jax --steps 200

The data is scikit-learn's handwritten digits, which come with it, or your own
`mnist.npz` (with the arrays `x_train` and `y_train`) by `--data`.
"""

import argparse
import os
from pathlib import Path

EVERY = 50
BATCH_SIZE = 32


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Show an optimizer that changes nothing, one that sets "
        "all weights to 1, and one that learns."
    )
    parser.add_argument(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        default="tensorflow",
        help="what Keras computes with (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=150,
        help="batches to train on (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="an mnist.npz to use in place of scikit-learn's digits",
    )
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps must be at least 1")
    if arguments.data is not None and not arguments.data.is_file():
        parser.error(f"--data: there is no file {arguments.data}")
    return arguments


# Keras reads its backend when it is imported, so the options come first.
ARGUMENTS = parse_arguments()
os.environ["KERAS_BACKEND"] = ARGUMENTS.backend

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_adamax  # noqa: E402


class ReturnsOnes(keras.optimizers.Optimizer):
    """The mistake: the new weights are returned, and nobody takes them."""

    def update_step(self, gradient, variable, learning_rate):
        """Returns ones; Keras ignores it."""
        return keras.ops.ones(variable.shape, variable.dtype)


class AssignsOnes(keras.optimizers.Optimizer):
    """What was meant: the new weights are assigned."""

    def update_step(self, gradient, variable, learning_rate):
        """Makes all weights 1."""
        ones = keras.ops.ones(variable.shape, variable.dtype)
        self.assign(variable, ones)


class PrintWeights(keras.callbacks.Callback):
    """Prints some weights of a layer every `every` steps."""

    def __init__(self, layer_name: str, every: int):
        super().__init__()
        self.layer_name = layer_name
        self.every = every

    def on_train_begin(self, logs=None):
        """Prints the weights that the training starts from."""
        self.last = self._kernel()
        print(f"    step    0: {self._describe(self.last)}")

    def on_train_batch_end(self, batch, logs=None):
        """Prints the weights, and whether they are others than before."""
        step = batch + 1
        if step % self.every:
            return
        kernel = self._kernel()
        changed = "changed" if (kernel != self.last).any() else "NOT changed"
        print(f"    step {step:4d}: {self._describe(kernel)}  {changed}")
        self.last = kernel

    def _kernel(self) -> np.ndarray:
        layer = self.model.get_layer(self.layer_name)
        return keras.ops.convert_to_numpy(layer.kernel).copy()

    @staticmethod
    def _describe(kernel: np.ndarray) -> str:
        return " ".join(f"{weight: .4f}" for weight in kernel.ravel()[:5])


def load_data(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, flat and in [0, 1], and their labels."""
    if path is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.data.astype("float32") / 16.0, digits.target
    with np.load(path) as arrays:
        images, labels = arrays["x_train"], arrays["y_train"]
    return images.reshape(len(images), -1).astype("float32") / 255.0, labels


def build_model(num_features: int) -> keras.Model:
    """Returns a small classifier, with the same weights each time."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((num_features,), name="pixels"),
            keras.layers.Dense(32, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )


def repeat_batches(
    images: np.ndarray, labels: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `steps` batches need, from the beginning again if short."""
    picked = np.arange(steps * BATCH_SIZE) % len(images)
    return images[picked], labels[picked]


def main() -> None:
    """Trains with each of the three optimizers."""
    images, labels = load_data(ARGUMENTS.data)
    train_images, train_labels = repeat_batches(images, labels, ARGUMENTS.steps)
    optimizers = (
        ("returns ones and assigns nothing", ReturnsOnes(learning_rate=0.001)),
        ("assigns ones", AssignsOnes(learning_rate=0.001)),
        ("learns", keras_adamax.AdamaxClipped()),
    )
    for words, optimizer in optimizers:
        print(f"{type(optimizer).__name__}, which {words}:")
        model = build_model(images.shape[1])
        model.compile(
            optimizer,
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        model.fit(
            train_images,
            train_labels,
            batch_size=BATCH_SIZE,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras_adamax.WeightDeltaLogger(),
                PrintWeights("digit", EVERY),
            ],
        )
        accuracy = model.evaluate(images, labels, verbose=0)[1]
        print(f"    accuracy on the images: {accuracy:.3f}\n")


if __name__ == "__main__":
    main()
