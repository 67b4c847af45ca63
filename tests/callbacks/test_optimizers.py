"""Models with several optimizers, with idle ones, and without weights."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_adamax import (
    AdamaxClipped,
    AtomicBackup,
    ClipRateLogger,
    WeightDeltaLogger,
    plots,
)
from keras_adamax.callbacks import _optimizers
from tests.callbacks import training


class Two(keras.Model):
    """Two parts, each with an optimizer; `phases` says who trains when.

    It computes its own gradients, with respect to a sum, so that a step is the
    same on each backend and needs no state but that of the optimizers.
    """

    def __init__(self, phases="12", where="attributes", dead=()):
        super().__init__(name="two")
        keras.utils.set_random_seed(0)
        self.parts_ = []
        for name in ("one", "two"):
            part = keras.Sequential(
                [keras.Input((4,)), keras.layers.Dense(1, name="dense")],
                name=name,
            )
            setattr(self, name, part)
        self.phases, self.where, self.dead = phases, where, dead
        self.number = 0
        self.built = True

    def compile(self, first, second):
        super().compile(loss="mse", run_eagerly=True, jit_compile=False)
        self.pair = lambda: (first, second)
        if self.where == "attributes":
            self.first, self.second = first, second
        elif self.where == "a list":
            self.all_of_them = [first, second]
        elif self.where == "a dictionary":
            self.all_of_them = {"first": first, "second": second}
        else:
            self.one.compile(first)
            self.two.compile(second)

    def call(self, x):
        return self.one(x) + self.two(x)

    def train_step(self, *arguments):
        if training.BACKEND == "jax":  # Keras has taken the values out
            groups = (
                self.trainable_variables,
                self.non_trainable_variables,
                self.optimizer.variables,
                self.metrics_variables,
            )
            for variables, values in zip(groups, arguments[0], strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable._value = value
        phase = self.phases[self.number % len(self.phases)]
        self.number += 1
        for who, optimizer, part in zip(
            "12", self.pair(), (self.one, self.two), strict=True
        ):
            if phase in (who, "b"):
                factor = 0.0 if part.name in self.dead else 1.0
                variables = part.trainable_variables
                gradients = [
                    factor * ops.ones(v.shape, v.dtype) for v in variables
                ]
                optimizer.apply(gradients, variables)
        if training.BACKEND == "jax":
            return {"loss": 1.0}, tuple(
                [variable.value for variable in variables]
                for variables in groups
            )
        return {"loss": 1.0}


def two(*arguments, first=None, second=None, **keywords):
    model = Two(*arguments, **keywords)
    model.compile(
        first or keras.optimizers.SGD(0.1), second or keras.optimizers.SGD(0.1)
    )
    return model


def steps(logger):
    rows = training.rows(
        logger.records, variable="", quantity=logger.summary_keys[0]
    )
    return [row[3] for row in rows]


pytestmark = pytest.mark.filterwarnings("ignore:.*trainable.*:UserWarning")


class TestSteps:
    @pytest.mark.parametrize(
        "where", ["attributes", "a list", "a dictionary", "the parts"]
    )
    def test_grow_whoever_is_trained(self, where):
        # One of them has been trained before, and rests or goes on.
        first = keras.optimizers.SGD(0.1)
        first.iterations.assign(1000)
        model = two("222111bb", where=where, first=first)
        logger = WeightDeltaLogger(1, warn_unchanged=False)
        training.fit(model, [logger], epochs=2)
        expected = np.cumsum([1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1])
        assert steps(logger) == [1000 + int(n) for n in expected]

    def test_of_one_optimizer_are_its_own(self):
        # A compiled model inside of another one: its optimizer rests.
        base = training.make_model(optimizer="sgd")
        training.fit(base, [])
        model = keras.Sequential([keras.Input((4,)), base])
        model.compile("adamax_clipped", "mse", **training.COMPILE)
        loggers = [WeightDeltaLogger(), ClipRateLogger()]
        training.fit(model, loggers, epochs=2)
        assert [steps(logger) for logger in loggers] == [[6, 12]] * 2

    def test_a_frozen_teacher_does_not_count(self):
        model = two(where="the parts")
        teacher = training.make_model(optimizer="sgd")
        teacher.optimizer.iterations.assign(77)
        teacher.trainable = False
        model.teacher = teacher
        found = _optimizers.of_model(model)
        assert teacher.optimizer not in found
        assert found[1:] == list(model.pair())


class TestUnchanged:
    def texts(self, model, freq="epoch", epochs=1, **arguments):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logger = WeightDeltaLogger(freq, **arguments)
            training.fit(model, [logger], epochs=epochs)
        return [
            text
            for text in training.user_warnings(caught)
            if "did not change" in text
        ]

    def test_is_judged_by_the_optimizer_that_was_not_trained_before(self):
        first = keras.optimizers.SGD(0.1)
        first.iterations.assign(1000)
        model = two("2", first=first, dead=["two"])
        first.build(model.one.trainable_variables)
        (text,) = self.texts(model)
        assert text.startswith(
            "2 of 2 trainable variables did not change at all in 6 updates, "
            "up to step 1006: two/dense/kernel, two/dense/bias ("
        )

    @pytest.mark.parametrize("is_built", [False, True])
    def test_who_rests_is_not_told_of(self, is_built):
        model = two("111111222222")
        if is_built:
            for optimizer, part in zip(
                model.pair(), (model.one, model.two), strict=True
            ):
                optimizer.build(part.trainable_variables)
        assert self.texts(model, epochs=4, freq=2) == []

    def test_each_has_a_reason_of_its_own(self):
        model = two(
            "b",
            first=AdamaxClipped(0.0),
            second=AdamaxClipped(0.1),
            dead=["two"],
        )
        one, other = self.texts(model)
        assert "one/dense/kernel" in one and "the learning rate is 0" in one
        assert "two/dense/kernel" in other and "gradient is zero" in other
        assert "in 6 updates, up to step 12" in one


def test_clip_rates_of_two_optimizers():
    model = two("12", first=AdamaxClipped(0.1), second=AdamaxClipped(0.1))
    logger = ClipRateLogger(2)
    training.fit(model, [logger], epochs=2)
    assert steps(logger) == [2, 4, 6, 8, 10, 12]
    names = set(logger.records["variable"].tolist())
    assert names >= {"one/dense/kernel", "two/dense/kernel"}


class Scaled(keras.layers.Layer):
    """Has weights of given shapes, which the output depends on."""

    def __init__(self, *shapes, trainable=True):
        super().__init__(name="scaled", trainable=trainable)
        self.shapes = shapes

    def build(self, input_shape):
        self.own = [
            self.add_weight(shape=s, initializer="ones", name=f"w{i}")
            for i, s in enumerate(self.shapes)
        ]

    def call(self, x):
        x = x[:, :1]
        for weight in self.own:
            x = x * (1 + ops.sum(weight))
        return x


def weightless(kind):
    keras.utils.set_random_seed(0)
    layers = {
        "none": [
            keras.layers.Flatten(),
            keras.layers.Lambda(lambda x: x[:, :1]),
        ],
        "frozen": [keras.layers.Dense(1, trainable=False)],
        "statistics": [
            keras.layers.BatchNormalization(center=False, scale=False),
            keras.layers.Lambda(lambda x: x[:, :1]),
        ],
        "scalar": [Scaled(())],
        "empty": [Scaled((0, 3))],
        "empty and scalar": [Scaled((0, 3), (), (2, 0))],
    }[kind]
    model = keras.Sequential([keras.Input((4,)), *layers], name="model")
    model.compile(AdamaxClipped(0.01), "mse", **training.COMPILE)
    return model


KINDS = ["none", "frozen", "statistics", "scalar", "empty", "empty and scalar"]


@pytest.mark.slow
@pytest.mark.parametrize("with_events", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_models_with_few_weights_or_none(kind, with_events, tmp_path):
    log_dir = tmp_path / "events" if with_events else None

    def loggers(log_dir=log_dir):
        return [
            ClipRateLogger(2, log_dir=log_dir, filename=tmp_path / "a.csv"),
            WeightDeltaLogger(2, log_dir=log_dir, filename=tmp_path / "a.csv"),
            WeightDeltaLogger(),
        ]

    backup = AtomicBackup(tmp_path / "b", 3)
    with pytest.raises(KeyboardInterrupt):
        training.fit(
            weightless(kind),
            [*loggers(None), backup, training.Stop(1, 0)],
            epochs=2,
        )
    rates, deltas, by_epoch = again = loggers()
    model = weightless(kind)
    history = training.fit(model, [*again, backup], epochs=2)
    assert len(history.history["loss"]) == 2
    count = len(model.trainable_variables)
    for logger, number in ((rates, 6), (deltas, 6), (by_epoch, 2)):
        for quantity in logger.summary_keys:
            rows = training.rows(logger.records, quantity=quantity)
            assert len(rows) == number * (count + 1)
    moved = training.values(
        deltas.records, variable="", quantity="weight_delta"
    )
    assert [value > 0 for value in moved] == ["scalar" in kind] * 6
    plots.save_report(tmp_path / "a.csv", tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 0
