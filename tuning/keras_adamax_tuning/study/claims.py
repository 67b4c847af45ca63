"""Which attempt a process runs next."""

from collections.abc import Callable

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from keras_adamax_tuning.study import attempt_book, heartbeats
from keras_adamax_tuning.study.keras_trials import TrialStatus
from keras_adamax_tuning.study.opened_study import OpenedStudy
from keras_adamax_tuning.study.retries import Retries
from keras_adamax_tuning.study.waiting import Waiting


class Claims:
    """Makes attempts this process's own.

    Args:
        opened: The study.
        retries: Replaces what was lost.
        grace_period: Seconds without a sign of life after which a worker
            counts as dead.
    """

    def __init__(
        self, opened: OpenedStudy, retries: Retries, grace_period: int
    ):
        self._opened = opened
        self._retries = retries
        self._waiting = Waiting(
            grace_period, heartbeats.is_kept_by(opened.storage)
        )

    def claim(
        self, max_trials: int, can_propose: Callable[[int], bool]
    ) -> attempt_book.Entry | str:
        """Makes an attempt this process's own, or says why there is none.

        Args:
            max_trials: How many trials the search has.
            can_propose: Whether there is something to propose for a trial, by
                its number.

        Returns:
            The trial whose last attempt it is, or KerasTuner's word for the
            state of the search.
        """
        found = self._find(max_trials, can_propose)
        if found != TrialStatus.IDLE:
            self._waiting.end()
        return found

    def _find(
        self, max_trials: int, can_propose: Callable[[int], bool]
    ) -> attempt_book.Entry | str:
        while True:
            trials = self._opened.read()
            book = attempt_book.read(trials)
            if self._retries.replace_lost(trials, book):
                continue
            entries = book[:max_trials]
            waiting = [e for e in entries if e.last.state == TrialState.WAITING]
            for entry in waiting:
                if self.take(entry.last):
                    return entry
            if waiting:
                continue  # other workers were faster
            running = {
                entry.number: entry.last
                for entry in entries
                if entry.last.state == TrialState.RUNNING
            }
            # One that has not said who runs it has died, or is about to tell.
            # A search that goes on before its dead trial would propose
            # something else than one that was not killed.
            is_taken_silently = any(
                attempt_book.OWNER not in a.user_attrs for a in running.values()
            )
            if (
                not is_taken_silently
                and len(book) < max_trials
                and can_propose(len(book))
            ):
                self._opened.cached.create_new_trial(
                    self._opened.study_id,
                    optuna.trial.create_trial(state=TrialState.WAITING),
                )
                continue
            if running:
                self._waiting.look(running)
                return TrialStatus.IDLE
            return TrialStatus.STOPPED

    def take(self, attempt: FrozenTrial) -> bool:
        """Whether a waiting attempt is this process's own from here on."""
        # First, so that one whose worker dies at once is noticed, too.
        self._opened.cached.patiently(
            lambda: heartbeats.beat(self._opened.storage, attempt._trial_id)
        )
        try:
            return self._opened.cached.set_trial_state_values(
                attempt._trial_id, TrialState.RUNNING
            )
        except UpdateFinishedTrialError:
            return False
