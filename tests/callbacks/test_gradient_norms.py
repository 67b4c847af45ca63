"""What `ClipRateLogger` records of gradients that the optimizer measures."""

import math

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped, AtomicBackup, ClipRateLogger
from keras_adamax.callbacks import _event_files
from tests.callbacks import training
from tests.callbacks.test_clip_rate import CLIP_EPSILON, RecordingAdamax

QUANTITIES = ("gradient_norm", "clipped_share", "update_norm")


def make_optimizer(**arguments):
    arguments = {
        "clip_epsilon": CLIP_EPSILON,
        "learning_rate": 0.01,
    } | arguments
    return AdamaxClipped(track_gradient_norms=True, **arguments)


def squares_of(gradients, paths):
    """Squares of each step and variable: gradients, clipped, updates."""
    steps = []
    moments = {}
    for step in gradients:
        found = {}
        for path, g in zip(paths, step, strict=True):
            m, u = moments.get(path, (0.0, np.zeros(g.shape)))
            bound = 1.2 * u + CLIP_EPSILON
            cut = np.clip(g, -bound, bound)
            m = 0.9 * m + 0.1 * cut
            u = np.maximum(0.999 * u, np.abs(cut))
            moments[path] = m, u
            change = 0.01 * m / (u + 1e-8)
            found[path] = [np.square(x).sum() for x in (g, cut, change)]
        steps.append(found)
    return steps


@pytest.mark.parametrize(
    ("kind", "update_freq"),
    [("dense", 4), ("dense", "epoch"), ("recurrent", 1)],
)
def test_norms_are_those_of_recorded_gradients(kind, update_freq):
    optimizer = RecordingAdamax(
        learning_rate=0.01, clip_epsilon=CLIP_EPSILON, track_gradient_norms=True
    )
    model = training.make_model(
        kind, optimizer, run_eagerly=True, jit_compile=False
    )
    logger = ClipRateLogger(update_freq)
    history = training.fit(model, [logger], kind, epochs=2)
    steps = squares_of(optimizer.gradients, optimizer.paths)
    length = 6 if update_freq == "epoch" else update_freq
    for end in range(length, len(steps) + 1, length):
        window = steps[end - length : end]
        total = 0
        for path in optimizer.paths:
            before, after, moved = np.sum([s[path] for s in window], axis=0)
            total += before
            recorded = [
                training.values(
                    logger.records, step=end, variable=path, quantity=quantity
                )
                for quantity in QUANTITIES
            ]
            np.testing.assert_allclose(
                np.concatenate(recorded),
                [
                    math.sqrt(before / length),
                    1 - after / before,
                    math.sqrt(moved / length),
                ],
                rtol=1e-4,
                atol=1e-5,
            )
        [norm] = training.values(
            logger.records, step=end, variable="", quantity="gradient_norm"
        )
        assert norm == pytest.approx(math.sqrt(total / length), rel=1e-4)
    for epoch, norm in enumerate(history.history["gradient_norm"]):
        its = steps[6 * epoch : 6 * epoch + 6]
        total = np.sum([s[p][0] for s in its for p in optimizer.paths])
        assert norm == pytest.approx(math.sqrt(total / 6), rel=1e-4)
    shares = training.values(logger.records, quantity="clipped_share")
    assert 0 <= min(shares) < max(shares) <= 1


def test_without_measurements_nothing_is_added():
    model = training.make_model()
    logger = ClipRateLogger(2)
    history = training.fit(model, [logger])
    assert "gradient_norm" not in history.history
    assert not {*logger.records["quantity"]}.intersection(QUANTITIES)


def spoil(name):
    """Data whose third batch is not finite."""
    x, y = training.make_data()
    (x if name == "x" else y)[9] = np.nan
    return x, y


@pytest.mark.parametrize("jit_compile", [training.BACKEND == "jax"])
@pytest.mark.parametrize("skips", [True, False])
def test_what_is_not_finite_is_named_once(skips, jit_compile):
    optimizer = make_optimizer(skip_nonfinite=skips)
    model = training.make_model(optimizer=optimizer, jit_compile=jit_compile)
    logger = ClipRateLogger(2)
    x, y = spoil("y")
    words = (
        r"since the last record \(epoch 1\): model/first/kernel \(.* element"
        r".* first in call 3 of `apply`\), model/first/bias"
    )
    with pytest.warns(UserWarning, match=words) as caught:
        history = model.fit(
            x,
            y,
            batch_size=4,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[logger],
        )
    [warning] = [w for w in caught if "NaN" in str(w.message)]
    way_out = "were left out" if skips else "`skip_nonfinite=True` leaves"
    assert way_out in str(warning.message)
    # Batch 3 is in the record after batch 4, and in no other of the epoch.
    batches = {
        int(batch)
        for batch, quantity, value, epoch in zip(
            *(logger.records[c] for c in ("batch", "quantity", "value")),
            logger.records["epoch"],
            strict=True,
        )
        if quantity == "nonfinite_elements" and value > 0 and epoch == 0
    }
    assert min(batches) == 4 and (batches == {4}) == skips
    if skips:
        assert history.history["skipped_steps"] == [1, 1]
        assert np.isfinite(history.history["gradient_norm"]).all()
        elements = training.values(
            logger.records,
            epoch=0,
            batch=4,
            variable="model/second/kernel",
            quantity="nonfinite_elements",
        )
        assert elements == [6]


def test_one_batch_and_one_layer_are_found_in_the_records():
    """Which batch, which layer, how large, what the clipping did."""
    model = training.make_model(
        optimizer=make_optimizer(beta_2=0.9, clip_epsilon=10.0)
    )
    x, y = training.make_data(count=48)
    x[:], y[:] = np.sign(x), np.sign(y)
    y[29] = 1e4
    logger = ClipRateLogger(1)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[logger])
    rows = [
        (float(value), int(batch), str(variable))
        for value, batch, variable, quantity in zip(
            *(
                logger.records[c]
                for c in ("value", "batch", "variable", "quantity")
            ),
            strict=True,
        )
        if quantity == "gradient_norm" and variable
    ]
    value, batch, variable = max(rows)
    usual = np.median([v for v, _, name in rows if name == variable])
    assert batch == 8 and value > 1000 * usual
    [share] = training.values(
        logger.records, batch=8, variable=variable, quantity="clipped_share"
    )
    assert share > 0.9


def run(folder, stop):
    """A run, which is stopped and resumed if it has to be."""

    def one():
        keras.utils.set_random_seed(0)
        logger = ClipRateLogger(4, filename=str(folder / "records.csv"))
        x, y = spoil("y")
        model = training.make_model(
            optimizer=make_optimizer(skip_nonfinite=True)
        )
        callbacks = [logger, AtomicBackup(folder / "backup")]
        if stop and not (folder / "backup").exists():
            callbacks.append(training.Stop(*stop))
        model.fit(
            x,
            y,
            batch_size=4,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
        return logger

    folder.mkdir()
    if stop:
        with pytest.raises(KeyboardInterrupt):
            one()
    return one()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Gradients have had NaNs")
def test_a_run_that_was_resumed_has_the_same_records(tmp_path):
    whole = run(tmp_path / "whole", None)
    # A window reaches from one epoch into the next.
    resumed = run(tmp_path / "resumed", (1, 3))
    training.assert_same_records(whole.records, resumed.records)
    assert "nonfinite_elements" in whole.records["quantity"]


@pytest.mark.parametrize("kind", ["loss scale", "multi", "multi, one"])
def test_optimizers_inside_of_others(kind):
    optimizer = training.nested(
        kind, make_optimizer, 2.0, track_gradient_norms=True
    )
    model = training.make_model(optimizer=optimizer)
    logger = ClipRateLogger(2)
    history = training.fit(model, [logger])
    [norm] = history.history["gradient_norm"]

    def recorded(variable):
        return np.array(
            training.values(
                logger.records, variable=variable, quantity="gradient_norm"
            )
        )

    assert math.sqrt(np.mean(np.square(recorded("")))) == pytest.approx(norm)
    of_each = np.array([recorded(v.path) for v in model.trainable_variables])
    is_measured = [
        kind != "multi, one" or "second" not in v.path
        for v in model.trainable_variables
    ]
    assert np.isnan(of_each).all(axis=1).tolist() == [
        not measured for measured in is_measured
    ]
    np.testing.assert_allclose(
        np.sqrt(np.nansum(np.square(of_each), axis=0)), recorded(""), rtol=1e-6
    )


def test_event_files(tmp_path, monkeypatch):
    written = []

    def write(self, step, scalars, histograms):
        written.extend(scalars)

    monkeypatch.setattr(_event_files.EventFile, "write", write)
    model = training.make_model(optimizer=make_optimizer())
    training.fit(model, [ClipRateLogger(log_dir=tmp_path)])
    assert "all_weights/gradient_norm" in written
    for quantity in QUANTITIES:
        assert f"model.second/kernel/{quantity}" in written


def test_records_are_read_back(tmp_path):
    path = tmp_path / "records.csv"
    model = training.make_model(optimizer=make_optimizer())
    logger = ClipRateLogger(2, filename=path)
    training.fit(model, [logger])
    other = ClipRateLogger(2)
    other.load_records(path)
    training.assert_same_records(logger.records, other.records)
