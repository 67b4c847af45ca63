"""Which attempts no process works on any more."""

import datetime
import math
import time
from collections.abc import Sequence

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from keras_adamax_tuning.base.notes import note
from keras_adamax_tuning.study import (
    attempt_book,
    database,
    heartbeats,
    owners,
)
from keras_adamax_tuning.study.opened_study import OpenedStudy

# How long a beat may take that is due.
_SECONDS_TO_BEAT_AGAIN = 1
# Signs of life that are older are not missing because of an outage.
_SECONDS_OF_LONGEST_OUTAGE = 600


class Liveness:
    """Judges by processes on this machine, and by signs of life elsewhere."""

    def __init__(self, opened: OpenedStudy, grace_period: int):
        self._opened = opened
        self._grace_period = grace_period
        self._warned_of_sqlite = False

    def dead(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The attempts that no process works on any more."""
        running = [t for t in trials if t.state == TrialState.RUNNING]
        if not running:
            return []
        stale = self._stale()
        dead = []
        for attempt in running:
            owner = attempt.user_attrs.get(attempt_book.OWNER)
            is_stale = attempt._trial_id in stale
            if owner is None:
                is_dead = not heartbeats.is_kept_by(
                    self._opened.storage
                ) and self._started_long_ago(attempt)
            else:
                is_dead = owners.is_surely_dead(owner)
                is_stale = is_stale and not owners.surely_lives(owner)
            if is_dead or is_stale:
                dead.append(attempt)
            elif owner is not None and owners.is_elsewhere(owner):
                self._warn_of_sqlite(attempt)
        return dead

    def _stale(self) -> list[int]:
        """The attempts whose worker gives no signs of life.

        After an outage or a pause of the database, and after a suspend of
        this machine, all signs are old. Living workers need an interval to
        give new ones, and so does one that this process has not watched for
        that long.
        """
        storage, cached = self._opened.storage, self._opened.cached
        if not isinstance(storage, RDBStorage):
            return []

        def ask(later: int) -> list[int]:
            return cached.patiently(
                lambda: heartbeats.stale_trial_ids(
                    storage, self._opened.study_id, later
                )
            )

        stale = ask(0)
        if not stale:
            return []
        since = max(cached.answers_since, database.connected_at(storage))
        watched = time.monotonic() - since
        interval = heartbeats.interval_of(storage)
        if watched > interval + _SECONDS_TO_BEAT_AGAIN:
            return stale
        pause = math.ceil(cached.longest_pause_seen)
        return ask(max(_SECONDS_OF_LONGEST_OUTAGE, pause))

    def _started_long_ago(self, attempt: FrozenTrial) -> bool:
        started = attempt.datetime_start
        assert started is not None
        age = datetime.datetime.now() - started
        return age.total_seconds() > self._grace_period

    def _warn_of_sqlite(self, attempt: FrozenTrial) -> None:
        storage = self._opened.storage
        if (
            self._warned_of_sqlite
            or not isinstance(storage, RDBStorage)
            or storage.engine.dialect.name != "sqlite"
        ):
            return
        self._warned_of_sqlite = True
        host = attempt.user_attrs[attempt_book.OWNER].get("host", "unknown")
        file = storage.engine.url.database
        note(
            f"warning: another machine or container ({host}) seems to work "
            f"with the SQLite file {file}, too. SQLite is for one machine: on "
            "a file system that several share the record can break, and signs "
            "of life are judged by clocks that differ. Stop one of them, and "
            "use PostgreSQL (`storage`) for several machines. Go on if that "
            "machine is off, or if it is this one before a restart"
        )
