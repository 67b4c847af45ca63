"""The models that the benchmarks of `fit` train, each with its data."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_adamax

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import quickstart

TOKENS, LENGTH, WIDTH, HEADS = 64, 32, 64, 4


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Attributes:
        build: Makes the model; not all of them are compiled.
        x: Inputs.
        y: Targets.
        batch_size: Of `fit`.
    """

    build: Callable[[], keras.Model]
    x: np.ndarray
    y: np.ndarray
    batch_size: int

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.x) // self.batch_size)

    def cut(self, batches: int) -> "Task":
        """The same with the first batches only."""
        count = batches * self.batch_size
        return replace(self, x=self.x[:count], y=self.y[:count])

    def sampler(
        self,
        model: keras.Model,
        epochs: int,
        make_callbacks: Callable[[], Sequence[Any]] = tuple,
    ) -> Callable[[], float]:
        """A function that trains on, and returns the seconds of an epoch."""

        def sample() -> float:
            callbacks = list(make_callbacks())
            began = time.perf_counter()
            model.fit(
                self.x,
                self.y,
                batch_size=self.batch_size,
                epochs=epochs,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
            return (time.perf_counter() - began) / epochs

        return sample


def both_loggers(**arguments: Any) -> list[keras.callbacks.Callback]:
    """Our loggers, with the same arguments."""
    return [
        keras_adamax.ClipRateLogger(**arguments),
        keras_adamax.WeightDeltaLogger(**arguments),
    ]


def digits(quick: bool = False) -> Task:
    """The recurrent network of `examples/quickstart.py` on digits."""
    x, _, y, _ = quickstart.load_data()
    return Task(quickstart.build_model, x, y, quickstart.BATCH_SIZE)


def cnn(quick: bool = False) -> Task:
    """A small convolutional network on digits."""
    layers = keras.layers

    def build() -> keras.Model:
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

    x, _, y, _ = quickstart.load_data()
    return Task(build, x[..., None], y, 32)


def transformer(quick: bool = False) -> Task:
    """Two layers that predict the next token; one if it shall be quick."""
    layers = keras.layers

    def build() -> keras.Model:
        tokens = keras.Input((LENGTH,), dtype="int32")
        x = layers.Embedding(TOKENS, WIDTH)(tokens)
        # Computed from the input, or it would be no part of the model.
        positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
        x = x + layers.Embedding(LENGTH, WIDTH)(positions)
        for _ in range(1 if quick else 2):
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

    # Each sequence counts on in steps of 1 to 7.
    rng = np.random.default_rng(0)
    start = rng.integers(0, TOKENS, (1024, 1))
    step = rng.integers(1, 8, (1024, 1))
    tokens = ((start + step * np.arange(LENGTH + 1)) % TOKENS).astype("int32")
    return Task(build, tokens[:, :-1], tokens[:, 1:], 32)


TASKS = {"quickstart": digits, "cnn": cnn, "transformer": transformer}
