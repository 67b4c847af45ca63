"""The attempts that run in this process, from the claim to the result."""

import dataclasses
from typing import Any

import keras_tuner
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from keras_adamax_tuning.errors import StorageError
from keras_adamax_tuning.study import attempt_book, heartbeats, owners
from keras_adamax_tuning.study.claims import Claims
from keras_adamax_tuning.study.keras_trials import KerasTrial
from keras_adamax_tuning.study.opened_study import OpenedStudy
from keras_adamax_tuning.study.proposals import Proposals, with_values
from keras_adamax_tuning.study.retries import Retries


class AttemptLost(Exception):
    """This attempt was given up by another worker: its result is void."""


@dataclasses.dataclass
class RunningAttempt:
    """An attempt that runs in this process.

    Attributes:
        trial: It in KerasTuner's terms.
        attempt_id: Optuna's id of it.
        number: Number of its trial.
        count: How many attempts there are at that trial.
        owner: Who runs it, as the study says.
        seed: Of the trial.
        result: What is recorded beside the score when it ends.
    """

    trial: KerasTrial
    attempt_id: int
    number: int
    count: int
    owner: dict[str, Any]
    seed: int
    result: dict[str, Any] = dataclasses.field(default_factory=dict)


class RunningAttempts:
    """Begins attempts, reports of them, and publishes their results."""

    def __init__(
        self,
        opened: OpenedStudy,
        claims: Claims,
        retries: Retries,
        proposals: Proposals,
    ):
        self._opened = opened
        self.claims = claims
        self.retries = retries
        self._proposals = proposals
        self._running: dict[str, RunningAttempt] = {}

    def __getitem__(self, trial_id: str) -> RunningAttempt:
        return self._running[trial_id]

    def __contains__(self, trial_id: str) -> bool:
        return trial_id in self._running

    def begin_next(
        self, max_trials: int, hyperparameters: keras_tuner.HyperParameters
    ) -> RunningAttempt | str:
        """Claims an attempt, says who runs it, and what it tries.

        Args:
            max_trials: How many trials the search has.
            hyperparameters: A copy of the space for the trial.

        Returns:
            The attempt; or KerasTuner's word for the state of the search, if
            there is none.
        """
        space = hyperparameters.space
        while True:
            claim = self.claims.claim(
                max_trials,
                lambda number: self._proposals.can_propose(number, space),
            )
            if isinstance(claim, str):
                return claim
            begun = self._begin(claim, hyperparameters)
            if begun is not None:
                return begun

    def _begin(
        self,
        entry: attempt_book.Entry,
        hyperparameters: keras_tuner.HyperParameters,
    ) -> RunningAttempt | None:
        """Begins the last attempt at a trial; None if others gave up on it."""
        owner = owners.claim()
        attempt = entry.last
        trial_id = entry.trial_id(attempt)
        try:
            self._opened.cached.set_trial_user_attr(
                attempt._trial_id, attempt_book.OWNER, owner
            )
            proposal = attempt.user_attrs.get(attempt_book.PROPOSAL)
            if proposal is None:
                proposal = self._proposals.propose(
                    attempt._trial_id, entry.number, hyperparameters.space
                )
        except UpdateFinishedTrialError:
            # This process slept for so long that another gave up on it.
            owners.release(owner)
            return None
        except StorageError:
            self.retries.put_back_later(trial_id, owner)
            raise
        except BaseException:
            self.retries.put_back(attempt._trial_id, trial_id, owner)
            raise
        values = with_values(hyperparameters, proposal["values"])
        begun = self._running[trial_id] = RunningAttempt(
            KerasTrial(values, trial_id=trial_id),
            attempt._trial_id,
            entry.number,
            len(entry.attempts),
            owner,
            proposal["seed"],
        )
        return begun

    def heartbeat(self, trial_id: str) -> heartbeats.Heartbeat:
        """A context in which an attempt gives signs of life."""
        return heartbeats.Heartbeat(
            self._opened.storage,
            self._running[trial_id].attempt_id,
            self._opened.cached.note_failure,
        )

    def report(self, trial_id: str, value: float, step: int) -> bool:
        """Records the objective after an epoch; whether to end the trial."""
        running = self._running[trial_id]
        try:
            return self._proposals.report(
                running.attempt_id, running.number, float(value), step
            )
        except UpdateFinishedTrialError:
            raise AttemptLost(trial_id) from None

    def publish(
        self, trial_id: str, state: TrialState, value: float | None
    ) -> bool:
        """Whether this attempt, and no other process, ended its trial."""
        running = self._running[trial_id]
        result = attempt_book.to_python(running.result)
        try:
            self._opened.cached.set_trial_user_attr(
                running.attempt_id, attempt_book.RESULT, result
            )
            self._proposals.tell(
                running.attempt_id, running.number, state, value
            )
        except UpdateFinishedTrialError:
            return False
        return True

    def put_back(self, trial_id: str) -> None:
        """Gives an attempt back, if it runs here."""
        running = self._running.pop(trial_id, None)
        if running is not None:
            self.retries.put_back(running.attempt_id, trial_id, running.owner)

    def put_back_later(self, trial_id: str) -> None:
        """As `put_back`, for when the database is away."""
        running = self._running.pop(trial_id, None)
        if running is not None:
            self.retries.put_back_later(trial_id, running.owner)

    def abandon(self, trial_id: str) -> None:
        """Forgets an attempt that has ended."""
        running = self._running.pop(trial_id, None)
        if running is not None:
            owners.release(running.owner)
