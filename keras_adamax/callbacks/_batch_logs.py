"""The logs of single batches, which Keras may bring in another thread."""

import threading
from collections.abc import Mapping
from typing import Any

# Seconds. A callback that stands in front may take long, and where one has
# failed in a thread, Keras says so only after our hook.
TIMEOUT = 10.0


class BatchLogs:
    """Keeps the logs of batches that a record may need.

    `bring` may be called in any thread, everything else in `fit`'s.
    """

    def __init__(self) -> None:
        self._logs: dict[int, dict[str, Any]] = {}
        self._awaited: tuple[int, threading.Event] | None = None
        self._they_come = True

    def bring(self, done: int, logs: Mapping[str, Any]) -> None:
        """Keeps the logs of the batch after which `done` are done."""
        self._logs[done] = dict(logs)
        self._they_come = True
        awaited = self._awaited
        if awaited is not None and awaited[0] == done:
            awaited[1].set()

    def wait(self, done: int) -> None:
        """Waits for logs that a thread may bring.

        They need the results that the record has waited for already. So this
        is short, and rows come into a file in the order of their steps. It is
        for order alone: without logs, the record is written later.
        """
        event = threading.Event()
        self._awaited = (done, event)
        if done not in self._logs and self._they_come:
            # `bring` sets it again: one stall is no rule.
            self._they_come = event.wait(timeout=TIMEOUT)
        self._awaited = None

    def take(self, done: int) -> dict[str, Any] | None:
        """Removes and returns the logs of a batch, if they have come."""
        return self._logs.pop(done, None)

    def clear(self) -> None:
        """Forgets all logs."""
        self._logs.clear()
