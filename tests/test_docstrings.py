"""The examples in the docstrings do what they say."""

import doctest
import importlib
import pkgutil

import keras
import pytest

import keras_adamax
from keras_adamax.backends import BACKENDS

# Those need records: tests/plots runs them with some.
WITHOUT_OWN_DATA = ("keras_adamax.plots",)


def modules():
    """All modules that can be imported on this backend."""
    for info in pkgutil.walk_packages(keras_adamax.__path__, "keras_adamax."):
        # `torch_eager`, say, is of PyTorch.
        backend = info.name.rpartition(".")[2].partition("_")[0]
        if backend in BACKENDS and backend != keras.backend.backend():
            continue
        if not info.name.startswith(WITHOUT_OWN_DATA):
            yield info.name


@pytest.mark.parametrize("name", list(modules()))
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.failed == 0


def test_public_classes_have_examples():
    for name in keras_adamax.__all__:
        documentation = getattr(keras_adamax, name).__doc__
        if name == "trackers":
            continue  # what is in it needs a tracker
        if not name.endswith("Statistics") and name != "Spike":
            assert ">>>" in documentation, name
