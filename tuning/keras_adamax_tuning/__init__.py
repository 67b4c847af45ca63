"""Hyperparameter search for `keras_adamax`, with KerasTuner and Optuna."""

from keras_adamax_tuning._errors import (
    ConsecutiveFailuresError,
    SearchMismatchError,
    StorageError,
)
from keras_adamax_tuning.hypermodel import AdamaxClippedHyperModel
from keras_adamax_tuning.logical_trial import LogicalTrial
from keras_adamax_tuning.optuna_oracle import OptunaOracle
from keras_adamax_tuning.search import run_search
from keras_adamax_tuning.search_space import AdamaxClippedSpace
from keras_adamax_tuning.tuner import OptunaTuner

__all__ = [
    "AdamaxClippedHyperModel",
    "AdamaxClippedSpace",
    "ConsecutiveFailuresError",
    "LogicalTrial",
    "OptunaOracle",
    "OptunaTuner",
    "SearchMismatchError",
    "StorageError",
    "run_search",
]
