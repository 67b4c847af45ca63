"""The examples in the docstrings of the search package do what they say."""

import dataclasses
import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import optuna
import pytest

import keras_adamax_tuning

MODELS = """
import keras

def build_model(hp):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    return model
"""


def modules():
    """All modules that can be imported on this backend."""
    for info in pkgutil.walk_packages(
        keras_adamax_tuning.__path__, "keras_adamax_tuning."
    ):
        name = info.name.rpartition(".")[2]
        # `jax_compilations` needs JAX; `__main__` runs the command.
        of_another = (
            name.startswith("jax_") and keras.backend.backend() != "jax"
        )
        if name != "__main__" and not of_another:
            yield info.name


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """What examples may take as given: models, data, and a finished search."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    data = {
        "x_train": x[:24],
        "y_train": y[:24],
        "x_val": x[24:],
        "y_val": y[24:],
    }
    np.savez(tmp_path / "digits.npz", **data)
    oracle = finished_search()
    yield {
        "build_model": importlib.import_module("models").build_model,
        "x": x,
        "y": y,
        "data": data,
        "oracle": oracle,
        "trials": oracle.logical_trials(),
        "space": oracle.hyperparameters.space,
        "Path": Path,
    }
    del sys.modules["models"]


def finished_search():
    hp = keras_tuner.HyperParameters()
    hp.Float("learning_rate", 1e-4, 1e-1, sampling="log")
    hp.Int("units", 4, 64)
    oracle = keras_adamax_tuning.OptunaOracle(
        keras_tuner.Objective("val_loss", "min"),
        max_trials=4,
        seed=0,
        hyperparameters=hp,
        storage=optuna.storages.InMemoryStorage(),
    )
    oracle.verbose = False
    for score in (0.5, 0.2, 0.4, 0.3):
        trial = oracle.create_trial("worker")
        oracle.update_trial(trial.trial_id, {"val_loss": score})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    return oracle


@pytest.mark.parametrize("name", list(modules()))
def test_examples(name, surroundings):
    result = doctest.testmod(
        importlib.import_module(name),
        extraglobs=surroundings,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.failed == 0


def public_classes_and_functions():
    for name in keras_adamax_tuning.__all__:
        item = getattr(keras_adamax_tuning, name)
        is_error = isinstance(item, type) and issubclass(item, Exception)
        # Records and errors are what others hand out.
        if not is_error and not dataclasses.is_dataclass(item):
            yield name


@pytest.mark.parametrize("name", list(public_classes_and_functions()))
def test_public_names_have_examples(name):
    assert ">>>" in getattr(keras_adamax_tuning, name).__doc__
