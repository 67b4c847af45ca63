"""A user can answer which batch was left out, and for which layer."""

import csv

import keras
import numpy as np
import pytest

from keras_adamax import (
    AdamaxClipped,
    AtomicBackup,
    ClipRateLogger,
    WeightDeltaLogger,
)
from keras_adamax.callbacks import _event_files
from tests.callbacks import training
from tests.callbacks.test_transfers import Transfers

# Ordinary gradients stay below it, those of spoilt batches do not.
GATE = {"clip_epsilon": 1e3, "spike_threshold": 0.2, "max_skipped_spikes": 99}
BATCHES = 6
SPOILT = (3, 4)
PATHS = {
    f"model/{layer}/{weight}"
    for layer in ("first", "second")
    for weight in ("kernel", "bias")
}


def make_optimizer(**arguments):
    return AdamaxClipped(0.01, **(GATE | arguments))


def fit(model, callbacks, spoilt=SPOILT, batches=BATCHES, **arguments):
    """Batches in order; those with these numbers, from 1 on, are spoilt."""
    x, y = training.make_data(count=4 * batches)
    for number in spoilt:
        y[4 * number - 4 : 4 * number] *= 1e6
    arguments = {"batch_size": 4, "shuffle": False, "verbose": 0} | arguments
    return model.fit(x, y, callbacks=callbacks, **arguments)


def moments(logger, **conditions):
    """(epoch, batch, step) of the spikes."""
    rows = training.rows(
        logger.records, quantity="spike_rate", variable="", **conditions
    )
    return [row[1:4] for row in rows]


# Of three epochs: a step that is left out is no update.
EXPECTED = [
    (0, 3, 2),
    (0, 4, 2),
    (1, 3, 6),
    (1, 4, 6),
    (2, 3, 10),
    (2, 4, 10),
]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("update_freq", ["epoch", 1, 4, 100])
def test_each_spike_is_a_record(update_freq, jit_compile, tmp_path):
    if training.BACKEND == "torch" and jit_compile:
        pytest.skip("torch.compile takes most of a minute")
    model = training.make_model(
        optimizer=make_optimizer(), jit_compile=jit_compile
    )
    logger = ClipRateLogger(update_freq, filename=tmp_path / "records.csv")
    history = fit(model, [logger], epochs=3)
    assert moments(logger) == EXPECTED
    kept = model.optimizer.spikes()
    assert [spike.call for spike in kept] == [3, 4, 9, 10, 15, 16]
    for (epoch, batch, step), spike in zip(EXPECTED, kept, strict=True):
        rows = training.rows(
            logger.records, epoch=epoch, batch=batch, quantity="spike_rate"
        )
        assert {row[3] for row in rows} == {step} == {spike.step}
        rates = {row[4]: row[6] for row in rows}
        assert rates.pop("") == pytest.approx(spike.rate)
        assert rates == pytest.approx(spike.variables)
        assert set(rates) <= PATHS and spike.rate > 0.2
    counts = training.values(logger.records, variable="", quantity="spikes")
    assert (
        counts
        == {
            "epoch": [2, 2, 2],
            1: [0, 0, 1, 1, 0, 0] * 3,
            4: [2, 0, 2, 2],
            100: [],
        }[update_freq]
    )
    # Of the epoch, whatever the window of a record.
    assert history.history["spikes"] == [2, 2, 2]
    # The file is the records, in the order of the batches.
    with open(tmp_path / "records.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [tuple(row[4:6]) for row in rows] == [
        row[4:6] for row in training.rows(logger.records)
    ]
    order = [tuple(map(int, row[:4])) for row in rows]
    assert order == sorted(order)


def test_calls_that_were_skipped_are_batches():
    model = training.make_model(
        optimizer=make_optimizer(
            skip_nonfinite=True, gradient_accumulation_steps=2
        )
    )
    x, y = training.make_data(count=32)
    y[4:8] = np.nan
    y[20:24] *= 1e6
    logger = ClipRateLogger(4)
    with pytest.warns(UserWarning, match=r"1 step\(s\) were left out"):
        model.fit(
            x, y, 4, epochs=2, shuffle=False, verbose=0, callbacks=[logger]
        )
    # The second is a NaN, the sixth a spike: of 5 micro-batches.
    assert moments(logger) == [(0, 6, 2), (1, 6, 5)]
    assert model.optimizer.skipped_steps() == 2


def test_of_many_the_last_have_rows_and_all_are_counted():
    model = training.make_model(optimizer=make_optimizer())
    logger = ClipRateLogger()
    spoilt = range(2, 25)
    history = fit(model, [logger], spoilt=spoilt, batches=26)
    assert history.history["spikes"] == [23]
    assert [m[1] for m in moments(logger)] == list(range(9, 25))


def test_without_a_gate_nothing_is_added():
    model = training.make_model()
    logger = ClipRateLogger()
    history = fit(model, [logger])
    assert "spikes" not in history.history
    assert set(logger.records["quantity"]) == {"clip_rate", "loss"}


def test_optimizers_that_come_into_being_in_the_first_epoch(tmp_path):
    """A record is not due in it, but a backup is."""
    optimizer = keras.optimizers.MultiOptimizer(lambda _: make_optimizer())
    model = training.make_model(optimizer=optimizer)
    logger = ClipRateLogger(100)
    fit(model, [logger, AtomicBackup(tmp_path / "backup")])
    assert len(training.rows(logger.records, quantity="spikes")) == 0
    assert len(training.rows(logger.records, quantity="spike_rate")) > 0


def test_one_vector_a_record(monkeypatch):
    model = training.make_model(optimizer=make_optimizer())
    transfers = Transfers(monkeypatch)
    logger = ClipRateLogger(2)
    transfers.watch(logger)
    fit(model, [logger])
    # Six limbs of four variables, seventeen rows of the gate, an element of
    # four norms, the number of skipped steps, the step.
    assert transfers.vectors == [(4 * 6 + 17 * 17 + 4 + 1 + 2,)] * 3
    assert moments(logger) == EXPECTED[:2]


@pytest.mark.parametrize("kind", ["loss scale", "multi", "multi, one gate"])
def test_optimizers_inside_of_others(kind):
    optimizer = training.nested(kind, make_optimizer, 8.0, **GATE)
    model = training.make_model(optimizer=optimizer)
    logger = ClipRateLogger()
    history = fit(model, [logger], epochs=2)
    # Each of two optimizers has left out its own part.
    number = 4 if kind == "multi" else 2
    assert history.history["spikes"] == [number] * 2
    assert [m[:2] for m in moments(logger)] == [m[:2] for m in EXPECTED[:4]]
    named = set(logger.records["variable"][_is_spike(logger)]) - {""}
    if kind == "multi, one gate":
        assert named == {path for path in PATHS if "first" in path}
    else:
        assert {path.split("/")[1] for path in named} == {"first", "second"}


def _is_spike(logger):
    return logger.records["quantity"] == "spike_rate"


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def run(folder, save_freq, stop, epochs=3):
    """A `fit` with two loggers of one file, killed and resumed or not."""

    def one(*others):
        model = training.make_model(optimizer=make_optimizer(name="own"))
        loggers = [
            ClipRateLogger(filename=folder / "records.csv"),
            ClipRateLogger(4, filename=folder / "others.csv"),
            WeightDeltaLogger(4, filename=folder / "others.csv"),
        ]
        backup = AtomicBackup(folder / "backup", save_freq)
        fit(model, [*loggers, *others, backup], epochs=epochs)
        return loggers

    folder.mkdir()
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            one(Stop(*stop))
    return one()


@pytest.mark.slow
def test_a_run_that_was_resumed_has_the_same_records(tmp_path):
    whole = run(tmp_path / "whole", "epoch", None)
    resumed = run(tmp_path / "resumed", "epoch", (1, 5))
    for one, other in zip(whole, resumed, strict=True):
        training.assert_same_records(one.records, other.records)
    assert moments(whole[0]) == moments(whole[1]) == EXPECTED
    if training.BACKEND != "torch":
        for name in ("records.csv", "others.csv"):
            texts = [
                (tmp_path / run / name).read_text()
                for run in ("whole", "resumed")
            ]
            assert texts[0] == texts[1]
    # Each logger takes its own out of a common file, and the loss is there
    # once.
    for logger in whole[1:]:
        other = type(logger)(4)
        other.load_records(tmp_path / "whole" / "others.csv")
        assert (
            moments(other)
            == {ClipRateLogger: EXPECTED, WeightDeltaLogger: []}[type(logger)]
        )
    lines = (tmp_path / "whole" / "others.csv").read_text().splitlines()
    keys = [line.rpartition(",")[0] for line in lines]
    assert len(set(keys)) == len(keys)


@pytest.mark.slow
def test_an_epoch_that_is_begun_again(tmp_path):
    """Spikes before the backup are of the batches that they were."""
    loggers = run(tmp_path / "resumed", 10, (1, 5))
    # The backup is of four batches of the second epoch. Of those that the
    # logger had recorded two were of it, before its spikes.
    assert [m[:2] for m in moments(loggers[1])] == [
        (0, 3),
        (0, 4),
        (1, 3),
        (1, 4),
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    ]


def test_event_files(tmp_path, monkeypatch):
    written = []

    def write(self, step, scalars, histograms):
        written.extend((step, tag, value) for tag, value in scalars.items())

    monkeypatch.setattr(_event_files.EventFile, "write", write)
    model = training.make_model(optimizer=make_optimizer())
    logger = ClipRateLogger(log_dir=tmp_path)
    fit(model, [logger])
    assert (4, "all_weights/spikes", 2) in written
    rates = [w for w in written if w[1] == "all_weights/spike_rate"]
    kept = model.optimizer.spikes()
    assert rates == [
        (2, "all_weights/spike_rate", pytest.approx(s.rate)) for s in kept
    ]
    tags = {tag for _, tag, _ in written if tag.endswith("spike_rate")}
    assert "model.second/kernel/spike_rate" in tags


def test_a_state_that_is_loaded_in_between(tmp_path):
    model = training.make_model(optimizer=make_optimizer())
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "fresh.weights.h5")

    class Loader(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.load_weights(tmp_path / "fresh.weights.h5")

    logger = ClipRateLogger()
    with pytest.warns(UserWarning, match="its state was loaded"):
        history = fit(model, [Loader(), logger], epochs=4)
    counts = history.history["spikes"]
    assert np.isnan(counts[2])
    assert counts[:2] + counts[3:] == [2, 2, 2]
    assert [m[:2] for m in moments(logger)] == [
        (epoch, batch) for epoch in (0, 1, 3) for batch in (3, 4)
    ]


def test_the_first_is_warned_of():
    model = training.make_model(optimizer=make_optimizer())
    with pytest.warns(
        UserWarning,
        match=r"left out 2 step\(s\).* batch 3 of epoch 1, with 100% .*'model/",
    ) as warned:
        fit(model, [ClipRateLogger()], epochs=2)
    assert sum("spike gate" in str(its.message) for its in warned) == 1
