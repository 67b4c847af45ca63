"""What a search knows of its trials, and which of them is the best."""

import dataclasses
import datetime
import math
from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from keras_adamax_tuning.study import attempt_book

# Of a state that a trial does not leave again.
ENDED = ("completed", "pruned", "failed")
_STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One of the `max_trials` of a search, however often it was attempted.

    Epochs are counted from 0, as Keras does.

    Attributes:
        number: Which trial, from 0.
        state: `"completed"`, `"pruned"`, `"failed"` or `"running"`. One whose
            attempt was interrupted is running: it will be tried again.
        score: The objective, the mean over executions; of a pruned trial the
            best it had reached. `None` if it has none.
        best_epoch: Epoch of the score (of the best execution).
        hyperparameters: Active values by name.
        attempts: How many attempts were started.
        trial_id: Name of the attempt that counts, and of its folder.
        reason: Why it failed, in one line.
        traceback: The traceback of an exception.
        epoch: In which epoch the objective was not finite.
        metrics: Final values of everything in the logs, for example
            `clip_rate` and `weight_delta`, the mean over executions.
        checkpoint: Which weights the attempt's folder holds: `execution`,
            `epoch` and the objective as `score`. With one execution the
            score is the trial's.
        seconds: How long the attempt that counts took.
        finished_at: When it ended.
        seed: The seed that `keras.utils.set_random_seed` was given.
        place: The last line of the user's own code that an exception passed.
    """

    number: int
    state: str
    score: float | None
    best_epoch: int | None
    hyperparameters: dict[str, Any]
    attempts: int
    trial_id: str
    reason: str | None
    traceback: str | None
    epoch: int | None
    metrics: dict[str, float]
    checkpoint: dict[str, Any] | None
    seconds: float | None
    finished_at: datetime.datetime | None
    seed: int | None
    place: str | None = None


# What a result has under the same name.
_OF_RESULT = (
    "best_epoch",
    "reason",
    "traceback",
    "epoch",
    "checkpoint",
    "place",
)
# Its earlier name.
LogicalTrial = Trial


def best_first(trials: Sequence[Trial], direction: str) -> list[Trial]:
    """The completed trials with a finite score, those with the best ones first.

    Of equal scores the earlier trial comes first. A trial that the user has
    added to the study has neither score nor weights, and is left out.
    """
    sign = 1 if direction == "min" else -1
    scored = [
        (sign * trial.score, trial.number, trial)
        for trial in trials
        if trial.state == "completed"
        and trial.score is not None
        and math.isfinite(trial.score)
    ]
    return [trial for _, _, trial in sorted(scored, key=lambda one: one[:2])]


def best_of(trials: Sequence[Trial], direction: str) -> Any | None:
    """The best completed `Trial`; None if there is none."""
    return next(iter(best_first(trials, direction)), None)


def trials_of(
    book: Sequence[attempt_book.Entry], max_retries: int
) -> list[Trial]:
    """The trials of a search that were started, by number."""
    return [_trial_of(entry, max_retries) for entry in book if entry.started]


def _trial_of(entry: attempt_book.Entry, max_retries: int) -> Trial:
    last = entry.started[-1]
    result: dict[str, Any] = attempt_book.result_of(last)
    proposal: dict[str, Any] = {}
    if entry.proposal is not None:
        proposal = entry.proposal.user_attrs[attempt_book.PROPOSAL]
    state, seconds, finished_at = "running", None, None
    if attempt_book.is_over(entry, max_retries):
        state, finished_at = _STATES[last.state], last.datetime_complete
        if finished_at and last.datetime_start:
            seconds = (finished_at - last.datetime_start).total_seconds()
        if attempt_book.is_interrupted(last):
            result = {
                "reason": f"Its worker was lost {entry.losses} times, more "
                f"often than max_retries={max_retries} allows."
            }
    else:
        result = {}
    return Trial(
        number=entry.number,
        state=state,
        score=None if state == "failed" else result.get("score"),
        hyperparameters=result.get("values", proposal.get("values", {})),
        attempts=len(entry.started),
        trial_id=entry.trial_id(last),
        # Strict JSON has no NaN: those are kept as text.
        metrics={k: float(v) for k, v in result.get("metrics", {}).items()},
        seconds=seconds,
        finished_at=finished_at,
        seed=proposal.get("seed"),
        **{name: result.get(name) for name in _OF_RESULT},
    )
