"""What a signal does in this process. Those of workers: test_workers.py."""

import contextlib
import gc
import os
import signal

import pytest

from keras_adamax_tuning.base import signals

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="signals are POSIX's"
)
NUMBERS = [signal.SIGINT, signal.SIGTERM]


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before
    signals.check()  # nothing is left of the test


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_raised_at_once(number):
    with pytest.raises(KeyboardInterrupt, match=number.name):
        with signals.handled():
            send(number)
            pytest.fail("it went on")


def test_a_signal_before_a_block_within_another_is_not_forgotten():
    with pytest.raises(KeyboardInterrupt):
        with signals.handled(), signals.deferred():
            send(signal.SIGTERM)
            with signals.handled():
                pytest.fail("it went on")


def test_a_signal_of_a_block_within_another_stops_both():
    with pytest.raises(KeyboardInterrupt):
        with signals.handled():
            with contextlib.suppress(KeyboardInterrupt):
                with signals.handled():
                    send(signal.SIGTERM)
            signals.check()
            pytest.fail("it went on")


def test_a_block_within_another_ends_no_deferral():
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with signals.handled(), signals.deferred():
            with signals.handled(), signals.deferred():
                pass
            send(signal.SIGTERM)
            reached.append("after the signal")
            signals.check()
            pytest.fail("it went on")
    assert reached


def test_a_signal_in_a_callback_of_the_garbage_collector(capsys):
    """Python would print an exception there, and go on."""

    def interrupt(phase, info):
        send(signal.SIGTERM)
        gc.callbacks.remove(interrupt)

    reached = []
    with pytest.raises(KeyboardInterrupt):
        with signals.handled():
            gc.callbacks.append(interrupt)
            gc.collect()
            reached.append("after the signal")
    assert reached
    assert capsys.readouterr().err == "stopping; once more to stop at once\n"
