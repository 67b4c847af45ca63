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
import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_adamax import AdamaxClipped
from keras_adamax_tuning import _identity, _user_errors, results
from keras_adamax_tuning._progress import best_of

_TRIALS, _OPTIMIZER, _BEST = "trials.csv", "best_optimizer.json", "best.keras"
_SECONDS_BETWEEN_TRIES = 0.1


class ResultFiles:
    """Writes the files of a search.

    Args:
        output: Folder of the search.
        direction: `"min"` or `"max"`.
        read: Reads the `LogicalTrial`s from the record.
        make_optimizer: Makes the optimizer of a `LogicalTrial`.
        make_model: Makes the trained model of an attempt, by its `trial_id`.
            Defaults to `None`, for a model that was saved already.
    """

    def __init__(
        self,
        output: Path,
        direction: str,
        read: Callable[[], Sequence[Any]],
        make_optimizer: Callable[[Any], AdamaxClipped],
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

        Args:
            trial_id: Name of the attempt.
            score: Its score.

        Returns:
            What could not be written, by the name of the file.
        """
        best = best_of(self._read(), self._direction)
        sign = 1 if self._direction == "min" else -1
        if best is not None and not sign * score < sign * best.score:
            return {}
        try:
            self._save_model(trial_id)
        except Exception as error:
            return {_BEST: error}
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
                with _turn(self._output / _identity.FILE, patience) as has_it:
                    if not has_it:
                        return {}
                    trials = self._read()
                    problems = self._write(trials)
            except OSError as error:
                return {_TRIALS: error}
            # Another one may have left its trial to this process meanwhile.
            if _ended(self._read()) == _ended(trials):
                return problems

    def _write(self, trials: Sequence[Any]) -> dict[str, Exception]:
        best = best_of(trials, self._direction)
        steps: dict[str, Callable[[], None]] = {
            _TRIALS: lambda: results.write_trials(
                trials, self._output / _TRIALS
            )
        }
        problems: dict[str, Exception] = {}
        if best is not None and not self._is_written(best.trial_id):
            model = results.model_of_trial(self._output, best.trial_id)
            steps[_OPTIMIZER] = lambda: results.write_best_optimizer(
                self._make_optimizer(best), self._output / _OPTIMIZER
            )
            # The last one: it says that all three are of this trial.
            steps[_BEST] = lambda: os.replace(model, self._output / _BEST)
            if not model.exists():
                # First, so that the three change at nearly the same time.
                try:
                    self._save_model(best.trial_id)
                except Exception as error:
                    problems[_BEST] = error
                    del steps[_BEST]
        for name, step in steps.items():
            try:
                step()
            except Exception as error:
                problems[name] = error
        for trial_id in self._prepared - {best and best.trial_id}:
            # Another trial was better, and ended earlier.
            results.model_of_trial(self._output, trial_id).unlink(True)
        self._prepared.clear()
        return problems

    def _is_written(self, trial_id: str) -> bool:
        return (self._output / _OPTIMIZER).exists() and (
            results.trial_of_model(self._output / _BEST) == trial_id
        )

    def _save_model(self, trial_id: str) -> None:
        path = results.model_of_trial(self._output, trial_id)
        if self._make_model is None:
            raise FileNotFoundError(
                errno.ENOENT, "the model was not saved yet", str(path)
            )
        self._prepared.add(trial_id)
        results.write_best_model(self._make_model(trial_id), path, trial_id)


def in_words(problems: Mapping[str, Exception]) -> list[str]:
    """A sentence for each reason that files could not be written."""
    names = collections.defaultdict(list)
    for name, error in problems.items():
        names[_user_errors.describe(error)].append(name)
    return [
        f"{', '.join(files)} could not be written: {reason.rstrip('.')}."
        for reason, files in names.items()
    ]


def _ended(trials: Sequence[Any]) -> list[str]:
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
