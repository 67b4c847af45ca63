"""A record costs one transfer from the device, whatever is in it."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adamax import AdamaxClipped, ClipRateLogger, WeightDeltaLogger
from keras_adamax.callbacks import _clip_counts, _weight_changes
from keras_adamax.exact_totals import rows_from_totals
from tests.callbacks import training


def optimizers(kind):
    if kind == "one":
        return AdamaxClipped(0.01)
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            AdamaxClipped(0.01, name="one"),
            {".*second.*": AdamaxClipped(0.02, name="two")},
        )
    )


class Transfers:
    """Counts what comes to the host in the hooks of a logger."""

    def __init__(self, monkeypatch):
        self.shapes = []
        self.is_on = False
        convert = ops.convert_to_numpy
        self.patch(monkeypatch, ops, "convert_to_numpy", convert)
        for name in ("__array__", "__float__", "__int__", "numpy"):
            function = getattr(keras.Variable, name)
            self.patch(monkeypatch, keras.Variable, name, function)

    def patch(self, monkeypatch, place, name, function):
        def counting(*arguments, **keywords):
            if not self.is_on:
                return function(*arguments, **keywords)
            self.is_on = False  # one may be made of the other
            try:
                result = function(*arguments, **keywords)
            finally:
                self.is_on = True
            self.shapes.append(np.shape(result))
            return result

        monkeypatch.setattr(place, name, counting)

    def watch(self, logger):
        def watched(hook):
            def call(*arguments, **keywords):
                self.is_on = True
                try:
                    hook(*arguments, **keywords)
                finally:
                    self.is_on = False

            return call

        for name in ("on_train_batch_begin", "on_epoch_end"):
            setattr(logger, name, watched(getattr(logger, name)))

    @property
    def vectors(self):
        """Without what is looked at once: whether metrics are running means."""
        scalars = [shape for shape in self.shapes if shape == ()]
        assert len(scalars) <= 1
        return [shape for shape in self.shapes if shape != ()]


@pytest.mark.parametrize("with_log_dir", [False, True])
@pytest.mark.parametrize("kind", ["one", "two"])
@pytest.mark.parametrize("logger", [ClipRateLogger, WeightDeltaLogger])
def test_one_vector_a_record(logger, kind, with_log_dir, monkeypatch, tmp_path):
    model = training.make_model(optimizer=optimizers(kind))
    transfers = Transfers(monkeypatch)
    folder = tmp_path / "events" if with_log_dir else None
    logger = logger(2, log_dir=folder, filename=tmp_path / "records.csv")
    transfers.watch(logger)
    training.fit(model, [logger], epochs=2)
    # Six limbs and an element of the norm, or four measures and the bins, of
    # four variables; how many steps each optimizer has skipped; the step.
    width, others = 6 + 1, {"one": 1, "two": 2}[kind]
    if isinstance(logger, WeightDeltaLogger):
        others = 0
        width = 4 + (_weight_changes.BINS if with_log_dir else 0)
    assert transfers.vectors == [(4 * width + others + 2,)] * 6
    quantity = logger.summary_keys[0]
    assert len(training.rows(logger.records, quantity=quantity)) == 30


def test_the_counter_sees_every_way(monkeypatch):
    variable = keras.Variable(1.0)
    transfers = Transfers(monkeypatch)
    transfers.is_on = True
    ops.convert_to_numpy(variable)
    np.asarray(variable)
    variable.numpy()
    variable = keras.Variable(1, dtype="int32", trainable=False)
    float(variable)
    int(variable)
    assert transfers.shapes == [()] * 5


def test_large_integers_survive():
    model = training.make_model(optimizer=optimizers("two"))
    model.optimizer.build(model.trainable_variables)
    totals = [(2**24 + 1, 2**31 + 3), (0, 2**53 + 1), (7, 2**59 - 1), (1, 1)]
    for number, optimizer in enumerate(model.optimizer.optimizers):
        own = totals[2 * number : 2 * number + 2]
        (counts,) = [
            v for v in optimizer.variables if v.name.endswith("clip_counts")
        ]
        counts.assign(rows_from_totals(own))
    step = 2**31 - 1
    model.optimizer.iterations.assign(step)
    found, read = _clip_counts.read(_clip_counts.start([model.optimizer]))
    snapshots = [totals.clips for totals in read]
    assert found == step
    assert [
        pair
        for s in snapshots
        for pair in zip(s.clipped.values(), s.counted.values(), strict=True)
    ] == totals
    for optimizer, snapshot in zip(
        model.optimizer.optimizers, snapshots, strict=True
    ):
        assert snapshot == optimizer.clip_statistics()


def test_before_an_optimizer_is_built():
    for arguments in (
        {},
        {"spike_threshold": 0.2},
        {"track_gradient_norms": True},
    ):
        optimizer = AdamaxClipped(**arguments)
        totals = (
            optimizer.clip_statistics(),
            optimizer.spike_statistics(),
            frozenset(),
            0,
            optimizer.gradient_statistics(),
            {},
        )
        assert _clip_counts.read(_clip_counts.start([optimizer])) == (
            0,
            [totals],
        )
