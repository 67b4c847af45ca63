import json

import keras
import keras_tuner
import numpy as np
import pytest
from keras.optimizers import LossScaleOptimizer
from keras_tuner.errors import FatalTypeError, FatalValueError

import keras_adamax
from keras_adamax_tuning.space.adamax_clipped_space import AdamaxClippedSpace
from keras_adamax_tuning.space.hypermodel import AdamaxClippedHyperModel
from keras_adamax_tuning.space.replaced_optimizer import (
    ReplacedOptimizerWarning,
)
from tests.support import id_of
from tests.tuning import searched

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def dense(hp, **compile_arguments):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(hp.Int("units", 2, 8)),
            keras.layers.Dense(1),
        ]
    )
    if compile_arguments:
        model.compile(**compile_arguments)
    return model


def compiled(hp):
    return dense(hp, loss="mse", metrics=["mae"])


def build(build_model, hp=None, **arguments):
    hp = hp or keras_tuner.HyperParameters()
    hypermodel = AdamaxClippedHyperModel(build_model, **arguments)
    return hypermodel, hp, hypermodel.build(hp)


def iterations(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def numpy_variables(optimizer):
    return {
        variable.path: keras.ops.convert_to_numpy(variable.value)
        for variable in optimizer.variables
    }


# The model keeps what it has


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "mse"},
        {"loss": "mse", "metrics": ["mae"], "weighted_metrics": ["mse"]},
        {"loss": keras.losses.Huber(0.5), "loss_weights": 0.25},
        {"loss": lambda y, p: keras.ops.mean((y - p) ** 2)},
        {"loss": "mse", "run_eagerly": True},
        {"loss": "mse", "steps_per_execution": 2},
        {"loss": "mse", "jit_compile": False},
        {"loss": "mse", "jit_compile": True},
        {"loss": "mse", "optimizer": "sgd", "auto_scale_loss": False},
    ],
    ids=id_of,
)
def test_settings_of_a_compiled_model_stay(settings):
    reference = dense(keras_tuner.HyperParameters(), **settings)
    _, _, model = build(lambda hp: dense(hp, **settings))
    assert type(model.optimizer) is keras_adamax.AdamaxClipped
    assert model.loss == settings["loss"]
    for name in ("run_eagerly", "steps_per_execution", "jit_compile"):
        assert getattr(model, name) == getattr(reference, name)
    if not callable(settings["loss"]):
        expected = reference.get_compile_config()
        received = model.get_compile_config()
        assert received.pop("optimizer")["class_name"] == "AdamaxClipped"
        expected.pop("optimizer")
        assert json.dumps(received) == json.dumps(expected)


def test_metrics_of_a_compiled_model_are_counted():
    model = build(
        lambda hp: dense(
            hp, loss="mse", metrics=["mae"], weighted_metrics=["mape"]
        )
    )[2]
    history = model.fit(X, Y, batch_size=16, verbose=0).history
    assert set(history) == {"loss", "mae", "mape"}
    assert iterations(model) == 2


def test_loss_weights_are_in_the_loss():
    def evaluate(**settings):
        model = build(lambda hp: dense(hp, loss="mse", **settings))[2]
        for variable in model.trainable_variables:
            variable.assign(np.full(variable.shape, 0.5))
        return model.evaluate(X, Y, verbose=0)

    assert evaluate(loss_weights=0.25) == pytest.approx(0.25 * evaluate())


def test_a_compile_method_of_the_users_own():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            return self.dense(inputs)

        def compile(self, optimizer, factor):
            super().compile(optimizer=optimizer)
            self.factor = factor

        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            return self.factor * keras.ops.mean((y - y_pred) ** 2)

    def build_model(hp):
        model = Model()
        model(X)
        model.compile("adam", factor=3.0)
        return model

    _, _, model = build(build_model)
    assert model.factor == 3.0
    assert type(model.optimizer) is keras_adamax.AdamaxClipped
    model.fit(X, Y, verbose=0)
    assert iterations(model) == 1


def test_the_model_can_be_saved_whole(tmp_path):
    hp = keras_tuner.HyperParameters()
    hp.values["one_minus_beta_2"] = 0.01
    _, _, model = build(compiled, hp)
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is keras_adamax.AdamaxClipped
    assert loaded.optimizer.beta_2 == 0.99
    assert iterations(loaded) == 1
    np.testing.assert_allclose(
        loaded.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0)
    )


# The optimizer is built


def test_a_reloaded_trial_keeps_moments_and_step(tmp_path):
    hypermodel, hp, model = build(compiled)
    assert model.optimizer.built
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save_weights(tmp_path / "checkpoint.weights.h5")
    saved = numpy_variables(model.optimizer)
    again = hypermodel.build(hp)
    fresh = numpy_variables(again.optimizer)
    again.load_weights(tmp_path / "checkpoint.weights.h5")
    assert iterations(again) == 4
    loaded = numpy_variables(again.optimizer)
    assert len(loaded) == len(saved)
    for received, expected in zip(loaded.values(), saved.values(), strict=True):
        np.testing.assert_array_equal(received, expected)
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(fresh.values(), loaded.values(), strict=True)
    ]
    assert sum(changed) > 8, "moments and norms of four weights, at least"


def test_canary_keras_drops_the_state_of_an_optimizer_not_built(tmp_path):
    model = compiled(keras_tuner.HyperParameters())
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save_weights(tmp_path / "checkpoint.weights.h5")
    again = compiled(keras_tuner.HyperParameters())
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        again.load_weights(tmp_path / "checkpoint.weights.h5")
    assert iterations(again) == 0


def test_canary_what_keras_saves_of_compile():
    model = compiled(keras_tuner.HyperParameters())
    assert model._compile_config.config["optimizer"] is model.optimizer
    assert model.get_compile_config()["optimizer"]["class_name"] == "RMSprop"


# Mixed precision


@pytest.fixture
def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


def test_mixed_precision_keeps_its_loss_scale(mixed_float16, tmp_path):
    hypermodel, hp, model = build(compiled)
    assert type(model.optimizer) is LossScaleOptimizer
    inner = model.optimizer.inner_optimizer
    assert type(inner) is keras_adamax.AdamaxClipped
    assert inner.built
    model.fit(X, Y, batch_size=8, verbose=0)
    assert 1 <= iterations(model) <= 4
    model.save_weights(tmp_path / "checkpoint.weights.h5")
    again = hypermodel.build(hp)
    again.load_weights(tmp_path / "checkpoint.weights.h5")
    assert iterations(again) == iterations(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is LossScaleOptimizer
    inner = loaded.optimizer.inner_optimizer
    assert type(inner) is keras_adamax.AdamaxClipped, "wrapped once"
    assert iterations(loaded) == iterations(model)


def test_mixed_precision_without_a_loss_scale(mixed_float16):
    _, _, model = build(lambda hp: dense(hp, loss="mse", auto_scale_loss=False))
    assert type(model.optimizer) is keras_adamax.AdamaxClipped


def test_mixed_precision_of_a_model_not_compiled(mixed_float16):
    _, _, model = build(dense, compile_arguments={"loss": "mse"})
    assert type(model.optimizer) is LossScaleOptimizer
    assert type(model.optimizer.inner_optimizer) is keras_adamax.AdamaxClipped


def test_a_loss_scale_of_the_users_own(tmp_path):
    _, _, model = build(
        lambda hp: dense(
            hp,
            loss="mse",
            optimizer=LossScaleOptimizer(
                keras.optimizers.Adam(), initial_scale=8.0, name="scaled"
            ),
        )
    )
    assert type(model.optimizer.inner_optimizer) is keras_adamax.AdamaxClipped
    assert model.optimizer.initial_scale == 8.0
    assert model.optimizer.name == "scaled"
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.initial_scale == 8.0
    inner = loaded.optimizer.inner_optimizer
    assert type(inner) is keras_adamax.AdamaxClipped


# Models that are not compiled


def test_compile_arguments():
    hypermodel, hp, model = build(
        dense,
        compile_arguments={
            "loss": "mse",
            "metrics": [keras.metrics.MeanAbsoluteError(name="error")],
            "run_eagerly": True,
        },
    )
    assert model.run_eagerly
    history = model.fit(X, Y, verbose=0).history
    assert set(history) == {"loss", "error"}
    # The next model's metric does not count on.
    other = hypermodel.build(hp)
    other.fit(X, Y, verbose=0)
    assert other.metrics[1].metrics[0] is not model.metrics[1].metrics[0]


# Batch size and epochs


def fit_calls(hypermodel, hp, *args, **kwargs):
    calls = []

    class Model:
        def fit(self, *args, **kwargs):
            calls.append((args, kwargs))
            return "history"

    assert hypermodel.fit(hp, Model(), *args, **kwargs) == "history"
    return calls


def test_batch_size_and_epochs_are_searched():
    hypermodel, hp, model = build(
        compiled, batch_size=(4, 64), epochs=[1, 3, 10]
    )
    parameters = {p.name: p for p in hp.space}
    assert parameters["batch_size"].min_value == 4
    assert parameters["batch_size"].max_value == 64
    assert parameters["batch_size"].sampling == "log"
    assert parameters["batch_size"].default == 32
    assert parameters["epochs"].values == [1, 3, 10]
    hp.values.update(batch_size=8, epochs=3)
    assert fit_calls(hypermodel, hp, X, Y, verbose=0) == [
        ((X, Y), {"verbose": 0, "batch_size": 8, "epochs": 3})
    ]
    history = hypermodel.fit(hp, model, X, Y, verbose=0)
    assert len(history.history["loss"]) == 3
    assert iterations(model) == 3 * 4


def test_fixed_and_absent_batch_size():
    hypermodel, hp, _ = build(compiled, batch_size=16)
    assert [p.name for p in hp.space if p.name == "batch_size"] == []
    assert fit_calls(hypermodel, hp, X, epochs=2) == [
        ((X,), {"batch_size": 16, "epochs": 2})
    ]
    hypermodel, hp, _ = build(compiled)
    assert fit_calls(hypermodel, hp, X, Y, 7) == [((X, Y, 7), {})]


@pytest.mark.parametrize(
    "arguments, args, kwargs, name",
    [
        ({"batch_size": 8}, (X, Y), {"batch_size": 8}, "batch_size"),
        ({"batch_size": (8, 16)}, (X, Y, 8), {}, "batch_size"),
        ({"epochs": (1, 2)}, (X, Y), {"epochs": 2}, "epochs"),
        ({"epochs": (1, 2)}, (X, Y, 8, 2), {}, "epochs"),
    ],
)
def test_what_is_given_twice(arguments, args, kwargs, name):
    hypermodel, hp, model = build(compiled, **arguments)
    with pytest.raises(FatalValueError, match=f"`{name}` must be given once"):
        hypermodel.fit(hp, model, *args, **kwargs)


# A `fit` of the user's own


@pytest.mark.parametrize(
    "tuner",
    [keras_tuner.RandomSearch, keras_tuner.Hyperband],
    ids=lambda one: one.__name__,
)
def test_the_users_own_fit_is_called_by_every_tuner(tuner, tmp_path):
    hypermodel = searched.OwnFit()
    numbers = {"max_epochs": 2}
    if tuner is keras_tuner.RandomSearch:
        numbers = {"max_trials": 2}
    search = tuner(
        AdamaxClippedHyperModel(hypermodel),
        objective=keras_tuner.Objective("score", "max"),
        directory=tmp_path,
        **numbers,
    )
    search.search(X, Y, verbose=0)
    assert hypermodel.calls >= 2
    (best,) = search.oracle.get_best_trials()
    assert best.score == best.metrics.get_history("score")[0].value[0] > 0
    assert "shuffle" in search.get_best_hyperparameters()[0].values


def test_an_argument_that_the_users_own_fit_sets_too():
    hypermodel = AdamaxClippedHyperModel(searched.OwnEpochs())
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    assert hypermodel.fit(hp, model, X, Y, verbose=0).epoch == [0, 1]
    with pytest.raises(
        FatalValueError, match=r"`epochs` must be given once.*OwnEpochs.fit"
    ):
        hypermodel.fit(hp, model, X, Y, verbose=0, epochs=3)


# Hyperparameters of an optimizer that is replaced


def from_the_guide(hp):
    """As in keras.io's "Getting started with KerasTuner"."""
    model = keras.Sequential([keras.Input((3,))])
    for i in range(hp.Int("num_layers", 1, 2)):
        model.add(keras.layers.Dense(hp.Int(f"units_{i}", 4, 8, step=4)))
    if hp.Boolean("dropout"):
        model.add(keras.layers.Dropout(rate=0.25))
    model.add(keras.layers.Dense(1))
    rate = hp.Float("lr", min_value=1e-4, max_value=1e-2, sampling="log")
    model.compile(keras.optimizers.Adam(learning_rate=rate), loss="mse")
    return model


def with_optimizer(optimizer, **compile_arguments):
    def build_model(hp):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(optimizer(hp), **({"loss": "mse"} | compile_arguments))
        return model

    return build_model


def rate_of_a_schedule(hp):
    rate = hp.Float("lr", 1e-4, 1e-2, default=1e-3)
    return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(rate, 9))


@pytest.mark.parametrize(
    ("build_model", "names"),
    [
        (from_the_guide, ["lr"]),
        (with_optimizer(rate_of_a_schedule), ["lr"]),
        (
            with_optimizer(
                lambda hp: keras.optimizers.Adam(10 ** hp.Float("log", -4, -1))
            ),
            ["log"],
        ),
        (
            with_optimizer(
                lambda hp: keras.optimizers.SGD(
                    hp.Choice("rate", [1e-2, 1e-3]),
                    momentum=hp.Float("momentum", 0.0, 0.9),
                    nesterov=hp.Boolean("nesterov"),
                )
            ),
            ["rate", "momentum", "nesterov"],
        ),
        (
            with_optimizer(lambda hp: hp.Choice("kind", ["sgd", "adam"])),
            ["kind"],
        ),
        (
            with_optimizer(
                lambda hp: LossScaleOptimizer(
                    keras.optimizers.Adam(hp.Float("lr", 1e-4, 1e-2))
                )
            ),
            ["lr"],
        ),
    ],
    ids=id_of,
)
def test_a_hyperparameter_of_the_replaced_optimizer_warns_once(
    build_model, names
):
    hypermodel = AdamaxClippedHyperModel(build_model)
    hp = keras_tuner.HyperParameters()
    words = ", ".join(map(repr, names))
    with pytest.warns(ReplacedOptimizerWarning, match=words) as caught:
        hypermodel.build(hp)
        hypermodel.build(hp)
    (one,) = [w for w in caught if w.category is ReplacedOptimizerWarning]
    assert "AdamaxClippedSpace(learning_rate=" in str(one.message)


def used_twice(hp):
    rate = hp.Float("rate", 0.1, 0.5)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dropout(rate), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(rate), loss="mse")
    return model


def regularized(hp):
    rate = hp.Float("rate", 1e-4, 1e-2)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                1, kernel_regularizer=keras.regularizers.L2(rate)
            ),
        ]
    )
    model.compile(keras.optimizers.Adam(rate), loss="mse")
    return model


def in_the_loss(hp):
    rate = hp.Float("rate", 1e-4, 1e-2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(
        keras.optimizers.Adam(rate),
        loss=lambda y, p: rate * keras.ops.mean((y - p) ** 2),
    )
    return model


def equal_by_chance(hp):
    hp.Float("unused", 0.0, 1.0, default=0.9)
    return dense(hp, optimizer=keras.optimizers.Adam(0.5), loss="mse")


def fails_elsewhere(hp):
    rate = hp.Choice("rate", [0.1, -1.0])
    if rate < 0:
        raise ValueError("negative")
    return dense(hp, optimizer=keras.optimizers.Adam(rate), loss="mse")


@pytest.mark.parametrize(
    "build_model",
    [compiled, used_twice, regularized, in_the_loss, equal_by_chance]
    + [fails_elsewhere],
)
def test_a_hyperparameter_with_an_effect_does_not_warn(build_model):
    # Warnings are errors in these tests.
    build(build_model)


def test_a_builder_without_an_optimizer_is_called_once():
    calls = []

    def build_model(hp):
        calls.append(1)
        return compiled(hp)

    build(build_model)
    assert len(calls) == 1


# Spaces


def test_the_standard_space():
    hypermodel, hp, model = build(compiled)
    assert hypermodel.space == AdamaxClippedSpace()
    assert hp.values["learning_rate"] == 0.001


def test_a_hypermodel_that_is_not_tunable():
    hypermodel, hp, _ = build(compiled, tunable=False, name="fixed")
    assert hypermodel.name == "fixed"
    assert hp.space == []


# Bad input


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((3,), TypeError, "`build_model` must be a function"),
        ((keras_tuner.HyperModel,), TypeError, r"Give an instance of it"),
        (
            (searched.OwnFit().build,),
            TypeError,
            r"never be called. Give OwnFit\(\)",
        ),
        ((compiled, 3), TypeError, "`space` must be an AdamaxClippedSpace"),
        ((compiled, None, 0), ValueError, "batch_size=0"),
        ((compiled, None, True), TypeError, "batch_size=True"),
        ((compiled, None, (8, 4)), ValueError, "must be smaller"),
        ((compiled, None, (8.0, 16.0)), TypeError, "batch_size.low=8.0"),
        ((compiled, None, None, 1.5), TypeError, "epochs=1.5"),
        ((compiled, None, None, None, 3), TypeError, "a dictionary or None"),
        (
            (compiled, None, None, None, {"optimizer": "adam"}),
            ValueError,
            "comes from the space",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        AdamaxClippedHyperModel(*arguments)


def unbuilt(hp):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(loss="mse")
    return model


def without_variables(hp):
    model = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])
    model.compile(loss="mse")
    return model


@pytest.mark.parametrize(
    "build_model, arguments, error, message",
    [
        (lambda hp: None, {}, FatalTypeError, "Is its `return` missing"),
        (lambda hp: "model", {}, FatalTypeError, "must return a keras.Model"),
        (unbuilt, {}, FatalValueError, r"keras.Input\(shape\), or call"),
        (without_variables, {}, FatalValueError, "trainable variables"),
        (dense, {}, FatalValueError, 'compile_arguments={"loss": "mse"}'),
        (
            compiled,
            {"compile_arguments": {"loss": "mse"}},
            FatalValueError,
            "must be None for models that are compiled",
        ),
        (
            lambda hp: (hp.Float("learning_rate", 0.0, 1.0), compiled(hp))[1],
            {},
            ValueError,
            "'learning_rate' is already declared",
        ),
        (
            lambda hp: (hp.Choice("batch_size", [1, 2]), compiled(hp))[1],
            {"batch_size": (1, 2)},
            ValueError,
            "'batch_size' is already declared",
        ),
    ],
)
def test_bad_models(build_model, arguments, error, message):
    hypermodel = AdamaxClippedHyperModel(build_model, **arguments)
    with pytest.raises(error, match=message) as caught:
        hypermodel.build(keras_tuner.HyperParameters())
    assert "\n" not in str(caught.value)
