"""Fits with loggers on several virtual CPUs; run by `test_distribution.py`.

    python -m tests.callbacks.distribution_script results.json

Devices can be made only before a backend starts, so this is a process of its
own. It fits the same model on one device and in every way to distribute it,
and writes what the loggers recorded.
"""

import contextlib
import json
import sys
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_adamax import AdamaxClipped, ClipRateLogger, WeightDeltaLogger

BACKEND = keras.backend.backend()
DEVICES = {"tensorflow": 2, "jax": 4}
EPOCHS, BATCHES, BATCH_SIZE = 2, 6, 8


def fit(scope, folder):
    """What the loggers recorded, and the weights before and after."""
    keras.utils.set_random_seed(3)
    with scope:
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(8, activation="tanh", name="first"),
                keras.layers.Dense(4, name="second"),
            ],
            name="model",
        )
        optimizer = AdamaxClipped(0.01, clip_epsilon=0.05)
        model.compile(optimizer, "mse", jit_compile=BACKEND == "jax")
    rng = np.random.default_rng(5)
    size = BATCHES * BATCH_SIZE
    x = rng.normal(size=(size, 4)).astype("float32")
    y = rng.normal(size=(size, 4)).astype("float32")
    path = folder / "records.csv"
    loggers = [
        ClipRateLogger(2, filename=path, log_dir=folder),
        WeightDeltaLogger(2, filename=path, log_dir=folder),
        WeightDeltaLogger(),
    ]
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=(x, y),
        callbacks=loggers,
    )
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    devices = {
        len(v.value.sharding.device_set) if BACKEND == "jax" else 0
        for v in model.trainable_variables
    }
    return {
        "records": [
            {name: column.tolist() for name, column in logger.records.items()}
            for logger in loggers
        ],
        "lines": len(path.read_text("utf-8").splitlines()),
        "history": history.history,
        "moved": [(a - b).tolist() for a, b in zip(after, before, strict=True)],
        "devices": sorted(devices),
        "split": BACKEND == "jax"
        and any(
            not v.value.sharding.is_fully_replicated
            for v in model.trainable_variables
        ),
    }


@contextlib.contextmanager
def distributed(distribution):
    keras.distribution.set_distribution(distribution)
    yield


def model_parallel():
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*first/kernel"] = (None, "model")
    layout[".*first/bias"] = ("model",)
    layout[".*second/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch"
    )


def main(path):
    folder = Path(path).parent
    warnings.simplefilter("error", UserWarning)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * DEVICES[BACKEND],
        )
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert strategy.num_replicas_in_sync == 2
        scopes = {
            "one device": contextlib.nullcontext(),
            "MirroredStrategy": strategy.scope(),
        }
    else:
        scopes = {
            "one device": contextlib.nullcontext(),
            "DataParallel": distributed(keras.distribution.DataParallel()),
            "ModelParallel": distributed(model_parallel()),
        }
    results = {}
    for name, scope in scopes.items():
        (folder / name).mkdir()
        results[name] = fit(scope, folder / name)
        keras.utils.clear_session(free_memory=False)
    Path(path).write_text(json.dumps(results), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
