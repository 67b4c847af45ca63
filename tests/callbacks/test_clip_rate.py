"""Clip rates are what a count of the gradients gives."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_adamax import AdamaxClipped, ClipRateLogger, TargetClipRate
from tests.callbacks import training
from tests.support import repeated

# float32 rounds the bound once a step.
UNSURE = 1e-5
# Large enough that not all is clipped in so few steps.
CLIP_EPSILON = 0.05


@keras.saving.register_keras_serializable("tests")
class RecordingAdamax(AdamaxClipped):
    """Keeps the gradients that it is given; only for eager training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.gradients = []

    def apply(self, grads, trainable_variables=None):
        variables = trainable_variables or self._trainable_variables
        self.gradients.append([_to_numpy(g) for g in grads])
        self.paths = [v.path for v in variables]
        super().apply(grads, trainable_variables)


def _to_numpy(gradient):
    if type(gradient).__name__ in ("IndexedSlices", "RowGradient"):
        return (
            np.array(gradient.indices),
            np.array(gradient.values).astype("float64"),
        )
    return np.array(ops.convert_to_numpy(gradient)).astype("float64")


def count(gradients, paths, shapes):
    """Clipped, unsure and counted elements of every step and variable."""
    norms = {
        path: np.zeros(shape) for path, shape in zip(paths, shapes, strict=True)
    }
    steps = []
    for step in gradients:
        counts = {}
        for path, gradient in zip(paths, step, strict=True):
            u = norms[path]
            chosen = slice(None)
            if isinstance(gradient, tuple):  # of an embedding, some rows
                indices, parts = gradient
                chosen, place = np.unique(indices, return_inverse=True)
                gradient = np.zeros((len(chosen), *parts.shape[1:]))
                np.add.at(gradient, place, parts)
            bound = 1.2 * u[chosen] + CLIP_EPSILON
            size = np.abs(gradient)
            clipped = size > bound
            unsure = np.abs(size / bound - 1) < UNSURE
            counts[path] = (clipped.sum(), unsure.sum(), clipped.size)
            u[chosen] = np.maximum(0.999 * u[chosen], np.minimum(size, bound))
        steps.append(counts)
    return steps


@pytest.mark.parametrize(
    ("kind", "update_freq"),
    [("dense", "epoch"), ("dense", 1), ("recurrent", 4), ("embedding", 3)],
)
def test_rates_equal_a_count_of_recorded_gradients(kind, update_freq):
    optimizer = RecordingAdamax(learning_rate=0.01, clip_epsilon=CLIP_EPSILON)
    model = training.make_model(
        kind, optimizer, run_eagerly=True, jit_compile=False
    )
    logger = ClipRateLogger(update_freq)
    history = training.fit(model, [logger], kind, epochs=2)
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    steps = count(optimizer.gradients, optimizer.paths, shapes)
    if kind == "embedding" and training.BACKEND == "tensorflow":
        assert isinstance(optimizer.gradients[0][0], tuple)

    length = 6 if update_freq == "epoch" else update_freq
    rates = []
    for end in range(length, len(steps) + 1, length):
        window = steps[end - length : end]
        totals = np.zeros(3, int)
        for path in optimizer.paths:
            clipped, unsure, counted = np.sum([s[path] for s in window], axis=0)
            totals += (clipped, unsure, counted)
            (rate,) = training.values(
                logger.records, step=end, variable=path, quantity="clip_rate"
            )
            assert abs(rate * counted - clipped) <= unsure + 1e-9
        rate = training.values(
            logger.records, step=end, variable="", quantity="clip_rate"
        )
        assert abs(rate[0] * totals[2] - totals[0]) <= totals[1] + 1e-9
        rates += rate
        # What the tolerance lets through is next to nothing.
        assert totals[1] <= 0.01 * totals[2]
    assert len(training.rows(logger.records, quantity="clip_rate")) == (
        len(rates) * (len(shapes) + 1)
    )
    # Both sides of the bound were met.
    assert 0 < np.mean(rates) < 1 and min(rates) < max(rates)
    if update_freq == "epoch":
        assert history.history["clip_rate"] == rates


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rates_of_a_compiled_fit_add_up_to_the_optimizers_totals(jit_compile):
    if training.BACKEND == "torch" and jit_compile:
        pytest.skip("torch.compile takes most of a minute")
    model = training.make_model(jit_compile=jit_compile)
    logger = ClipRateLogger(2)
    training.fit(model, [logger], epochs=3)
    rates = training.values(logger.records, variable="", quantity="clip_rate")
    assert len(rates) == 9
    optimizer = model.optimizer
    assert np.mean(rates) == pytest.approx(optimizer.clip_rate(), abs=1e-12)
    for path, rate in optimizer.clip_rates().items():
        own = training.values(
            logger.records, variable=path, quantity="clip_rate"
        )
        assert np.mean(own) == pytest.approx(rate, abs=1e-12)


def test_observers_do_not_disturb_one_another():
    alone = ClipRateLogger(2)
    training.fit(training.make_model(), [alone], epochs=2)

    class Meddler(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.reset_clip_rates()

        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.clip_rates()

    model = training.make_model()
    one, two, three = ClipRateLogger(2), ClipRateLogger(3), ClipRateLogger()
    training.fit(model, [one, Meddler(), two, three], epochs=2)

    def rates(logger):
        return training.rows(logger.records, quantity="clip_rate")

    assert rates(one) == rates(alone)
    assert len(rates(two)) == 4 * 5 and len(rates(three)) == 2 * 5
    # The loggers never set the origin that belongs to the user.
    assert model.optimizer.clip_rate() == pytest.approx(
        np.mean(
            training.values(
                one.records, epoch=1, variable="", quantity="clip_rate"
            )
        ),
        abs=1e-12,
    )


def multi_optimizer(**kwargs):
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            AdamaxClipped(0.01, name="one", **kwargs),
            {
                ".*second.*": AdamaxClipped(
                    0.02, clip_multiplier=4.0, name="two"
                )
            },
        )
    )


@pytest.mark.parametrize(
    "wrapper", ["multi, some", *repeated("loss scale", "multi")]
)
def test_optimizers_inside_of_others(wrapper):
    optimizer = {
        "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
            AdamaxClipped(0.01), initial_scale=8.0
        ),
        "multi": multi_optimizer,
        "multi, some": lambda: keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                keras.optimizers.SGD(0.01), {".*second.*": AdamaxClipped(0.02)}
            )
        ),
    }[wrapper]()
    model = training.make_model(optimizer=optimizer)
    logger = ClipRateLogger()
    history = training.fit(model, [logger], epochs=2)
    paths = [v.path for v in model.trainable_variables]
    if wrapper == "multi, some":
        paths = paths[2:]
    rows = training.rows(logger.records, epoch=1, quantity="clip_rate")
    assert sorted(row[4] for row in rows) == sorted(["", *paths])
    assert {row[3] for row in rows} == {12}
    inner = (
        [optimizer.inner_optimizer]
        if wrapper == "loss scale"
        else [o for o in optimizer.optimizers if isinstance(o, AdamaxClipped)]
    )
    clipped = sum(sum(o.clip_statistics().clipped.values()) for o in inner)
    counted = sum(sum(o.clip_statistics().counted.values()) for o in inner)
    assert np.mean(history.history["clip_rate"]) == pytest.approx(
        clipped / counted, abs=1e-12
    )


def test_a_withheld_step_is_not_counted():
    model = training.make_model(optimizer=AdamaxClipped(skip_nonfinite=True))
    x, y = training.make_data()
    y[8:12] = np.nan  # the third of six batches
    logger = ClipRateLogger(1)
    with pytest.warns(UserWarning, match=r"1 step\(s\) were left out"):
        model.fit(x, y, 4, callbacks=[logger], shuffle=False, verbose=0)
    rows = training.rows(logger.records, variable="", quantity="clip_rate")
    assert [row[3] for row in rows] == [1, 2, 2, 3, 4, 5]
    assert [math.isnan(row[-1]) for row in rows] == [
        False,
        False,
        True,
        False,
        False,
        False,
    ]


def test_without_clipping_rates_are_zero():
    model = training.make_model(optimizer=AdamaxClipped(clip_gradients=False))
    logger = ClipRateLogger()
    history = training.fit(model, [logger])
    assert history.history["clip_rate"] == [0.0]
    assert training.values(logger.records, quantity="clip_rate") == [0.0] * 5


class TestTarget:
    @staticmethod
    def fit(y, batches, update_freq):
        """Trains on inputs of 0, so that only the bias has a gradient."""
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(AdamaxClipped(clip_multiplier=TargetClipRate(0.2)), "mse")
        model.fit(
            np.zeros((batches, 2)),
            np.full((batches, 1), y),
            batch_size=1,
            epochs=2,
            verbose=0,
            callbacks=[ClipRateLogger(update_freq)],
        )
        return model.optimizer

    def test_one_warning_says_that_it_is_out_of_reach(self):
        with pytest.warns(UserWarning, match="cannot reach") as caught:
            optimizer = self.fit(0.0, batches=100, update_freq=50)
        assert optimizer.current_clip_multiplier() == pytest.approx(1.0001)
        texts = [str(warning.message) for warning in caught]
        [text] = [text for text in texts if "cannot reach" in text]
        assert "its target of 0.2 for the clip rate" in text
        assert "since the last record it was 0, " in text

    def test_a_rate_below_it_alone_is_no_reason(self):
        # A warning would be an error.
        optimizer = self.fit(0.0, batches=20, update_freq="epoch")
        assert optimizer.clip_rate() == 0.0
        assert optimizer.current_clip_multiplier() > 1.001


def test_excluded_variables_have_no_rate():
    model = training.make_model(
        optimizer=AdamaxClipped(exclude_from_clipping=["bias"])
    )
    logger = ClipRateLogger()
    training.fit(model, [logger])
    rates = {
        row[4]: row[-1]
        for row in training.rows(logger.records, quantity="clip_rate")
    }
    assert math.isnan(rates["model/first/bias"])
    assert rates[""] == pytest.approx(
        np.average(
            [rates["model/first/kernel"], rates["model/second/kernel"]],
            weights=[24, 6],
        )
    )


class TestClearErrors:
    @pytest.mark.parametrize(
        "optimizer",
        [
            "sgd",
            lambda: keras.optimizers.LossScaleOptimizer(
                keras.optimizers.Adamax()
            ),
            lambda: keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(
                    keras.optimizers.Adamax(name="one"),
                    {".*second.*": keras.optimizers.Adamax(name="two")},
                )
            ),
        ],
    )
    def test_another_optimizer(self, optimizer):
        if callable(optimizer):
            optimizer = optimizer()
        model = training.make_model(optimizer=optimizer)
        name = "SGD" if optimizer == "sgd" else "Adamax"
        before = training.weights_of(model)
        with pytest.raises(ValueError, match=rf"AdamaxClipped.*{name}"):
            training.fit(model, [ClipRateLogger()])
        after = training.weights_of(model)
        assert all((after[path] == before[path]).all() for path in before)

    def test_no_counting(self):
        model = training.make_model(
            optimizer=AdamaxClipped(track_clip_rate=False)
        )
        with pytest.raises(ValueError, match="track_clip_rate=False"):
            training.fit(model, [ClipRateLogger()])

    def test_one_of_two_does_not_count(self):
        model = training.make_model(
            optimizer=multi_optimizer(track_clip_rate=False)
        )
        with pytest.raises(ValueError, match="'one'.*track_clip_rate=False"):
            training.fit(model, [ClipRateLogger()])


def test_a_state_that_is_loaded_in_between_costs_one_record(tmp_path):
    fresh = training.make_model()
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.save_weights(tmp_path / "fresh.weights.h5")

    class Loader(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.load_weights(tmp_path / "fresh.weights.h5")

    logger = ClipRateLogger()
    model = training.make_model()
    with pytest.warns(UserWarning, match="its state was loaded") as caught:
        history = training.fit(model, [Loader(), logger], epochs=4)
    assert len(training.user_warnings(caught)) == 1
    rates = history.history["clip_rate"]
    assert [math.isnan(rate) for rate in rates] == [False, False, True, False]


def fit_with_a_nan(model, logger):
    """The fifth of six batches of each of two epochs has it."""
    x, y = training.make_data()
    y[16:20] = np.nan
    return model.fit(
        x,
        y,
        batch_size=4,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[logger],
    ).history


@pytest.mark.parametrize("update_freq", ["epoch", 2])
def test_of_a_run_that_has_diverged_it_is_nan(update_freq):
    """No element of a NaN gradient is above its bound: a rate of 0 misleads."""
    model = training.make_model(optimizer=AdamaxClipped(0.01))
    logger = ClipRateLogger(update_freq)
    history = fit_with_a_nan(model, logger)
    assert np.isnan(history["clip_rate"]).all()
    overall = training.values(logger.records, variable="", quantity="clip_rate")
    expected = (
        [True, True] if update_freq == "epoch" else [False] * 2 + [True] * 4
    )
    assert [math.isnan(value) for value in overall] == expected
    of_variables = [
        math.isnan(row[6])
        for row in training.rows(logger.records, quantity="clip_rate")
        if row[4]
    ]
    assert of_variables == [value for value in expected for _ in range(4)]


def test_with_skip_nonfinite_a_run_does_not_diverge():
    model = training.make_model(
        optimizer=AdamaxClipped(0.01, skip_nonfinite=True)
    )
    logger = ClipRateLogger(2)
    with pytest.warns(UserWarning) as caught:
        history = fit_with_a_nan(model, logger)
    values = training.values(logger.records, quantity="clip_rate")
    assert values and not np.isnan(values).any()
    # The fifth batch of each epoch: the third record, and the sixth.
    skipped = training.values(logger.records, quantity="skipped_steps")
    assert skipped == [0, 0, 1, 0, 0, 1]
    assert history["skipped_steps"] == [1, 1]
    (text,) = training.user_warnings(caught)
    assert text.startswith("1 step(s) were left out since the last record (ep")
