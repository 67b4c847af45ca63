"""A record is written one batch later; nothing is lost meanwhile."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_adamax import ClipRateLogger, WeightDeltaLogger, records
from keras_adamax.callbacks import _clip_counts
from tests.callbacks import training

EVERY = 2
ROOT = Path(__file__).parents[2]


class AtBatch(keras.callbacks.Callback):
    """Does something when a batch begins, after the loggers."""

    def __init__(self, batch, action):
        super().__init__()
        self.batch, self.action = batch, action

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            self.action()


def loggers(path=None):
    return [
        ClipRateLogger(EVERY, filename=path),
        WeightDeltaLogger(EVERY, filename=path),
    ]


def steps_of(columns):
    return sorted(set(np.asarray(columns["step"]).tolist()))


def fail():
    raise KeyboardInterrupt


FAILS = """
import sys
from tests.callbacks import test_pending_records as tests, training
callbacks = [*tests.loggers(sys.argv[1]), tests.AtBatch(4, tests.fail)]
training.fit(training.make_model(), callbacks)
"""


def test_a_script_that_fails_has_written_the_last_record(tmp_path):
    path = tmp_path / "records.csv"
    done = subprocess.run(
        [sys.executable, "-c", FAILS, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "KeyboardInterrupt" in done.stderr
    blocks = records.load(path)
    assert {block.moment.step for block in blocks} == {2, 4}
    names = {key.quantity for b in blocks for key in b.keys}
    assert {"clip_rate", "weight_delta", "loss"} <= names


def test_a_fit_that_fails_keeps_the_last_record():
    both = loggers()
    with pytest.raises(KeyboardInterrupt):
        training.fit(training.make_model(), [*both, AtBatch(4, fail)])
    for logger in both:
        assert steps_of(logger.records) == [2, 4]


def test_the_next_fit_begins_after_it(tmp_path):
    path = tmp_path / "records.csv"
    model, failed, both = training.make_model(), loggers(path), loggers(path)
    with pytest.raises(KeyboardInterrupt):
        training.fit(model, [*failed, AtBatch(4, fail)])
    training.fit(model, both)
    moments = [(b.moment.run, b.moment.step) for b in records.load(path)]
    assert moments == sorted(moments)
    assert {moment[0] for moment in moments} == {0, 1}
    assert {step for run, step in moments if run == 0} == {2, 4}
    for logger in failed:
        assert steps_of(logger.records) == [2, 4]


def test_callbacks_see_the_batch_before():
    both, seen = loggers(), []
    at = AtBatch(4, lambda: seen.extend(steps_of(x.records) for x in both))
    training.fit(training.make_model(), [*both, at])
    assert seen == [[2, 4], [2, 4]]
    for logger in both:
        losses = logger.records["quantity"] == "loss"
        assert steps_of({"step": logger.records["step"][losses]}) == [2, 4, 6]


def test_it_is_waited_for_one_batch_later(monkeypatch):
    """So that the device has the next one to work on meanwhile."""
    batches, read = [], []
    really_read = _clip_counts.read

    def note(reading):
        read.append(len(batches))
        return really_read(reading)

    class Count(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            batches.append(batch)

    logger = ClipRateLogger(EVERY)
    model = training.make_model()
    training.fit(model, [ClipRateLogger()])  # what is built once
    monkeypatch.setattr(_clip_counts, "read", note)
    training.fit(model, [logger, Count()])
    # When the window begins; for batches 2 and 4; and at the epoch's end.
    assert read == [0, 3, 5, 6]
