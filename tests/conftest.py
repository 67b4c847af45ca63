"""What every test starts from."""

import signal
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
# Figures and trackers get numbers, whatever backend they come from: what is
# slow there runs once.
WITHOUT_BACKEND = [
    HERE / name for name in ("plots", "callbacks/test_trackers.py")
]
ONCE = "jax"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        places = [item.path, *item.path.parents]
        if any(folder in places for folder in SLOW):
            item.add_marker(pytest.mark.slow)
        if (
            item.get_closest_marker("slow") is not None
            and any(place in places for place in WITHOUT_BACKEND)
            and keras.backend.backend() != ONCE
        ):
            reason = f"needs no backend: it runs on {ONCE}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fresh_keras():
    """Names of layers count from the beginning, whatever ran before."""
    keras.utils.clear_session(free_memory=False)
