"""What a worker waits for when all that is left runs elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial

from keras_adamax_tuning.base.notes import note
from keras_adamax_tuning.errors import StorageError
from keras_adamax_tuning.study import attempt_book, owners

# Siblings end their last trials within a few seconds of each other.
_SECONDS_OF_SILENCE = 5


class Waiting:
    """Says what is waited for, and ends a wait that nothing else would end.

    A process of this machine is known to live. One elsewhere gives signs of
    life, but only in a database: in another storage a trial of a machine that
    is off runs for ever. To try it again could run it twice at once, so that
    wait ends with an error.

    Args:
        grace_period: Seconds without a sign of life, or without a report
            where there are no such signs, after which a wait is to end.
        has_beats: Whether the storage keeps signs of life.
    """

    def __init__(self, grace_period: int, has_beats: bool):
        self._grace_period = grace_period
        self._has_beats = has_beats
        self.end()

    def end(self) -> None:
        """Notes that there is something to do."""
        self._waited_for: list[int] = []
        self._reports: Any = None
        self._began = self._changed = 0.0
        self._said = False

    def look(self, running: Mapping[int, FrozenTrial]) -> None:
        """Notes that there is nothing to do yet."""
        now = time.monotonic()
        waited_for = [attempt._trial_id for attempt in running.values()]
        if waited_for != self._waited_for:
            self.end()
            self._waited_for, self._began = waited_for, now
        reports = [len(a.intermediate_values) for a in running.values()]
        if reports != self._reports:
            self._reports, self._changed = reports, now
        number, attempt = next(iter(running.items()))
        # The one that may take longest.
        for other_number, other in running.items():
            if _is_elsewhere(other):
                number, attempt = other_number, other
        if now - self._began >= _SECONDS_OF_SILENCE and not self._said:
            self._said = True
            note(self._sentence(number, attempt))
        if (
            not self._has_beats
            and _is_elsewhere(attempt)
            and now - self._changed > self._grace_period
        ):
            raise StorageError(
                f"Trial {number} runs in {_place(attempt)} and has reported "
                f"nothing for {self._grace_period} s. This kind of storage "
                "has no signs of life, so nobody can tell whether that "
                "process lives. If it does, wait until it has ended and run "
                "the same again. If it does not, give the trial back with "
                f"study.tell({attempt.number}, state=optuna.trial.TrialState."
                "FAIL), where study is the `study` of the oracle, and run the "
                "same again. A database as `storage` needs neither."
            )

    def _sentence(self, number: int, attempt: FrozenTrial) -> str:
        if attempt_book.OWNER not in attempt.user_attrs:
            return (
                f"waiting for trial {number}, which a process has taken "
                "without a word since; it is tried again after "
                f"{self._grace_period} s"
            )
        if not _is_elsewhere(attempt):
            after = "at once if that process ends"
        elif self._has_beats:
            after = f"after {self._grace_period} s without a sign of life"
        else:
            return (
                f"waiting for trial {number}, which runs in {_place(attempt)}; "
                "this kind of storage has no signs of life, so the wait ends "
                f"with an error after {self._grace_period} s without a report"
            )
        return (
            f"waiting for trial {number}, which runs in {_place(attempt)}; it "
            f"is tried again {after}"
        )


def _is_elsewhere(attempt: FrozenTrial) -> bool:
    owner = attempt.user_attrs.get(attempt_book.OWNER)
    return owner is not None and owners.is_elsewhere(owner)


def _place(attempt: FrozenTrial) -> str:
    owner = attempt.user_attrs[attempt_book.OWNER]
    where = "this machine"
    if owners.is_elsewhere(owner):
        # Older records do not name it.
        where = owner.get("host", "another machine")
    return f"process {owner['pid']} of {where}"
