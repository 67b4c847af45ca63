"""`trials.csv`, `best.keras` and `best_optimizer.json`, as trials end.

Several workers, on several machines, may have a trial that ended at the same
moment. One of them writes at a time, and what it writes is the state of the
record at that time, so that an older state never replaces a newer one. Who
finds another one writing leaves it to that one, which reads the record again
afterwards. A system's lock is used, which ends with its process.

The model of a new best trial is saved in the trial's folder before the trial
counts as completed, and renamed to `best.keras` afterwards. So the best model
of a search is there whenever its workers were killed.
"""

import collections
import contextlib
import csv
import errno
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import keras

from keras_adamax import AdamaxClipped, _atomic_files
from keras_adamax_tuning.base import user_errors
from keras_adamax_tuning.study import folder_identity
from keras_adamax_tuning.study.trials import Trial, best_of

TRIALS, OPTIMIZER, BEST = "trials.csv", "best_optimizer.json", "best.keras"
# Recorded beside the score by the callbacks that are on by default.
METRICS = ("clip_rate", "weight_delta", "weight_delta_ratio")
_COLUMNS = (
    "number",
    "state",
    "score",
    "best_epoch",
    "attempts",
    "trial_id",
    "reason",
    "place",
    "seconds",
    "finished_at",
)
# What the zip file of a best model says about itself.
_MODEL_OF = "keras_adamax trial "
_SECONDS_BETWEEN_TRIES = 0.1


class ResultFiles:
    """Writes the files of a search.

    Args:
        output: Folder of the search.
        direction: `"min"` or `"max"`.
        read: Reads the trials from the record.
        make_optimizer: Makes the optimizer of a trial.
        make_model: Makes the trained model of an attempt, by its `trial_id`.
            Defaults to `None`, for a model that was saved already.
    """

    def __init__(
        self,
        output: Path,
        direction: str,
        read: Callable[[], Sequence[Trial]],
        make_optimizer: Callable[[Trial], AdamaxClipped],
        make_model: Callable[[str], keras.Model] | None = None,
    ):
        self._output = output
        self._direction = direction
        self._read = read
        self._make_optimizer = make_optimizer
        self._make_model = make_model
        # Attempts whose models this process has saved in their folders.
        self._prepared: set[str] = set()

    def prepare(self, trial_id: str, score: float) -> dict[str, Exception]:
        """Saves the model of a trial that ends now, if it is a new best one.

        Returns:
            What could not be written, by the name of the file.
        """
        best = best_of(self._read(), self._direction)
        if best is not None:
            sign = 1 if self._direction == "min" else -1
            if not sign * score < sign * best.score:
                return {}
        try:
            self._save_model(trial_id)
        except Exception as error:
            return {BEST: error}
        return {}

    def write(self, patience: float | None = None) -> dict[str, Exception]:
        """Makes the files show the latest state of the record.

        Args:
            patience: Seconds to wait for another process that writes; then
                this one writes, too. Defaults to `None`: it is left to the
                other one.

        Returns:
            What could not be written, by the name of the file.
        """
        while True:
            try:
                with _turn(
                    self._output / folder_identity.FILE, patience
                ) as has_it:
                    if not has_it:
                        return {}
                    trials = self._read()
                    problems = self._write(trials)
            except OSError as error:
                return {TRIALS: error}
            # Another one may have left its trial to this process meanwhile.
            if _ended(self._read()) == _ended(trials):
                return problems

    def _write(self, trials: Sequence[Trial]) -> dict[str, Exception]:
        best = best_of(trials, self._direction)
        steps: dict[str, Callable[[], None]] = {
            TRIALS: lambda: write_trials(trials, self._output / TRIALS)
        }
        problems: dict[str, Exception] = {}
        if best is not None and not self._is_written(best.trial_id):
            model = model_of_trial(self._output, best.trial_id)
            steps[OPTIMIZER] = lambda: write_best_optimizer(
                self._make_optimizer(best), self._output / OPTIMIZER
            )
            # The last one: it says that all three are of this trial.
            steps[BEST] = lambda: os.replace(model, self._output / BEST)
            if not model.exists():
                # First, so that the three change at nearly the same time.
                try:
                    self._save_model(best.trial_id)
                except Exception as error:
                    problems[BEST] = error
                    del steps[BEST]
        for name, step in steps.items():
            try:
                step()
            except Exception as error:
                problems[name] = error
        for trial_id in self._prepared - {best and best.trial_id}:
            # Another trial was better, and ended earlier.
            model_of_trial(self._output, trial_id).unlink(True)
        self._prepared.clear()
        return problems

    def _is_written(self, trial_id: str) -> bool:
        return (self._output / OPTIMIZER).exists() and (
            trial_of_model(self._output / BEST) == trial_id
        )

    def _save_model(self, trial_id: str) -> None:
        path = model_of_trial(self._output, trial_id)
        if self._make_model is None:
            raise FileNotFoundError(
                errno.ENOENT, "the model was not saved yet", str(path)
            )
        self._prepared.add(trial_id)
        write_best_model(self._make_model(trial_id), path, trial_id)


def write_trials(trials: Sequence[Trial], path: Path) -> None:
    """Writes `trials.csv`: exactly one row for each trial.

    The first columns say what became of the trial; `clip_rate` and the
    like are the final values that the callbacks recorded; then comes a
    column for each hyperparameter, empty where a trial did not use it. A
    hyperparameter whose name is one of the other columns' gets the prefix
    `hyperparameter:`.
    """
    numbers = [trial.number for trial in trials]
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            "Each trial must have a number of its own. "
            f"Received: the numbers {numbers}."
        )
    metrics = dict.fromkeys([*METRICS, *(n for t in trials for n in t.metrics)])
    metrics = [name for name in metrics if name not in _COLUMNS]
    taken = {*_COLUMNS, *metrics}
    names = dict.fromkeys(name for t in trials for name in t.hyperparameters)
    heads = (f"hyperparameter:{n}" if n in taken else n for n in names)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *metrics, *heads])
    for trial in sorted(trials, key=lambda trial: trial.number):
        cells = [getattr(trial, name) for name in _COLUMNS]
        cells += [trial.metrics.get(name) for name in metrics]
        cells += [trial.hyperparameters.get(name) for name in names]
        # A text in one line; numbers as they are, to the last digit.
        writer.writerow(
            [
                " ".join(cell.split()) if isinstance(cell, str) else cell
                for cell in cells
            ]
        )
    _atomic_files.replace(path, text.getvalue().encode())


def write_best_optimizer(optimizer: AdamaxClipped, path: Path) -> None:
    """Writes an optimizer's configuration as JSON.

    `keras.saving.deserialize_keras_object(json.load(file))` makes the
    optimizer again, once `keras_adamax` is imported.
    """
    config = keras.saving.serialize_keras_object(optimizer)
    text = json.dumps(config, indent=2, allow_nan=False)
    _atomic_files.replace(path, f"{text}\n".encode())


def write_best_model(
    model: keras.Model, path: Path, trial_id: str | None = None
) -> None:
    """Saves a model, with the name of the attempt that it is of."""

    def write(path: Path) -> None:
        model.save(path)
        if trial_id is not None:
            with zipfile.ZipFile(path, "a") as file:
                file.comment = f"{_MODEL_OF}{trial_id}".encode()

    _atomic_files.write(path, write)


def trial_of_model(path: Path) -> str | None:
    """Name of the attempt that a model is of; None if the file has none."""
    try:
        with zipfile.ZipFile(path) as file:
            comment = file.comment.decode(errors="replace")
    except (OSError, zipfile.BadZipFile):
        return None
    if not comment.startswith(_MODEL_OF):
        return None
    return comment.removeprefix(_MODEL_OF)


def model_of_trial(output: Path, trial_id: str) -> Path:
    """Where the model of a new best trial is, before it is `best.keras`."""
    return output / folder_identity.TRIALS / f"trial_{trial_id}" / "model.keras"


def in_words(problems: Mapping[str, Exception]) -> list[str]:
    """A sentence for each reason that files could not be written."""
    names = collections.defaultdict(list)
    for name, error in problems.items():
        names[user_errors.describe(error)].append(name)
    return [
        f"{', '.join(files)} could not be written: {reason.rstrip('.')}."
        for reason, files in names.items()
    ]


def _ended(trials: Sequence[Trial]) -> list[str]:
    return [trial.trial_id for trial in trials if trial.state != "running"]


@contextlib.contextmanager
def _turn(path: Path, patience: float | None) -> Iterator[bool]:
    """Whether this process may write; others may not meanwhile."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    end = time.monotonic() + (patience or 0.0)
    # A lock over NFS needs a file that this process may write.
    with open(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if patience is None:
                    yield False
                    return
                if time.monotonic() < end:
                    time.sleep(_SECONDS_BETWEEN_TRIES)
                    continue
            except OSError:
                pass  # a file system without locks
            break
        yield True
