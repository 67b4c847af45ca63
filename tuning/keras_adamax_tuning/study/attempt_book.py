"""The book of a search: which attempts belong to which trial.

Each trial of the Optuna study is one attempt at a trial of the search. An
attempt that was made for a new trial has no mark, and the number of the trial
is its rank among those; one that replaces an interrupted attempt names it.
Optuna numbers its trials in a transaction and never removes one, so every
process that reads the study comes to the same book, without a lock and
whenever it was killed:

- numbers follow from the order, so that no two workers can take the same one,
  and a surplus one (two workers made the last at the same moment) simply waits
  for a larger `max_trials`;
- if two workers replace the same attempt, the first of both counts.
"""

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

# Names of the attributes that attempts carry in the study.
RETRY_OF = "keras_adamax:retry_of"
OWNER = "keras_adamax:owner"
PROPOSAL = "keras_adamax:proposal"
RESULT = "keras_adamax:result"


@dataclasses.dataclass
class Entry:
    """The attempts at one trial, oldest first."""

    number: int
    attempts: list[FrozenTrial]

    @property
    def last(self) -> FrozenTrial:
        """The attempt that was made last."""
        return self.attempts[-1]

    @property
    def started(self) -> list[FrozenTrial]:
        """The attempts that a worker has begun."""
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


def read(trials: Iterable[FrozenTrial]) -> list[Entry]:
    """The book of a study's trials: an entry for each trial, by number."""
    book: list[Entry] = []
    entry_of: dict[int, Entry] = {}
    for trial in trials:
        if RETRY_OF not in trial.system_attrs:
            entry = Entry(len(book), [trial])
            book.append(entry)
            entry_of[trial.number] = entry
            continue
        replaced = trial.system_attrs[RETRY_OF]
        entry = entry_of.get(replaced)
        if entry is not None and entry.last.number == replaced:
            entry.attempts.append(trial)
            entry_of[trial.number] = entry
    return book


def due_retries(book: Sequence[Entry], max_retries: int) -> list[Entry]:
    """The trials whose last attempt is to be replaced."""
    return [
        entry
        for entry in book
        if is_interrupted(entry.last) and entry.losses <= max_retries
    ]


def is_over(entry: Entry, max_retries: int) -> bool:
    """Whether the trial has its result."""
    if not entry.last.state.is_finished():
        return False
    return not is_interrupted(entry.last) or entry.losses > max_retries


def over(book: Sequence[Entry], max_retries: int) -> list[Entry]:
    """The trials that have their result."""
    return [entry for entry in book if is_over(entry, max_retries)]


def renumbered(book: Sequence[Entry]) -> list[FrozenTrial]:
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


def to_python(value: Any) -> Any:
    """The same in Python's own types, for the study's JSON."""
    if isinstance(value, dict):
        return {key: to_python(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_python(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # strict JSON has no NaN
    return value
