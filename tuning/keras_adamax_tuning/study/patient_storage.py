"""A storage that outlives short outages of its database.

Every access of a search goes through here. A call that the database did not
answer is repeated for a while, and what cannot be cured comes out as a
`StorageError` without credentials. The answer to a commit can be lost though
the commit was not: where a second one would do harm, the record is looked at
before the call is repeated.

A database that stands still for a while answers late, and nothing fails. Nor
does anything fail in a suspend of the machine. Both are noted, because signs
of life are missing afterwards.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from keras_adamax_tuning.base import signals
from keras_adamax_tuning.base.notes import note
from keras_adamax_tuning.errors import StorageError
from keras_adamax_tuning.study import attempt_book, database_errors
from keras_adamax_tuning.study.storage_views import (
    ForwardingStorage,
    forward,
)

SECONDS_TO_WAIT = 90
_SECONDS_BETWEEN_TRIES = 1.0
# Tells the trial that a call made from those of other workers.
_TOKEN = "keras_adamax:token"

_Result = TypeVar("_Result")


def patiently(
    call: Callable[[], _Result],
    place: str | BaseStorage,
    *,
    again: Callable[[], _Result] | None = None,
    known: bool = True,
    on_failure: Callable[[], None] = lambda: None,
) -> _Result:
    """Calls until the database answers, and says so when that takes time.

    Args:
        call: What to do.
        place: URL of the database, or the storage, for messages.
        again: What to do after a failure, which may have been of the answer
            only. Defaults to `None`, for the same.
        known: Whether the database has answered before: one that never has is
            waited for only if it says that it is busy. Defaults to `True`.
        on_failure: Called after each failure.
    """
    end = None
    while True:
        try:
            result = call()
        except database_errors.RAISED as error:
            may_pass = database_errors.may_pass(error, known)
            failure = database_errors.explain(place, error)
            reason = database_errors.reason(place, error)
        else:
            if end is not None:
                note(f"{database_errors.name_of(place)} answers again")
            return result
        # Outside of the handler: the error in it may have credentials.
        on_failure()
        if not may_pass:
            raise failure from None
        if end is None:
            end = time.monotonic() + SECONDS_TO_WAIT
            note(
                f"{database_errors.name_of(place)} does not answer "
                f"({reason}); trying again for up to {SECONDS_TO_WAIT} s"
            )
        elif time.monotonic() > end:
            raise StorageError(
                f"{failure} It has not answered for {SECONDS_TO_WAIT} s; what "
                "has ended is recorded, and the same search goes on when it "
                "runs again."
            ) from None
        _pause()
        call = again or call


def _pause() -> None:
    end = time.monotonic() + _SECONDS_BETWEEN_TRIES
    while time.monotonic() < end:
        signals.check()
        time.sleep(0.1)


def _clocks() -> tuple[float, float]:
    """The time of day, and a clock that stands still in a suspend."""
    return time.time(), time.monotonic()


class PatientStorage(ForwardingStorage):
    """Repeats what the database did not answer.

    Args:
        real: The storage, with Optuna's cache around it if it has one.
        place: URL of the database, or the storage, for messages.
        longest_pause: Seconds after which an answer is late, and after which
            a suspend of the machine matters.

    Attributes:
        answers_since: Since when, on the clock of `time.monotonic`, the
            database has answered in time and without a failure, and the
            machine was awake.
        longest_pause_seen: Seconds of the longest pause that was longer.
    """

    def __init__(
        self,
        real: BaseStorage,
        place: str | BaseStorage,
        longest_pause: float,
    ):
        super().__init__(real)
        self._place = place
        self._longest_pause = longest_pause
        self._last_clocks = _clocks()
        self.longest_pause_seen = 0.0
        self.answers_since = time.monotonic()

    def note_failure(self, seconds: float = 0.0) -> None:
        """Notes that the database did not answer in time, to whomever."""
        self.longest_pause_seen = max(self.longest_pause_seen, seconds)
        self.answers_since = time.monotonic()

    def _note_pauses(self, begun: float) -> None:
        """Looks at the clocks after a call that began at `begun`."""
        day_before, before = self._last_clocks
        day, now = self._last_clocks = _clocks()
        suspended = (day - day_before) - (now - before)
        pause = max(suspended, now - begun)
        if pause > self._longest_pause:
            self.note_failure(pause)

    def patiently(
        self,
        call: Callable[[], _Result],
        again: Callable[[], _Result] | None = None,
    ) -> _Result:
        """Calls until the database answers; see the function."""
        begun = time.monotonic()
        result = patiently(
            call, self._place, again=again, on_failure=self.note_failure
        )
        self._note_pauses(begun)
        return result

    def _call(self, call: Callable[[], Any]) -> Any:
        # What reads, or writes the same again, may be repeated as it is.
        return self.patiently(call)

    get_trial_id_from_study_id_trial_number = forward(
        "get_trial_id_from_study_id_trial_number"
    )
    remove_session = forward("remove_session")

    def create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> int:
        """As in Optuna; made once, however often it is repeated."""
        template = template_trial or optuna.trial.create_trial(
            state=TrialState.RUNNING
        )
        token = secrets.token_hex(8)
        template.system_attrs[_TOKEN] = token

        def call() -> int:
            return self._real.create_new_trial(study_id, template)

        def again() -> int:
            for trial in self._real.get_all_trials(study_id, deepcopy=False):
                if trial.system_attrs.get(_TOKEN) == token:
                    return trial._trial_id
            return call()

        return self.patiently(call, again)

    def set_trial_state_values(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None = None,
    ) -> bool:
        """As in Optuna; a repeated call knows whether the first has done it."""

        def call() -> bool:
            return self._real.set_trial_state_values(trial_id, state, values)

        def again() -> bool:
            trial = self._real.get_trial(trial_id)
            if trial.state != state:
                return call()
            if state != TrialState.RUNNING:
                return True
            # This call has taken it, or another worker has. Nobody begins
            # before it has said who it is, so that nobody loses anything.
            if attempt_book.OWNER not in trial.user_attrs:
                self._real.set_trial_state_values(trial_id, TrialState.FAIL)
            return False

        return self.patiently(call, again)
