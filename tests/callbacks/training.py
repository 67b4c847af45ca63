"""Tiny models and data for the loggers to observe."""

import json
import os
import subprocess
import sys

import keras
import numpy as np

from keras_adamax import AdamaxClipped

BACKEND = keras.backend.backend()
# Compiled as a user's `fit` is, where that takes no time.
COMPILE = {"jit_compile": BACKEND == "jax"}


def make_model(kind="dense", optimizer="adamax_clipped", **compile_arguments):
    """A compiled model of 5 or fewer variables; always the same weights."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    body = {
        "dense": [
            keras.Input((4,)),
            layers.Dense(6, activation="tanh", name="first"),
            layers.Dense(1, name="second"),
        ],
        "recurrent": [
            keras.Input((4, 1)),
            layers.SimpleRNN(5, name="rnn"),
            layers.Dense(1, name="second"),
        ],
        "embedding": [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(7, 2, name="table"),
            layers.Flatten(),
            layers.Dense(1, name="second"),
        ],
    }[kind]
    model = keras.Sequential(body, name="model")
    arguments = COMPILE | {"loss": "mse"} | compile_arguments
    model.compile(optimizer, **arguments)
    return model


def nested(kind, make_optimizer, initial_scale, **second):
    """An optimizer with ours inside.

    Args:
        kind: "loss scale"; "multi", two of ours for two layers; anything else:
            likewise, and the second has the defaults.
        make_optimizer: Makes the first, or the only one.
        initial_scale: Of the LossScaleOptimizer.
        second: Arguments of the second.
    """
    if kind == "loss scale":
        return keras.optimizers.LossScaleOptimizer(
            make_optimizer(), initial_scale=initial_scale
        )
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            make_optimizer(name="one"),
            {
                ".*second.*": AdamaxClipped(
                    0.01, name="two", **(second if kind == "multi" else {})
                )
            },
        )
    )


def make_data(kind="dense", count=24):
    """Inputs and targets; the gradients come in very different sizes."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-2, 1, (count, 1)).astype("float32")
    if kind == "embedding":
        # Not every row in every batch.
        x = rng.integers(0, 7, (count, 3)).astype("int32")
        return x, scale
    x = rng.normal(size=(count, 4)).astype("float32")
    if kind == "recurrent":
        x = x[..., None]
    return x, scale * rng.normal(size=(count, 1)).astype("float32")


def fit(model, callbacks, kind="dense", **arguments):
    """Six batches an epoch, in order; returns the History."""
    x, y = make_data(kind)
    arguments = {"batch_size": 4, "shuffle": False, "verbose": 0} | arguments
    return model.fit(x, y, callbacks=callbacks, **arguments)


def weights_of(model):
    """Path to value of each trainable variable, as float64."""
    return {
        v.path: keras.ops.convert_to_numpy(keras.ops.cast(v, "float32")).astype(
            "float64"
        )
        for v in model.trainable_variables
    }


def state_of(model):
    """All values: weights, seeds and the optimizer's state."""
    return [
        np.array(keras.ops.convert_to_numpy(v))
        for v in [*model.variables, *model.optimizer.variables]
    ]


class WeightWatcher(keras.callbacks.Callback):
    """Keeps the weights after every batch, and when `fit` begins.

    It stands behind the loggers and looks when they do.
    """

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.weights.append(weights_of(self.model))

    def on_train_batch_begin(self, batch, logs=None):
        if batch > 0:
            self.weights.append(weights_of(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(weights_of(self.model))


class Stop(keras.callbacks.Callback):
    """Ends a `fit` as Ctrl-C does, before a batch of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def run_script(name, *arguments):
    """What a script of this folder prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.callbacks.{name}", *map(str, arguments)],
        env=os.environ
        | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(records, **conditions):
    """The rows that fulfil the conditions, as tuples of Python values."""
    chosen = np.ones(len(records["value"]), bool)
    for name, value in conditions.items():
        chosen &= records[name] == value
    columns = [column[chosen].tolist() for column in records.values()]
    return list(zip(*columns, strict=True))


def values(records, **conditions):
    """The values of these rows."""
    return [row[-1] for row in rows(records, **conditions)]


def user_warnings(caught):
    """The texts of those warnings that the suite does not let pass."""
    return [
        str(warning.message)
        for warning in caught
        if issubclass(warning.category, UserWarning)
    ]


def assert_same_records(one, other):
    """The same rows; of the values, torch may round the last bits anew."""
    for name, column in one.items():
        if name != "value":
            assert column.tolist() == other[name].tolist()
    np.testing.assert_allclose(
        one["value"], other["value"], rtol=1e-4 if BACKEND == "torch" else 0
    )
