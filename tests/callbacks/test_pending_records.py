"""A record is written one batch later; nothing is lost meanwhile."""

import gc
import time

import keras
import numpy as np
import pytest

from keras_adamax import ClipRateLogger, WeightDeltaLogger, records
from keras_adamax.callbacks import _clip_counts
from tests.callbacks import training

EVERY = 2


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


def test_a_fit_that_fails_keeps_the_last_record(tmp_path):
    path = tmp_path / "records.csv"
    both = loggers(path)

    def fit():
        try:
            training.fit(training.make_model(), [*both, AtBatch(4, fail)])
        except KeyboardInterrupt:
            return
        pytest.fail("it was not interrupted")

    fit()
    gc.collect()
    until = time.monotonic() + 20
    blocks = records.load(path)
    # On JAX, a thread of Keras may be the last to have the callbacks.
    while blocks[-1].moment.step < 4 and time.monotonic() < until:
        time.sleep(0.1)
        blocks = records.load(path)
    assert {block.moment.step for block in blocks} == {2, 4}
    names = {key.quantity for b in blocks for key in b.keys}
    assert {"clip_rate", "weight_delta", "loss"} <= names
    for logger in both:
        assert steps_of(logger.records) == [2, 4]


def test_the_next_fit_begins_after_it(tmp_path):
    path = tmp_path / "records.csv"
    both, model = loggers(path), training.make_model()
    with pytest.raises(KeyboardInterrupt) as error:
        training.fit(model, [*both, AtBatch(4, fail)])
    # The traceback keeps Keras's list alive, so that nothing has been freed.
    training.fit(model, both)
    assert error.value is not None
    for logger in both:
        runs = logger.records["run"]
        assert steps_of({"step": logger.records["step"][runs == 0]}) == [2, 4]
        assert set(runs.tolist()) == {0, 1}
    written = records.load(path)
    moments = [(b.moment.run, b.moment.step) for b in written]
    assert moments == sorted(moments)


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
