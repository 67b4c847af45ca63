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
    from keras_adamax_tuning.errors import (
        ConsecutiveFailuresError,
        SearchMismatchError,
        SearchWarning,
        StorageError,
    )
    from keras_adamax_tuning.results.search_result import SearchResult
    from keras_adamax_tuning.search import run_search
    from keras_adamax_tuning.space.adamax_clipped_space import (
        AdamaxClippedSpace,
        Range,
    )
    from keras_adamax_tuning.space.hypermodel import AdamaxClippedHyperModel
    from keras_adamax_tuning.study.optuna_oracle import OptunaOracle
    from keras_adamax_tuning.study.trials import LogicalTrial, Trial
    from keras_adamax_tuning.training.tuner import OptunaTuner

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
    "Trial",
    "run_search",
]

_MODULES = {
    "AdamaxClippedHyperModel": "space.hypermodel",
    "AdamaxClippedSpace": "space.adamax_clipped_space",
    "ConsecutiveFailuresError": "errors",
    "LogicalTrial": "study.trials",
    "OptunaOracle": "study.optuna_oracle",
    "OptunaTuner": "training.tuner",
    "Range": "space.adamax_clipped_space",
    "SearchMismatchError": "errors",
    "SearchResult": "results.search_result",
    "SearchWarning": "errors",
    "StorageError": "errors",
    "Trial": "study.trials",
    "run_search": "search",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # What Keras can save is registered from here on.
    importlib.import_module(f"{__name__}.space.adamax_clipped_space")
    return getattr(
        importlib.import_module(f"{__name__}.{_MODULES[name]}"), name
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
