"""What every test starts from."""

import signal

import keras
import pytest

# Of a job in the background a shell makes that it ignores Ctrl-C, and so would
# all that it starts. The tests of stopping press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Names of layers count from the beginning, whatever ran before."""
    keras.utils.clear_session(free_memory=False)
