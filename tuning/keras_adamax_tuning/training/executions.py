"""The trainings of a trial: history, best weights, reports, and their mean."""

import csv
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_adamax import _atomic_files
from keras_adamax_tuning.base.notes import note
from keras_adamax_tuning.training import returned_metrics

CHECKPOINT = "checkpoint.weights.h5"
BUILD_CONFIG = "build_config.json"
HISTORY = "history.csv"


class PruneTrial(Exception):
    """The pruner asks to end the trial."""


class NonFiniteObjectiveError(Exception):
    """The objective has become NaN or infinite in an epoch."""

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
        self.weights = weights
        self._history = history
        self._execution = execution
        self._report = report
        self._reports = 0
        self.best_score: float | None = None
        self.best_epoch = 0
        self.epochs: list[int] = []
        self.last_logs: dict[str, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """As in Keras; nothing is known of this execution yet."""
        del logs
        self.best_score = None
        self.epochs = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """As in Keras; keeps the weights of the best epoch, and reports."""
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
            save_weights(self.weights, self.model)
            self.best_score, self.best_epoch = score, epoch
        if self._report is not None:
            step, self._reports = self._reports, self._reports + 1
            if self._report(score, step):
                raise PruneTrial

    def judge(self, results: Any, model: Any) -> float:
        """The score of this execution, of what its `fit` has returned.

        It is the one of the best epoch; where the objective is computed after
        training, it is that of the final weights, which are saved then.
        """
        is_history = isinstance(results, keras.callbacks.History)
        if is_history and self.best_score is not None:
            return self.best_score
        metrics = returned_metrics.to_metrics(results, self._objective)
        self.last_logs = {**self.last_logs, **metrics}
        score = metrics[self._objective.name]
        last = len(self.epochs) - 1
        if not math.isfinite(score):
            raise NonFiniteObjectiveError(self._objective.name, score, last)
        save_weights(self.weights, model)
        self.best_epoch = max(last, 0)
        return score


class ExecutionsOfTrial:
    """The executions of a trial so far; its folder has the best weights."""

    def __init__(self, folder: Path, objective: Any):
        self._folder = folder
        self._objective = objective
        self._scores: list[float] = []
        self._logs: list[dict[str, float]] = []
        self._checkpoint: dict[str, Any] | None = None

    def add(self, recorder: ExecutionRecorder, score: float) -> None:
        """Adds an execution that has ended, or was pruned."""
        best = self._checkpoint
        if best is None or self._objective.better_than(score, best["score"]):
            os.replace(recorder.weights, self._folder / CHECKPOINT)
            self._checkpoint = {
                "execution": len(self._scores),
                "epoch": recorder.best_epoch,
                "score": score,
            }
        else:
            recorder.weights.unlink()
        self._scores.append(score)
        self._logs.append(recorder.last_logs)

    @property
    def score(self) -> float:
        """The mean over the executions."""
        return math.fsum(self._scores) / len(self._scores)

    @property
    def metrics(self) -> dict[str, float]:
        """The final values of everything in the logs, the mean."""
        return returned_metrics.mean(self._logs)

    def record(self) -> dict[str, Any]:
        """What is recorded of the trial."""
        assert self._checkpoint is not None
        return {
            "score": self.score,
            "best_epoch": self._checkpoint["epoch"],
            "checkpoint": dict(self._checkpoint),
            "metrics": self.metrics,
        }


def save_weights(path: Path, model: Any) -> None:
    """Saves weights and the optimizer's state: whole, or not at all."""
    _atomic_files.write(path, model.save_weights)


def save_build_config(folder: Path, model: keras.Model) -> None:
    """Keeps the input shapes, for a model that only data have built."""
    text = json.dumps(model.get_build_config())
    _atomic_files.replace(folder / BUILD_CONFIG, text.encode())


def load_weights(folder: Path, model: keras.Model) -> None:
    """Gives a model the best weights of a trial, and its optimizer's state."""
    if not model.built:
        text = (folder / BUILD_CONFIG).read_text()
        model.build_from_config(json.loads(text))
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        # Keras leaves the state out of an optimizer that is not built.
        optimizer.build(model.trainable_variables)
    model.load_weights(folder / CHECKPOINT)


def clear(folder: Path) -> None:
    """Makes room for an attempt where another one has been.

    No attempt begins twice. The study knows nothing of one that has been here
    already: its database was restored from a backup, or is a copy. Weights may
    be the only ones, and are kept.
    """
    if not (folder / CHECKPOINT).exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    aside = folder.with_name(f"set_aside_{folder.name}_{secrets.token_hex(4)}")
    folder.rename(aside)
    note(
        f"warning: {folder} held weights of a trial that is not in this "
        "database, which was restored or copied. They are now in "
        f"{aside.name}. If another search goes on in this folder, stop one of "
        "them"
    )
