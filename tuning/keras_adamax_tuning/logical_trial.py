"""What a search knows of one of its trials."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from keras_adamax_tuning import _attempts


@dataclasses.dataclass(frozen=True)
class LogicalTrial:
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


def logical_trials(
    book: Sequence[_attempts.LogicalAttempts], max_retries: int
) -> list[LogicalTrial]:
    """The trials of a search that were started, by number."""
    return [
        _logical_trial(entry, max_retries) for entry in book if entry.started
    ]


def _logical_trial(
    entry: _attempts.LogicalAttempts, max_retries: int
) -> LogicalTrial:
    last = entry.started[-1]
    result: dict[str, Any] = _attempts.result_of(last)
    proposal: dict[str, Any] = {}
    if entry.proposal is not None:
        proposal = entry.proposal.user_attrs[_attempts.PROPOSAL]
    if not _attempts.is_over(entry, max_retries):
        state, result = "running", {}
    elif last.state == TrialState.COMPLETE:
        state = "completed"
    elif last.state == TrialState.PRUNED:
        state = "pruned"
    else:
        state = "failed"
        if _attempts.is_interrupted(last):
            result = {
                "reason": f"Its worker was lost {entry.losses} times, more "
                f"often than max_retries={max_retries} allows."
            }
    seconds = None
    if last.datetime_complete and last.datetime_start and state != "running":
        seconds = (last.datetime_complete - last.datetime_start).total_seconds()
    return LogicalTrial(
        number=entry.number,
        state=state,
        score=None if state == "failed" else result.get("score"),
        best_epoch=result.get("best_epoch"),
        hyperparameters=result.get("values", proposal.get("values", {})),
        attempts=len(entry.started),
        trial_id=entry.trial_id(last),
        reason=result.get("reason"),
        traceback=result.get("traceback"),
        epoch=result.get("epoch"),
        # Strict JSON has no NaN: those are kept as text.
        metrics={k: float(v) for k, v in result.get("metrics", {}).items()},
        checkpoint=result.get("checkpoint"),
        seconds=seconds,
        finished_at=None if state == "running" else last.datetime_complete,
        seed=proposal.get("seed"),
        place=result.get("place"),
    )
