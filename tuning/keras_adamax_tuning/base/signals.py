"""Ctrl-C, and SIGTERM, which schedulers of clusters send, stop a search.

An exception out of a signal's handler can come up anywhere. In a callback of
the garbage collector, of which JAX has one, it is printed and forgotten; in
the middle of a transaction it does no good either. While trials run, a signal
is therefore noted only, and looked at before each batch. So is one in such a
callback at any time.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from multiprocessing import resource_tracker

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class _State:
    requested = False
    # Whether a signal is noted only, until `check`.
    deferred = False
    # Whether a second signal stops at once.
    impatient = True


def check() -> None:
    """Raises KeyboardInterrupt if a signal has come."""
    if _State.requested:
        raise KeyboardInterrupt


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Makes both signals raise KeyboardInterrupt in the main thread.

    A signal of a block within another is one of both.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, _handle) for number in _STOPPING}
    try:
        check()
        yield
        check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if _handle not in before.values():
            _State.requested = False


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Makes a signal wait until `check`; a second one waits for nothing."""
    before, _State.deferred = _State.deferred, True
    try:
        check()
        yield
    finally:
        _State.deferred = before


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Keeps both signals waiting, also for processes that start meanwhile.

    A process that is still importing would answer with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    # Python starts it with the first process, and lets signals through then.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_in_worker(parent: int) -> None:
    """Handles signals for the rest of this process, a worker's.

    A terminal sends Ctrl-C to all processes, and the parent sends it, too:
    the second must not disturb what the first one cleans up. If the parent
    is gone, the worker stops as well: nobody would know of it any more.
    """
    _State.impatient = False
    for number in _STOPPING:
        signal.signal(number, _handle)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _handle(number: int, frame: types.FrameType | None) -> None:
    again, _State.requested = _State.requested, True
    if again and not _State.impatient:
        return
    if (_State.deferred or _is_lost(frame)) and not again:
        if _State.impatient:
            print("stopping; once more to stop at once", file=sys.stderr)
        return
    raise KeyboardInterrupt(signal.Signals(number).name)


def _is_lost(frame: types.FrameType | None) -> bool:
    """Whether an exception here would be printed and forgotten."""
    codes = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False
