"""Signs of life of an attempt, which Optuna's ask-and-tell does not give.

Optuna beats in `Study.optimize` alone. A search that asks and tells has to
call `record_heartbeat` itself, and to look for attempts whose beats have
stopped. Only databases keep beats; elsewhere attempts are known to be dead
when their process is (`_owner`).
"""

import math
import threading
import time
from collections.abc import Callable

from optuna.storages import BaseStorage, RDBStorage

_SECONDS_TO_TRY_AGAIN = 1


def prepare(storage: BaseStorage, interval: int, grace_period: int) -> None:
    """Lets a database keep beats, unless its owner has set that up."""
    if isinstance(storage, RDBStorage) and storage.heartbeat_interval is None:
        storage.heartbeat_interval = interval
        storage.grace_period = grace_period


def is_kept_by(storage: BaseStorage) -> bool:
    """Whether the storage knows heartbeats."""
    return isinstance(storage, RDBStorage)


def interval_of(storage: BaseStorage) -> float:
    """Seconds between two beats; infinity where nobody beats."""
    if not isinstance(storage, RDBStorage):
        return math.inf
    interval = storage.get_heartbeat_interval()
    return math.inf if interval is None else interval


def beat(storage: BaseStorage, trial_id: int) -> None:
    """Records one sign of life, where the storage can."""
    if isinstance(storage, RDBStorage):
        storage.record_heartbeat(trial_id)


def stale_trial_ids(
    storage: BaseStorage, study_id: int, later: int = 0
) -> list[int]:
    """The running trials whose last beat is older than the grace period."""
    if not isinstance(storage, RDBStorage):
        return []
    before = storage.grace_period
    assert storage.heartbeat_interval is not None
    try:
        storage.grace_period = later + (
            2 * storage.heartbeat_interval if before is None else before
        )
        return storage._get_stale_trial_ids(study_id)
    finally:
        storage.grace_period = before


class Heartbeat:
    """Beats in a thread of its own for as long as the context is open.

    A beat that fails is tried again soon: a database that is away for a while
    shall not end a training, and when it is back, other workers shall see at
    once that this one lives. The trial itself fails where it reports its next
    result, if the database stays away.

    Args:
        storage: The database.
        trial_id: Optuna's id of the trial.
        on_failure: Called with 0 when a beat has failed, and with its seconds
            when it has taken longer than an interval. Defaults to nothing.
    """

    def __init__(
        self,
        storage: BaseStorage,
        trial_id: int,
        on_failure: Callable[[float], None] = lambda seconds: None,
    ):
        self._storage = storage
        self._trial_id = trial_id
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_error: Exception | None = None

    def __enter__(self) -> "Heartbeat":
        if isinstance(self._storage, RDBStorage):
            self._thread = threading.Thread(
                target=self._run,
                args=(self._storage,),
                name="keras_adamax_heartbeat",
                daemon=True,
            )
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, storage: RDBStorage) -> None:
        interval = storage.get_heartbeat_interval()
        assert interval is not None
        pause = interval
        while not self._stop.wait(pause):
            begun = time.monotonic()
            try:
                storage.record_heartbeat(self._trial_id)
                self.last_error = None
                pause = interval
                seconds = time.monotonic() - begun
                if seconds > interval:
                    self._on_failure(seconds)
            except Exception as error:  # see the docstring of the class
                self.last_error = error
                self._on_failure(0.0)
                pause = min(interval, _SECONDS_TO_TRY_AGAIN)
        # Each thread has a connection of its own, to be closed in the thread.
        storage.remove_session()
