"""The examples in the docstrings do what they say."""

import doctest
import importlib
import pkgutil

import keras
import pytest

import keras_adamax

# Those need records: tests/plots runs them with some.
WITHOUT_OWN_DATA = ("keras_adamax.plots",)


def modules():
    """All modules that can be imported on this backend."""
    for info in pkgutil.walk_packages(keras_adamax.__path__, "keras_adamax."):
        backend = info.name.removeprefix("keras_adamax.kernels.")
        is_kernel = info.name.startswith("keras_adamax.kernels.")
        if is_kernel and backend != keras.backend.backend():
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
        if not name.endswith("Statistics") and name != "Spike":
            assert ">>>" in documentation, name
