"""What `fit` or `run_trial` returned, as metrics: KerasTuner takes many forms.

A number is the objective; a dictionary has it by name; of a History the last
epoch counts; of a list the mean.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras_tuner import errors as keras_tuner_errors


def to_metrics(results: Any, objective: Any) -> dict[str, float]:
    """Metrics by name, the objective among them."""
    if isinstance(results, Sequence) and not isinstance(results, str):
        if results:
            return mean([to_metrics(r, objective) for r in results])
    if isinstance(results, numbers.Real):
        return {objective.name: float(results)}
    found: Any = results
    if isinstance(results, keras.callbacks.History):
        found = {
            name: values[-1]
            for name, values in found.history.items()
            if len(values)
        }
    if not isinstance(found, Mapping):
        raise keras_tuner_errors.FatalTypeError(
            "`fit` must return a History, a number, a dictionary of metrics, "
            f"or a list of these. Received: {results!r} (of type "
            f"{type(results).__name__}). Return what `model.fit` returns."
        )
    metrics = {name: float(value) for name, value in found.items()}
    if objective.name not in metrics:
        if not objective.has_value(metrics):
            raise keras_tuner_errors.FatalValueError(
                f"The objective {objective.name!r} must be among the metrics. "
                f"Received: {sorted(metrics)}. Choose one of them as the "
                "objective; those that begin with val_ need validation data."
            )
        metrics[objective.name] = float(objective.get_value(metrics))
    return metrics


def mean(all_metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric, over those that have it."""
    names = dict.fromkeys(name for metrics in all_metrics for name in metrics)
    means = {}
    for name in names:
        values = [metrics[name] for metrics in all_metrics if name in metrics]
        means[name] = math.fsum(values) / len(values)
    return means
