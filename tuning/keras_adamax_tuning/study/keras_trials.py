"""Trials in KerasTuner's terms: made of the record, with metrics, ended."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras_tuner
from keras_tuner.engine import trial as keras_tuner_trial
from optuna.trial import TrialState

from keras_adamax_tuning.errors import ConsecutiveFailuresError
from keras_adamax_tuning.study import attempt_book
from keras_adamax_tuning.study.trials import Trial, trials_of

KerasTrial: TypeAlias = keras_tuner_trial.Trial
TrialStatus = keras_tuner_trial.TrialStatus
# KerasTuner has no word for it.
PRUNED = "PRUNED"


def of_record(
    trial: Trial, hyperparameters: keras_tuner.HyperParameters, objective: Any
) -> KerasTrial:
    """The KerasTuner trial for one of the record."""
    hyperparameters.values = dict(trial.hyperparameters)
    # Its words are those of the record, in capitals.
    status = trial.state.upper()
    made = KerasTrial(hyperparameters, trial.trial_id, status, trial.traceback)
    made.score = trial.score
    made.best_step = trial.best_epoch or 0
    if trial.score is not None:
        made.metrics.register(objective.name, direction=objective.direction)
        made.metrics.update(objective.name, trial.score, step=made.best_step)
    return made


def add_metrics(
    trial: KerasTrial, metrics: dict[str, float], step: int, objective: Any
) -> str | None:
    """Adds metrics to a trial: the finite ones.

    KerasTuner looks for the best among numbers. Where the objective is not
    finite the trial fails, and this returns why.
    """
    reason = None
    for name, value in metrics.items():
        is_objective = name == objective.name
        if not math.isfinite(value):
            if is_objective:
                reason = f"The objective {name!r} is {value}."
            continue
        if not trial.metrics.exists(name):
            direction = objective.direction if is_objective else "min"
            trial.metrics.register(name, direction=direction)
        trial.metrics.update(name, value, step=step)
    return reason


def conclude(
    trial: KerasTrial,
    result: dict[str, Any],
    without_credentials: Callable[[str], str],
) -> tuple[TrialState, float | None]:
    """Completes the result of a trial that ends.

    Args:
        trial: A KerasTuner trial, with its score if it has completed. One
            that failed gets the status of those.
        result: What was noted of it; changed in place.
        without_credentials: Hides passwords in a text.

    Returns:
        Optuna's state, and the value of a trial that has completed.
    """
    values = dict(trial.hyperparameters.values)
    result["values"] = attempt_book.to_python(values)
    if trial.status in (TrialStatus.FAILED, TrialStatus.INVALID):
        trial.status, trial.score = TrialStatus.FAILED, None
        if trial.message:
            result.setdefault("traceback", trial.message)
            last_line = trial.message.strip().splitlines()[-1]
            result.setdefault("reason", last_line)
        result.setdefault("reason", "It failed without a message.")
        for name in {"reason", "traceback"} & set(result):
            result[name] = without_credentials(result[name])
        return TrialState.FAIL, None
    if trial.status == PRUNED:
        return TrialState.PRUNED, None
    value = float(trial.score)
    result.setdefault("score", value)
    result.setdefault("best_epoch", int(trial.best_step))
    return TrialState.COMPLETE, value


def print_begin(
    trial: KerasTrial, number: int, count: int, max_trials: int
) -> None:
    """Says what a trial tries in the attempt with that count."""
    again = f" (attempt {count})" if count > 1 else ""
    print(f"Trial {number} (0 to {max_trials - 1}){again}")
    for name, value in trial.hyperparameters.values.items():
        is_float = isinstance(value, float)
        print(f"  {name}: {f'{value:.5g}' if is_float else value}")


def ending(trial: KerasTrial, result: dict[str, Any], objective: Any) -> str:
    """How a trial ended, in words."""
    if trial.status == TrialStatus.FAILED:
        return f"failed: {result['reason']}"
    if trial.status == PRUNED:
        return "was pruned"
    return f"{objective.name} {trial.score:.5g}"


def check_consecutive_failures(
    entries: Sequence[attempt_book.Entry],
    max_consecutive_failures: int,
    max_retries: int,
) -> None:
    """Ends a search whose latest trials have all failed.

    `entries` are the trials that ended since the search was begun.

    Raises:
        ConsecutiveFailuresError: If there are that many.
    """
    over = sorted(entries, key=lambda entry: entry.last.datetime_complete)  # type: ignore[arg-type,return-value]
    latest = over[-max_consecutive_failures:]
    if len(latest) < max_consecutive_failures or any(
        entry.last.state != TrialState.FAIL for entry in latest
    ):
        return
    (last,) = trials_of(latest[-1:], max_retries)
    place = "" if last.place is None else f" ({last.place})"
    error = ConsecutiveFailuresError(
        f"{len(latest)} trials failed one after another, which is "
        "what `max_consecutive_failures` allows. The last one, trial "
        f"{last.number}: {last.reason}{place} Mend it and start the "
        "same search again to go on."
    )
    if last.traceback is not None:
        error.add_note(f"Trial {last.number}:\n{last.traceback}")
    raise error
