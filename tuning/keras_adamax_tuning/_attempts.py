"""The book of a search: which attempts belong to which logical trial.

Each Optuna trial is one attempt. An attempt that was made for a new logical
trial has no mark, and its logical number is its rank among those; one that
replaces an interrupted attempt names it. Optuna numbers trials in a
transaction and never removes one, so every process that reads the study comes
to the same book, without a lock and whenever it was killed:

- logical numbers follow from the order, so that no two workers can take the
  same one, and a surplus one (two workers made the last at the same moment)
  simply waits for a larger `max_trials`;
- if two workers replace the same attempt, the first of both counts.
"""

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

# Names of the attributes that attempts carry in the study.
RETRY_OF = "keras_adamax:retry_of"
OWNER = "keras_adamax:owner"
PROPOSAL = "keras_adamax:proposal"
RESULT = "keras_adamax:result"


@dataclasses.dataclass
class LogicalAttempts:
    """The attempts at one logical trial, oldest first."""

    number: int
    attempts: list[FrozenTrial]

    @property
    def last(self) -> FrozenTrial:
        return self.attempts[-1]

    @property
    def started(self) -> list[FrozenTrial]:
        return [
            a
            for a in self.attempts
            if a.state != TrialState.WAITING and not was_never_begun(a)
        ]

    @property
    def losses(self) -> int:
        """How many attempts were lost with their worker."""
        return sum(
            is_interrupted(a) and not was_put_back(a) and not was_never_begun(a)
            for a in self.attempts
        )

    @property
    def proposal(self) -> FrozenTrial | None:
        """The first attempt whose hyperparameters were all proposed."""
        return next(
            (a for a in self.attempts if PROPOSAL in a.user_attrs), None
        )

    def trial_id(self, attempt: FrozenTrial) -> str:
        """Name of an attempt, and of its folder."""
        position = [a._trial_id for a in self.attempts].index(attempt._trial_id)
        suffix = f"-retry{position}" if position else ""
        return f"{self.number:04d}{suffix}"


def is_interrupted(attempt: FrozenTrial) -> bool:
    """Whether it ended without a result, so that it is to be tried again."""
    return attempt.state == TrialState.FAIL and (
        "reason" not in result_of(attempt)
    )


def was_put_back(attempt: FrozenTrial) -> bool:
    """Whether the user stopped it (Ctrl-C), which is no loss."""
    return bool(result_of(attempt).get("put_back"))


def was_never_begun(attempt: FrozenTrial) -> bool:
    """Whether it ended before a worker had said that it runs it."""
    return attempt.state == TrialState.FAIL and OWNER not in attempt.user_attrs


def result_of(attempt: FrozenTrial) -> dict[str, Any]:
    """What the attempt recorded beside its score."""
    return attempt.user_attrs.get(RESULT, {})


def read(trials: Iterable[FrozenTrial]) -> list[LogicalAttempts]:
    """The book: all logical trials, by number.

    Args:
        trials: All trials of a study, by their Optuna number.
    """
    book: list[LogicalAttempts] = []
    logical_of: dict[int, LogicalAttempts] = {}
    for trial in trials:
        if RETRY_OF not in trial.system_attrs:
            entry = LogicalAttempts(len(book), [trial])
            book.append(entry)
            logical_of[trial.number] = entry
            continue
        replaced = trial.system_attrs[RETRY_OF]
        entry = logical_of.get(replaced)
        if entry is not None and entry.last.number == replaced:
            entry.attempts.append(trial)
            logical_of[trial.number] = entry
    return book


def due_retries(
    book: Sequence[LogicalAttempts], max_retries: int
) -> list[LogicalAttempts]:
    """The logical trials whose last attempt is to be replaced."""
    return [
        entry
        for entry in book
        if is_interrupted(entry.last) and entry.losses <= max_retries
    ]


def is_over(entry: LogicalAttempts, max_retries: int) -> bool:
    """Whether the logical trial has its result."""
    if not entry.last.state.is_finished():
        return False
    return not is_interrupted(entry.last) or entry.losses > max_retries


def renumbered(book: Sequence[LogicalAttempts]) -> list[FrozenTrial]:
    """The study as it were, had no attempt ever been interrupted.

    Samplers and pruners are shown this, because some of them derive random
    numbers and brackets from the numbers of trials.
    """
    trials = []
    for entry in book:
        trial = copy.copy(entry.last)
        trial.number = entry.number
        trials.append(trial)
    return trials
