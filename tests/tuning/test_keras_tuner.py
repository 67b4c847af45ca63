"""Space and hypermodel under KerasTuner's own tuners, as they are."""

import functools
import os
import pathlib
import subprocess
import sys

import keras
import keras_tuner
import numpy as np
import pytest

from keras_adamax_tuning.space.adamax_clipped_space import AdamaxClippedSpace
from keras_adamax_tuning.space.hypermodel import AdamaxClippedHyperModel
from tests.support import repeated

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
STEPS = 2
ROOT = pathlib.Path(__file__).parents[2]


def build_model(hp):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    return model


class Recording(AdamaxClippedHyperModel):
    """Notes with what each trial begins and what it reaches."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.trials = {}

    def fit(self, hp, model, *args, **kwargs):
        (trial_id,) = {
            callback.trial.trial_id
            for callback in kwargs["callbacks"]
            if hasattr(callback, "trial")
        }
        optimizer = model.optimizer
        begin = number(optimizer.iterations)
        moments = np.concatenate(
            [
                keras.ops.convert_to_numpy(variable.value).ravel()
                for variable in optimizer.variables
                if "momentum" in variable.path
            ]
        )
        history = super().fit(hp, model, *args, **kwargs)
        best_epoch = int(np.argmin(history.history["val_loss"]))
        self.trials[trial_id] = {
            "begin": begin,
            "has_moments": bool(np.any(moments != 0)),
            "saved": begin + STEPS * (best_epoch + 1),
            "values": dict(hp.values),
            "optimizer": optimizer.get_config(),
        }
        return history


def number(variable):
    return int(keras.ops.convert_to_numpy(variable))


def search(tuner_class, folder, space, **arguments):
    hypermodel = Recording(build_model, space, batch_size=16)
    tuner = tuner_class(
        hypermodel,
        objective="val_loss",
        directory=folder,
        project_name="search",
        seed=3,
        **arguments,
    )
    tuner.search(X, Y, validation_data=(X, Y), verbose=0)
    for trial in tuner.oracle.trials.values():
        assert trial.status == "COMPLETED", trial.message
    assert set(hypermodel.trials) == set(tuner.oracle.trials)
    return tuner, hypermodel


def small_space():
    return AdamaxClippedSpace(
        learning_rate=[0.001, 0.01],
        beta_1=0.9,
        epsilon=1e-8,
        clip_epsilon=1e-4,
        bias_correction=[False, True],
        weight_decay=[None, 0.1],
        learning_rate_schedule=["constant", "cosine"],
        num_steps=10,
    )


@pytest.mark.parametrize(
    "tuner_class",
    [
        keras_tuner.RandomSearch,
        *repeated(
            # It proposes at random until it has these.
            functools.partial(
                keras_tuner.BayesianOptimization, num_initial_points=1
            ),
            keras_tuner.GridSearch,
        ),
    ],
    ids=["RandomSearch", "BayesianOptimization", "GridSearch"],
)
def test_search(tuner_class, tmp_path):
    tuner, hypermodel = search(
        tuner_class, tmp_path, small_space(), max_trials=3
    )
    assert len(hypermodel.trials) == 3
    for trial in hypermodel.trials.values():
        assert trial["begin"] == 0
        config, values = trial["optimizer"], trial["values"]
        assert config["beta_2"] == pytest.approx(
            1 - values["one_minus_beta_2"], rel=1e-9
        )
        assert config["bias_correction"] is bool(values["bias_correction"])
        assert config["weight_decay"] == (
            None if values["weight_decay"] == "None" else 0.1
        )
        has_schedule = values["learning_rate_schedule"] == "cosine"
        assert has_schedule == isinstance(config["learning_rate"], dict)
        assert has_schedule == ("learning_rate_cosine_alpha" in values)
    best = tuner.get_best_models()[0]
    (trial,) = tuner.oracle.get_best_trials()
    assert number(best.optimizer.iterations) == STEPS
    assert best.evaluate(X, Y, verbose=0) == pytest.approx(trial.score)


@pytest.mark.slow
def test_hyperband_goes_on_with_moments_and_steps(tmp_path):
    space = AdamaxClippedSpace(learning_rate=(0.01, 0.1))
    tuner, hypermodel = search(
        keras_tuner.Hyperband, tmp_path, space, max_epochs=2, factor=2
    )
    trials = hypermodel.trials
    promoted = [t for t in trials.values() if "tuner/trial_id" in t["values"]]
    assert promoted
    for trial in promoted:
        past = trials[trial["values"]["tuner/trial_id"]]
        assert trial["begin"] == past["saved"] > 0
        assert trial["has_moments"]
        assert {
            name: value
            for name, value in trial["values"].items()
            if not name.startswith("tuner/")
        } == {
            name: value
            for name, value in past["values"].items()
            if not name.startswith("tuner/")
        }
    for trial in trials.values():
        if trial not in promoted:
            assert trial["begin"] == 0
            assert not trial["has_moments"]
    best = tuner.get_best_models()[0]
    best_id = tuner.oracle.get_best_trials()[0].trial_id
    assert number(best.optimizer.iterations) == trials[best_id]["saved"]


def test_hyperband_says_that_it_gives_the_epochs(tmp_path):
    tuner = keras_tuner.Hyperband(
        AdamaxClippedHyperModel(build_model, epochs=(1, 3)),
        objective="val_loss",
        max_epochs=2,
        directory=tmp_path,
    )
    with pytest.raises(ValueError, match=r"Hyperband gives `epochs` itself"):
        tuner.search(X, Y, validation_data=(X, Y), verbose=0)


def test_the_best_of_a_search_narrows_the_next(tmp_path):
    space = small_space()
    tuner, _ = search(
        keras_tuner.RandomSearch, tmp_path / "1", space, max_trials=1
    )
    (best,) = tuner.get_best_hyperparameters()
    narrow = space.narrow(best, 0.5)
    tuner, hypermodel = search(
        keras_tuner.RandomSearch, tmp_path / "2", narrow, max_trials=1
    )
    for trial in hypermodel.trials.values():
        config = trial["optimizer"]
        assert config["weight_decay"] == (
            None if best["weight_decay"] == "None" else 0.1
        )
        ratio = (1 - config["beta_2"]) / best["one_minus_beta_2"]
        assert abs(np.log10(ratio)) <= 1.5


def test_the_space_is_explored_in_one_build(tmp_path):
    builds = []

    def counted(hp):
        builds.append(hp)
        return build_model(hp)

    space = AdamaxClippedSpace(
        learning_rate_schedule=["constant", "warmup", "cosine"],
        clip_multiplier_schedule=["constant", "linear"],
        num_steps=10,
    )
    tuner = keras_tuner.RandomSearch(
        AdamaxClippedHyperModel(counted, space),
        objective="val_loss",
        max_trials=1,
        directory=tmp_path,
    )
    names = [p.name for p in tuner.oracle.get_space().space]
    assert "clip_multiplier_linear_num_steps" in names
    assert len(builds) == 1
    # What the builder declares in scopes of its own is looked for.
    builds.clear()

    def with_scope(hp):
        builds.append(hp)
        hp.Boolean("wide")
        with hp.conditional_scope("wide", [True]):
            hp.Int("units", 1, 3)
        return build_model(hp)

    keras_tuner.RandomSearch(
        AdamaxClippedHyperModel(with_scope, space),
        objective="val_loss",
        max_trials=1,
        directory=tmp_path / "scope",
    )
    assert len(builds) == 2


def test_two_optimizers_in_one_search(tmp_path):
    spaces = [
        AdamaxClippedSpace(name_prefix=prefix)
        for prefix in ("encoder_", "decoder_")
    ]

    def build_two(hp):
        model = build_model(hp)
        # Keras puts them apart by layer; here it is enough that they exist.
        model.both = [space.build_optimizer(hp) for space in spaces]
        model.compile(optimizer=model.both[0], loss="mse")
        return model

    tuner = keras_tuner.RandomSearch(
        build_two, objective="val_loss", max_trials=2, directory=tmp_path
    )
    tuner.search(X, Y, validation_data=(X, Y), verbose=0)
    names = {p.name for p in tuner.oracle.get_space().space}
    assert len(names) == 20
    values = tuner.get_best_hyperparameters()[0].values
    assert values["encoder_learning_rate"] != values["decoder_learning_rate"]


WITHOUT_TENSORFLOW = """
import sys

import tests.no_tensorflow
import keras_tuner
from tests.tuning import test_keras_tuner as tests

for tuner, arguments in (
    (keras_tuner.RandomSearch, {"max_trials": 1}),
    (
        keras_tuner.BayesianOptimization,
        {"max_trials": 2, "num_initial_points": 1},
    ),
    (keras_tuner.GridSearch, {"max_trials": 1}),
    (keras_tuner.Hyperband, {"max_epochs": 1}),
):
    folder = sys.argv[1] + "/" + tuner.__name__
    tuner, _ = tests.search(tuner, folder, tests.small_space(), **arguments)
    assert tuner.get_best_models()[0].optimizer.built
assert "tensorflow" not in sys.modules
print("done")
"""


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="asks what happens without TensorFlow",
)
def test_search_without_tensorflow(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tuning")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
