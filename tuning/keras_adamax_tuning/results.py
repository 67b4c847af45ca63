"""What a search leaves behind: a table, and files for other programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_adamax import AdamaxClipped, _atomic_files
from keras_adamax_tuning import _names
from keras_adamax_tuning._progress import best_of, duration

# Recorded beside the score by the callbacks that are on by default.
_METRICS = ("clip_rate", "weight_delta", "weight_delta_ratio")
_COLUMNS = (
    "number",
    "state",
    "score",
    "best_epoch",
    "attempts",
    "trial_id",
    "reason",
    "seconds",
    "finished_at",
)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What `run_search` returns; everything in it is in `output`, too.

    Attributes:
        output: Folder of the search.
        objective: Name of the score.
        direction: `"min"` or `"max"`.
        trials: All `LogicalTrial`s, by number.

    Example:
        >>> result = SearchResult(
        ...     Path("runs/search1"), "val_loss", "min", tuple(trials)
        ... )
        >>> result.best_trial.state
        'completed'
    """

    output: Path
    objective: str
    direction: str
    trials: tuple[Any, ...]

    @property
    def best_trial(self) -> Any | None:
        """The completed trial with the best score; None if there is none."""
        return best_of(self.trials, self.direction)

    def load_best_optimizer(self) -> AdamaxClipped:
        """A new optimizer as the best trial had it, from its file.

        Raises:
            FileNotFoundError: If no trial has completed.
        """
        path = self.output / "best_optimizer.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        return keras.saving.deserialize_keras_object(config)

    def load_best_model(self) -> keras.Model:
        """The trained model of the best trial, from its file.

        Raises:
            ValueError: If no trial has completed.
        """
        return keras.saving.load_model(self.output / "best.keras")

    def describe(self, count: int = 5) -> str:
        """A table of the best trials, the best one first."""
        return table(self.trials, self.objective, self.direction, count)


def table(
    trials: Sequence[Any], objective: str, direction: str, count: int = 5
) -> str:
    """A table of the best trials: one column each, one row a quantity.

    Hyperparameters that are the same in all trials are left out. "-" is a
    conditional hyperparameter that the trial did not use.

    Args:
        trials: Sequence of `LogicalTrial`.
        objective: String. Name of the score.
        direction: `"min"` or `"max"`.
        count: Integer. How many trials to show. Defaults to `5`.

    Returns:
        A string of several lines.

    Example:
        >>> lines = table(trials, "val_loss", "min").splitlines()
        >>> [line.split()[0] for line in lines[:2]]
        ['trial', 'val_loss']
    """
    remaining, shown = list(trials), []
    while len(shown) < count and (best := best_of(remaining, direction)):
        shown.append(best)
        remaining.remove(best)
    if not shown:
        return "No trial has completed."
    names = dict.fromkeys(name for t in trials for name in t.hyperparameters)
    rows = [
        ["trial", *(str(trial.number) for trial in shown)],
        [objective, *(f"{trial.score:.6g}" for trial in shown)],
    ]
    for name in names:
        values = {
            json.dumps(trial.hyperparameters.get(name)) for trial in trials
        }
        if len(values) > 1:
            rows.append(
                [
                    _names.shown_name(name),
                    *(_shown(name, t.hyperparameters.get(name)) for t in shown),
                ]
            )
    for name in _METRICS:
        if any(name in (trial.metrics or {}) for trial in shown):
            rows.append([name, *(_cell(t.metrics.get(name)) for t in shown)])
    rows.append(
        [
            "time",
            *("-" if t.seconds is None else duration(t.seconds) for t in shown),
        ]
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_trials(trials: Sequence[Any], path: Path) -> None:
    """Writes `trials.csv`: exactly one row for each logical trial.

    The first columns say what became of the trial; `clip_rate` and the
    like are the final values that the callbacks recorded; then comes a
    column for each hyperparameter, empty where a trial did not use it. A
    hyperparameter whose name is one of the other columns' gets the prefix
    `hyperparameter:`.

    Args:
        trials: Sequence of `LogicalTrial`.
        path: File to write; an existing one is replaced in one step.

    Raises:
        ValueError: If two trials have the same number.
        OSError: If the file cannot be written.

    Example:
        >>> write_trials(oracle.logical_trials(), Path("trials.csv"))
    """
    numbers = [trial.number for trial in trials]
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            "Each trial must have a number of its own. "
            f"Received: the numbers {numbers}."
        )
    metrics = dict.fromkeys(
        [*_METRICS, *(name for t in trials for name in t.metrics or {})]
    )
    metrics = [name for name in metrics if name not in _COLUMNS]
    taken = {*_COLUMNS, *metrics}
    names = dict.fromkeys(name for t in trials for name in t.hyperparameters)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *_COLUMNS,
            *metrics,
            *(f"hyperparameter:{n}" if n in taken else n for n in names),
        ]
    )
    for trial in sorted(trials, key=lambda trial: trial.number):
        writer.writerow(
            [
                *(_plain(getattr(trial, name)) for name in _COLUMNS),
                *(_plain((trial.metrics or {}).get(name)) for name in metrics),
                *(_plain(trial.hyperparameters.get(name)) for name in names),
            ]
        )
    _write(path, text.getvalue())


def write_best_optimizer(optimizer: AdamaxClipped, path: Path) -> None:
    """Writes an optimizer's configuration as JSON.

    `keras.saving.deserialize_keras_object(json.load(file))` makes the
    optimizer again, once `keras_adamax` is imported.

    Args:
        optimizer: An `AdamaxClipped`.
        path: File to write; an existing one is replaced in one step.

    Raises:
        OSError: If the file cannot be written.
    """
    config = keras.saving.serialize_keras_object(optimizer)
    text = json.dumps(config, indent=2, allow_nan=False)
    _write(path, f"{text}\n")


def write_best_model(model: keras.Model, path: Path) -> None:
    """Saves a model; an existing file is replaced in one step.

    Args:
        model: A `keras.Model`.
        path: File to write; must end in `.keras`.

    Raises:
        OSError: If the file cannot be written.
    """
    _atomic_files.write(path, model.save)


def _write(path: Path, text: str) -> None:
    def write(path: Path) -> None:
        path.write_bytes(text.encode())

    _atomic_files.write(path, write)


def _shown(name: str, value: Any) -> str:
    shown = _names.shown_value(name, value)
    # Four digits of 0.99987 would be 0.9999.
    return f"{shown:.6g}" if shown is not value else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 16 else f"{text[:7]}…{text[-8:]}"


def _plain(value: Any) -> Any:
    """A text in one line; numbers as they are, to the last digit."""
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(value.split())
    return value
