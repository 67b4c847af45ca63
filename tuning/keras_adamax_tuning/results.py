"""What a search leaves behind: a table, and files for other programs."""

import collections
import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_adamax import AdamaxClipped, _atomic_files
from keras_adamax_tuning import _identity, _names, _record, figures
from keras_adamax_tuning._progress import best_of, duration

# What the zip file of a best model says about itself.
_MODEL_OF = "keras_adamax trial "
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
    "place",
    "seconds",
    "finished_at",
)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What `run_search` returns; everything in it is in `output`, too.

    `SearchResult.load` reads it from there, in any state of the search.

    Attributes:
        output: Folder of the search.
        objective: Name of the score.
        direction: `"min"` or `"max"`.
        trials: All `LogicalTrial`s, by number.
        hyperparameters: KerasTuner's hyperparameters, for the ranges and
            scales of figures. Empty where they are not known.
        max_trials: How many trials the search has; `None` where that is not
            known.

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
    hyperparameters: tuple[Any, ...] = dataclasses.field(
        default=(), repr=False, compare=False
    )
    max_trials: int | None = None

    @classmethod
    def load(cls, output: Any, storage: str | None = None) -> "SearchResult":
        """Reads a search from its folder, whether it runs or not.

        Nothing is written, and neither the model builder nor the data are
        needed. Workers that run are not disturbed.

        Args:
            output: Path of the folder of the search.
            storage: String or None. URL of the database, if the search was
                given one: it may hold a password, so the folder does not
                have it. Defaults to `None`: SQLite in `output`.

        Returns:
            A `SearchResult`.

        Raises:
            FileNotFoundError: If there is no search in the folder.
            ValueError: If the record of the search is elsewhere, and `storage`
                does not name it.
            StorageError: If the database cannot be read.

        Example:
            >>> from keras_adamax_tuning import run_search
            >>> result = run_search(
            ...     build_model, (x, y), max_trials=1, epochs=1,
            ...     output="runs/search2", verbose=False,
            ... )
            >>> SearchResult.load("runs/search2").best_trial.state
            'completed'
        """
        return cls.of(_record.read(Path(output).resolve(), storage))

    @classmethod
    def of(cls, record: _record.Record) -> "SearchResult":
        """The search that a record describes, as it is now."""
        return cls(
            record.output,
            record.objective,
            record.direction,
            tuple(record.trials()),
            record.hyperparameters,
            record.max_trials,
        )

    @property
    def best_trial(self) -> Any | None:
        """The completed trial with the best score; None if there is none."""
        return best_of(self.trials, self.direction)

    @property
    def best_model_path(self) -> Path | None:
        """File of the best trial's trained model; None if there is none.

        It is `best.keras`; or, if the workers were killed before they could
        rename it, a file in the best trial's folder.
        """
        best = self.best_trial
        if best is None:
            return None
        path = self.output / "best.keras"
        saved = model_of_trial(self.output, best.trial_id)
        if trial_of_model(path) != best.trial_id and saved.exists():
            return saved
        return path if path.exists() else None

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
            ValueError: If no trial has completed, or its model is not saved.
        """
        path = self.best_model_path
        if path is None:
            said = "No trial has completed."
            if self.best_trial is not None:
                said = (
                    f"The model of trial {self.best_trial.number} is not "
                    "saved. Start the search again to save it."
                )
            raise ValueError(
                f"{self.output} must hold the model of the best trial. {said}"
            )
        return keras.saving.load_model(path)

    def save_figures(
        self,
        folder: Any = None,
        on_error: Callable[[str, Exception], None] | None = None,
    ) -> list[Path]:
        """Draws the figures of the search; older ones are replaced.

        Args:
            folder: Path of the folder to write to. Defaults to `None`:
                `figures` in `output`.
            on_error: As for `keras_adamax_tuning.figures.save_figures`.
                Defaults to `None`.

        Returns:
            The paths of the files.

        Raises:
            ImportError: If matplotlib is not installed.
            OSError: If the folder cannot be written.
        """
        return figures.save_figures(
            self.trials,
            self.hyperparameters,
            self.objective,
            self.direction,
            self.output / "figures" if folder is None else Path(folder),
            on_error,
        )

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


def describe_failures(trials: Sequence[Any]) -> str | None:
    """How many of those that ended failed, and most often why; or None.

    Args:
        trials: Sequence of `LogicalTrial`.

    Example:
        >>> print(describe_failures(trials))
        None
    """
    failed = [trial for trial in trials if trial.state == "failed"]
    if not failed:
        return None
    kinds = collections.Counter((t.reason, t.place) for t in failed)
    kind, count = kinds.most_common(1)[0]
    first = next(t for t in failed if (t.reason, t.place) == kind)
    reason = " ".join((first.reason or "").split()).rstrip(".")
    place = f" ({first.place})" if first.place else ""
    ended = sum(trial.state != "running" for trial in trials)
    return (
        f"{len(failed)} of {ended} trials failed, {count} of them with: "
        f"{reason}{place}. Trial {first.number} is one of these."
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


def write_best_model(
    model: keras.Model, path: Path, trial_id: str | None = None
) -> None:
    """Saves a model; an existing file is replaced in one step.

    Args:
        model: A `keras.Model`.
        path: File to write; must end in `.keras`.
        trial_id: Name of the attempt that the model is of, for
            `trial_of_model`. Defaults to `None`.

    Raises:
        OSError: If the file cannot be written.
    """

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
    return output / _identity.TRIALS / f"trial_{trial_id}" / "model.keras"


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
