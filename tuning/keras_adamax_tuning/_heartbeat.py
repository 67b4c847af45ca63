"""Signs of life of an attempt, which Optuna's ask-and-tell does not give.

Optuna beats in `Study.optimize` alone. A search that asks and tells has to
call `record_heartbeat` itself, and to look for attempts whose beats have
stopped. Only databases keep beats; elsewhere attempts are known to be dead
when their process is (`_owner`).
"""

import threading

from optuna.storages import BaseStorage, RDBStorage


def prepare(storage: BaseStorage, interval: int, grace_period: int) -> None:
    """Lets a database keep beats, unless its owner has set that up."""
    if isinstance(storage, RDBStorage) and storage.heartbeat_interval is None:
        storage.heartbeat_interval = interval
        storage.grace_period = grace_period


def is_kept_by(storage: BaseStorage) -> bool:
    """Whether the storage knows heartbeats."""
    return isinstance(storage, RDBStorage)


def beat(storage: BaseStorage, trial_id: int) -> None:
    """Records one sign of life, where the storage can."""
    if isinstance(storage, RDBStorage):
        storage.record_heartbeat(trial_id)


def stale_trial_ids(storage: BaseStorage, study_id: int) -> list[int]:
    """The running trials whose last beat is older than the grace period."""
    if not isinstance(storage, RDBStorage):
        return []
    return storage._get_stale_trial_ids(study_id)


class Heartbeat:
    """Beats in a thread of its own for as long as the context is open.

    A beat that fails is tried again at the next interval: a database that is
    away for a while shall not end a training. The trial itself fails where it
    reports its next result, if the database stays away.

    Args:
        storage: The database.
        trial_id: Optuna's id of the trial.
    """

    def __init__(self, storage: BaseStorage, trial_id: int):
        self._storage = storage
        self._trial_id = trial_id
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
        while not self._stop.wait(interval):
            try:
                storage.record_heartbeat(self._trial_id)
                self.last_error = None
            except Exception as error:  # see the docstring of the class
                self.last_error = error
        # Each thread has a connection of its own, to be closed in the thread.
        storage.remove_session()
