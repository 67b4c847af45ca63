"""SIGTERM, which schedulers of clusters send, stops a search like Ctrl-C."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGTERM, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Keeps both signals waiting, also for processes that start meanwhile.

    A process that is still importing would answer with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_once_in_worker(parent: int) -> None:
    """Makes the first signal stop this worker, and lets nothing disturb it.

    A terminal sends Ctrl-C to all processes, and the parent sends it, too:
    the second must not interrupt what the first one cleans up. If the parent
    is gone, the worker stops as well: nobody would know of it any more.

    Args:
        parent: Process id of the parent.
    """
    for number in _STOPPING:
        signal.signal(number, _interrupt_once)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _interrupt_once(number: int, frame: Any) -> None:
    for other in _STOPPING:
        signal.signal(other, signal.SIG_IGN)
    _interrupt(number, frame)
