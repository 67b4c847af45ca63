"""Trains in processes that are killed, and resumed; see test_atomic_backup.py.

    python -m tests.callbacks.kill_script FOLDER SEED KILLS

Keras is imported once, and forked. The children train the same: one in
`whole`, undisturbed, and in `killed` one after the other until the last comes
to the end. Prints how often it killed, and where the lives ended.
"""

import json
import os
import random
import select
import signal
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_adamax import AtomicBackup, ClipRateLogger, WeightDeltaLogger

EPOCHS = 12
BATCHES = 6


class Tell(keras.callbacks.Callback):
    """Says which epoch it is in, once the first step has been compiled."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if batch > 0:
            os.write(self.pipe, bytes([self.epoch]))
        # Long beside what a batch takes: a kill comes where it shall.
        time.sleep(0.02)


def train(folder, pipe):
    """One life."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh", name="first"),
            # Its random state must go on as well.
            keras.layers.Dropout(0.3, seed=5),
            keras.layers.Dense(1, name="second"),
        ],
        name="model",
    )
    model.compile(
        "adamax_clipped",
        "mse",
        metrics=["mae"],
        jit_compile=keras.backend.backend() == "jax",
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4 * BATCHES, 4)).astype("float32")
    y = rng.normal(size=(4 * BATCHES, 1)).astype("float32")
    folder.mkdir(exist_ok=True)
    loggers = [
        ClipRateLogger(filename=folder / "records.csv"),
        # Its windows do not end where epochs do.
        WeightDeltaLogger(4, filename=folder / "records.csv"),
        WeightDeltaLogger(5),  # without a file of its own
    ]
    backup = AtomicBackup(folder / "backup", delete_checkpoint=False)
    history = model.fit(
        x,
        y,
        batch_size=4,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=(x[:8], y[:8]),
        callbacks=[*loggers, backup, Tell(pipe)],
    )
    variables = [*model.weights, *model.optimizer.variables]
    np.savez(
        folder / "variables.npz",
        *[keras.ops.convert_to_numpy(v) for v in variables],
    )
    result = {
        "history": history.history,
        "epoch": history.epoch,
        "records": [
            {name: column.tolist() for name, column in logger.records.items()}
            for logger in loggers
        ],
    }
    (folder / "result.json").write_text(json.dumps(result), "utf-8")


def start(folder):
    """A child that trains, and where it says which epoch it is in."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            train(folder, writer)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    return child, reader


def main():
    folder, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    warnings.simplefilter("error", UserWarning)

    begun = time.monotonic()
    child, reader = start(folder / "whole")
    os.read(reader, 1)
    started = time.monotonic() - begun
    _, status = os.waitpid(child, 0)
    assert status == 0, "the undisturbed run failed"
    os.close(reader)

    ends = []
    while True:
        child, reader = start(folder / "killed")
        seen = []
        if len(ends) < kills:
            # One of them while it starts: it may be restoring.
            if len(ends) == 3:
                delay = started * rng.uniform(0.3, 1.0)
                select.select([reader], [], [], delay)
            else:
                # In the epoch that it began with, or in one that follows.
                # The backup comes after an epoch's fifth word.
                words = 5 * rng.choice([0, 1, 1, 2]) + rng.choice([1, 3, 5, 5])
                for _ in range(words):
                    seen += os.read(reader, 1)
                time.sleep(rng.uniform(0.0, 0.06))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seen += os.read(reader, 1000)
        os.close(reader)
        if not os.WIFSIGNALED(status):
            assert status == 0, "a resumed run failed"
            break
        ends.append(max(seen, default=-1))
    print(json.dumps({"kills": len(ends), "last epochs seen": ends}))


if __name__ == "__main__":
    main()
