"""A search that an earlier release began, and that was killed.

`python -m tests.tuning.begun_search` made `data/begun_search`. Make another
one beside it rather than this one again: what is there is what users have.
"""

import contextlib
import multiprocessing
import os
import shutil
import socket
import sqlite3
from pathlib import Path

import keras
import numpy as np

from keras_adamax_tuning import AdamaxClippedSpace, run_search

FOLDER = Path(__file__).parent / "data" / "begun_search"
# What it holds: two trials that ended, and one that was killed.
ENDED = 2
# A Range and a schedule are what a search saves by their registered names.
SPACE = AdamaxClippedSpace(
    learning_rate=(1e-3, 1e-1),
    beta_2=(0.9, 0.999),
    clip_multiplier=[1.1, 2.0],
    clip_epsilon=1e-3,
)


def build_model(hp):
    units = hp.Int("units", 2, 4)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units),
            keras.layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    return model


def load_data():
    # The same on every machine and with every release of NumPy.
    x = np.linspace(-1.0, 1.0, 96, dtype="float32").reshape(32, 3)
    return x, x[:, :1] - 0.5


def search(output, **changes):
    arguments = {
        "space": SPACE,
        "epochs": 1,
        "sampler": "tpe",
        "seed": 0,
        "verbose": False,
        **changes,
    }
    # The module's name is that which the tests import, not `__main__`.
    from tests.tuning import begun_search

    return run_search(
        begun_search.build_model,
        begun_search.load_data,
        output=output,
        **arguments,
    )


def _search_and_die(output):
    # A machine where nobody can look whether the process lives.
    socket.gethostname = lambda: "another-machine"

    def callbacks(trial, hp, folder):
        del hp, folder
        if int(trial.trial_id) == ENDED:
            os._exit(9)
        return []

    search(output, max_trials=ENDED + 1, callbacks_factory=callbacks)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    process = multiprocessing.get_context("spawn").Process(
        target=_search_and_die, args=(FOLDER,)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    with contextlib.closing(sqlite3.connect(FOLDER / "study.db")) as database:
        # So that no clock takes the process for alive.
        database.execute(
            "UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'"
        )
        database.commit()
        # Part of the record is in a second file until then.
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


if __name__ == "__main__":
    main()
