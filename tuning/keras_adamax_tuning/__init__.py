"""Hyperparameter search for `keras_adamax`, with KerasTuner and Optuna.

Keras reads its backend when it is imported. Where it is not imported yet, the
names below are imported when they are first used, so that the command line
can choose the backend, and answers `--help` at once.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# Where Keras is there already nothing is gained by waiting, and what it can
# save is registered.
if TYPE_CHECKING or "keras" in sys.modules:
    from keras_adamax_tuning._errors import (
        ConsecutiveFailuresError,
        SearchMismatchError,
        SearchWarning,
        StorageError,
    )
    from keras_adamax_tuning.hypermodel import AdamaxClippedHyperModel
    from keras_adamax_tuning.logical_trial import LogicalTrial
    from keras_adamax_tuning.optuna_oracle import OptunaOracle
    from keras_adamax_tuning.results import SearchResult
    from keras_adamax_tuning.search import run_search
    from keras_adamax_tuning.search_space import AdamaxClippedSpace, Range
    from keras_adamax_tuning.tuner import OptunaTuner

__all__ = [
    "AdamaxClippedHyperModel",
    "AdamaxClippedSpace",
    "ConsecutiveFailuresError",
    "LogicalTrial",
    "OptunaOracle",
    "OptunaTuner",
    "Range",
    "SearchMismatchError",
    "SearchResult",
    "SearchWarning",
    "StorageError",
    "run_search",
]

_MODULES = {
    "AdamaxClippedHyperModel": "hypermodel",
    "AdamaxClippedSpace": "search_space",
    "ConsecutiveFailuresError": "_errors",
    "LogicalTrial": "logical_trial",
    "OptunaOracle": "optuna_oracle",
    "OptunaTuner": "tuner",
    "Range": "search_space",
    "SearchMismatchError": "_errors",
    "SearchResult": "results",
    "SearchWarning": "_errors",
    "StorageError": "_errors",
    "run_search": "search",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # What Keras can save is registered from here on.
    importlib.import_module(f"{__name__}.search_space")
    return getattr(
        importlib.import_module(f"{__name__}.{_MODULES[name]}"), name
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
