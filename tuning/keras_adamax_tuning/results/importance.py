"""How much each hyperparameter mattered, by Optuna's evaluators."""

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from keras_adamax_tuning.results.axes import Axis

# With fewer the best tenth, which PED-ANOVA compares with the rest, is one
# trial.
FEWEST_TRIALS = 10


def importances(
    trials: Sequence[Any], axes: Sequence[Axis], direction: str
) -> dict[str, dict[str, float]]:
    """The importance of each hyperparameter, for each evaluator.

    PED-ANOVA says what it takes to be among the best tenth, conditional
    hyperparameters included. fANOVA, where scikit-learn is installed, says
    what explains the score over the whole space, of the hyperparameters
    that every trial has.
    """
    completed = [trial for trial in trials if trial.state == "completed"]
    if len(completed) < FEWEST_TRIALS or not axes:
        return {}
    if len({trial.score for trial in completed}) == 1:
        return {}  # fANOVA fails, and nothing is explained
    # A study of its own: in the search's, an interrupted attempt and its
    # retry are two trials.
    study = _quiet(
        lambda: optuna.create_study(
            direction="minimize" if direction == "min" else "maximize"
        )
    )
    for trial in completed:
        here = [axis for axis in axes if axis.name in trial.hyperparameters]
        study.add_trial(
            optuna.trial.create_trial(
                value=trial.score,
                params={
                    axis.name: axis.position(trial.hyperparameters[axis.name])
                    for axis in here
                },
                distributions={axis.name: _distribution(axis) for axis in here},
            )
        )
    found = {
        "PED-ANOVA": _evaluate(
            study, optuna.importance.PedAnovaImportanceEvaluator()
        )
    }
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError:
        return found
    found["fANOVA"] = _evaluate(
        study, optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    return found


def _evaluate(study: Any, evaluator: Any) -> dict[str, float]:
    return _quiet(
        lambda: dict(
            optuna.importance.get_param_importances(study, evaluator=evaluator)
        )
    )


def _quiet(call: Any) -> Any:
    """Without Optuna's log line for a study, and its advice in warnings."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.kind == "choice":
        return CategoricalDistribution(
            [float(number) for number in range(len(axis.choices))]
        )
    return FloatDistribution(axis.low, axis.high, log=axis.kind == "log")
