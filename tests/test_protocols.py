"""The module of each backend has what its protocol says."""

import inspect

import pytest

from keras_adamax import backends, updates
from keras_adamax.callbacks import _devices

PROTOCOLS = [
    (backends, backends.Backend),
    (updates, updates.Updates),
    (_devices, _devices.Device),
]
CASES = [
    (package, name, member)
    for package, protocol in PROTOCOLS
    for name, member in vars(protocol).items()
    if inspect.isfunction(member) and not name.startswith("_")
]


def test_there_are_protocols():
    assert len(CASES) > 20


@pytest.mark.parametrize(
    ("package", "name", "member"), CASES, ids=[name for _, name, _ in CASES]
)
def test_signatures_agree(package, name, member):
    _, *expected = inspect.signature(member).parameters.values()
    found = inspect.signature(getattr(package.load(), name)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in found] == [
        (p.name, p.kind, p.default) for p in expected
    ]


def test_there_is_a_choice():
    choices = updates.load().CHOICES
    assert choices[0] == "auto"
    assert "reference" in choices
