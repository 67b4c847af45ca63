"""One training of a trial: its history, its best weights, its reports."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_adamax import _atomic_files

CHECKPOINT = "checkpoint.weights.h5"
BUILD_CONFIG = "build_config.json"
HISTORY = "history.csv"


class PruneTrial(Exception):
    """The pruner asks to end the trial."""


class NonFiniteObjectiveError(Exception):
    """The objective has become NaN or infinite.

    Args:
        name: Name of the objective.
        value: What it was.
        epoch: In which epoch, from 0.
    """

    def __init__(self, name: str, value: float, epoch: int):
        super().__init__(
            f"The objective {name!r} is {value} after epoch {epoch} (epochs "
            "count from 0)."
        )
        self.epoch = epoch


class HistoryFile:
    """The logs of each epoch of each execution, as one CSV file."""

    def __init__(self, path: Path):
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def add(self, execution: int, epoch: int, logs: dict[str, float]) -> None:
        """Adds an epoch; the file is whole at any time."""
        self._rows.append({"execution": execution, "epoch": epoch, **logs})
        _atomic_files.write(self._path, self._write, durable=False)

    def _write(self, path: Path) -> None:
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)


class ExecutionRecorder(keras.callbacks.Callback):
    """Follows one execution of a trial, and saves its best weights.

    It stands last in the list, so that it sees what the others add to the
    logs. A hypermodel that calls `fit` several times with it (to unfreeze
    layers, say) is judged by its last training, whose history it returns.

    Args:
        objective: The search's objective.
        weights: Where the best weights go.
        history: Where the logs go.
        execution: Number of the execution, from 0.
        report: Called with the objective and the number of the epoch; returns
            whether to prune. `None` to report nothing.
    """

    def __init__(
        self,
        objective: Any,
        weights: Path,
        history: HistoryFile,
        execution: int,
        report: Callable[[float, int], bool] | None,
    ):
        super().__init__()
        self._objective = objective
        self._weights = weights
        self._history = history
        self._execution = execution
        self._report = report
        self._reports = 0
        self.best_score: float | None = None
        self.best_epoch = 0
        self.epochs: list[int] = []
        self.last_logs: dict[str, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        del logs
        self.best_score = None
        self.epochs = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.last_logs = values
        self.epochs.append(epoch)
        self._history.add(self._execution, epoch, values)
        if not self._objective.has_value(values):
            return  # it is computed after training, or is missing
        score = float(self._objective.get_value(values))
        if not math.isfinite(score):
            raise NonFiniteObjectiveError(self._objective.name, score, epoch)
        if self.best_score is None or self._objective.better_than(
            score, self.best_score
        ):
            save_weights(self._weights, self.model)
            self.best_score, self.best_epoch = score, epoch
        if self._report is not None:
            step, self._reports = self._reports, self._reports + 1
            if self._report(score, step):
                raise PruneTrial


def save_weights(path: Path, model: Any) -> None:
    """Saves weights and the optimizer's state: whole, or not at all."""
    _atomic_files.write(path, model.save_weights)


def save_build_config(folder: Path, model: keras.Model) -> None:
    """Keeps the input shapes, for a model that only data have built."""
    text = json.dumps(model.get_build_config())

    def write(path: Path) -> None:
        path.write_text(text)

    _atomic_files.write(folder / BUILD_CONFIG, write)
