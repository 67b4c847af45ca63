"""What every test starts from."""

import collections
import signal
from collections.abc import Iterable
from pathlib import Path

import keras
import pytest

# Of a job in the background a shell makes that it ignores Ctrl-C, and so would
# all that it starts. The tests of stopping press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


HERE = Path(__file__).parent
# Fast paths are slow to test one by one; all other tests run on them, too.
SLOW = [HERE / name for name in ("native", "updates")]
# Of these, quick tests are enough on every backend: figures get numbers,
# whatever they come from, and what is slow in a search is processes, databases
# and signals. `.ci/run` has what is slow on one backend, `.ci/nightly` on all.
HARDLY_BY_BACKEND = [
    HERE / name
    for name in (
        "callbacks/test_trackers.py",
        "docs",
        "plots",
        "test_benchmarks.py",
        "tuning",
    )
]
ONCE = "jax"
# Each test takes long enough that `.ci/nightly` alone tries all combinations.
COMBINED_BY_NIGHT = [
    HERE / name
    for name in (
        "callbacks",
        "native",
        "plots",
        "test_adamax_clipped.py",
        "test_gradient_statistics.py",
        "test_keras_modes.py",
        "test_numerical_faults.py",
        "test_serialization.py",
        "test_skip_nonfinite.py",
        "test_spikes.py",
        "test_target_clip_rate.py",
        "tuning",
        "updates",
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_in(item, SLOW):
            item.add_marker(pytest.mark.slow)
        if (
            _is_slow(item)
            and _is_in(item, HARDLY_BY_BACKEND)
            and keras.backend.backend() != ONCE
        ):
            item.add_marker(pytest.mark.nightly)
    for item in combinations(items):
        item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.nightly)


def combinations(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Those whose parameters' values have all been tried by others.

    The others try each value of each parameter at least once, quick ones
    first.
    """
    by_function = collections.defaultdict(list)
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and hasattr(item, "callspec")
            and _is_in(item, COMBINED_BY_NIGHT)
        ):
            by_function[item.parent, item.originalname].append(item)
    rest = []
    for its in by_function.values():
        tried: set[tuple[str, ...]] = set()
        for is_slow in (False, True):
            left = [item for item in its if _is_slow(item) == is_slow]
            while left:
                item = max(left, key=lambda item: len(_values(item) - tried))
                if not _values(item) - tried:
                    break
                tried |= _values(item)
                left.remove(item)
            rest += left
    return rest


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _is_in(item: pytest.Item, places: Iterable[Path]) -> bool:
    return any(item.path.is_relative_to(place) for place in places)


def _values(item: pytest.Function) -> set[tuple[str, ...]]:
    """What each of its `parametrize` gives, and each parametrized fixture."""
    given = {
        name: str(id(value)) for name, value in item.callspec.params.items()
    }
    found = set()
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",")]
        found.add(tuple(name + given.pop(name) for name in names))
    return found | {(name + value,) for name, value in given.items()}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Names of layers count from the beginning, whatever ran before."""
    keras.utils.clear_session(free_memory=False)
