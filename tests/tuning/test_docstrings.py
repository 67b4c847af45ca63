"""The examples in the docstrings of the search package do what they say."""

import dataclasses
import doctest
import importlib
import pkgutil

import keras_adamax_tuning
import pytest


def modules():
    return [
        info.name
        for info in pkgutil.walk_packages(
            keras_adamax_tuning.__path__, "keras_adamax_tuning."
        )
        # It runs the command.
        if not info.name.endswith(".__main__")
    ]


@pytest.mark.parametrize("name", modules())
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(
        importlib.import_module(name),
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
