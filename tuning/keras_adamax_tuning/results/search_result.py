"""What a search leaves behind, for people and other programs to read."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_adamax import AdamaxClipped, _atomic_files
from keras_adamax_tuning.base.tables import table
from keras_adamax_tuning.results import result_files, search_record
from keras_adamax_tuning.results.progress import duration
from keras_adamax_tuning.space import ranges
from keras_adamax_tuning.study.trials import best_first, best_of

# Each is drawn by a function of `figures`: `plot_scores` and so on.
FIGURES = ("scores", "hyperparameters", "parallel_coordinates", "importance")


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What `run_search` returns; everything in it is in `output`, too.

    `SearchResult.load` reads it from there, in any state of the search.

    Attributes:
        output: Folder of the search.
        objective: Name of the score.
        direction: `"min"` or `"max"`.
        trials: All `Trial`s, by number.
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
        return cls.of(search_record.read(Path(output).resolve(), storage))

    @classmethod
    def of(cls, record: search_record.Record) -> "SearchResult":
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
        """The completed `Trial` with the best score; None if there is none."""
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
        path = self.output / result_files.BEST
        saved = result_files.model_of_trial(self.output, best.trial_id)
        if result_files.trial_of_model(path) != best.trial_id and (
            saved.exists()
        ):
            return saved
        return path if path.exists() else None

    def load_best_optimizer(self) -> AdamaxClipped:
        """A new optimizer as the best trial had it, from its file.

        Raises:
            FileNotFoundError: If no trial has completed.
        """
        path = self.output / result_files.OPTIMIZER
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
            on_error: Called with the name of a figure that cannot be drawn or
                written, and the exception; the others are drawn nevertheless.
                Defaults to `None`: the exception is raised.

        Returns:
            The paths of the files.

        Raises:
            ImportError: If matplotlib is not installed.
            OSError: If the folder cannot be written.
        """
        folder = self.output / "figures" if folder is None else Path(folder)
        paths = []
        for name in FIGURES:
            path = folder / f"{name}.png"
            try:
                figure = self._draw(name)
                folder.mkdir(parents=True, exist_ok=True)
                save = functools.partial(
                    figure.savefig, dpi=150, facecolor="white"
                )
                _atomic_files.write(path, save)
            except Exception as error:
                if on_error is None:
                    raise
                on_error(name, error)
            else:
                paths.append(path)
        return paths

    def _draw(self, name: str) -> Any:
        # Here, because it needs matplotlib.
        from keras_adamax_tuning.results import figures

        given: list[Any] = [self.trials, self.objective, self.direction]
        if name != "scores":
            given.insert(1, self.hyperparameters)
        return getattr(figures, f"plot_{name}")(*given)

    def describe(self, count: int = 5) -> str:
        """A table of the best trials: a column for each, the best one first.

        Hyperparameters that are the same in all trials are left out. "-" is a
        conditional hyperparameter that the trial did not use.
        """
        shown = best_first(self.trials, self.direction)[:count]
        if not shown:
            return "No trial has completed."
        rows = [
            ["trial", *(str(trial.number) for trial in shown)],
            [self.objective, *(f"{trial.score:.6g}" for trial in shown)],
        ]
        every = [trial.hyperparameters for trial in self.trials]
        for name in dict.fromkeys(name for values in every for name in values):
            if len({json.dumps(values.get(name)) for values in every}) > 1:
                cells = [_shown(name, t.hyperparameters) for t in shown]
                rows.append([ranges.shown_name(name), *cells])
        for name in result_files.METRICS:
            if any(name in trial.metrics for trial in shown):
                rows.append(
                    [name, *(_cell(t.metrics.get(name)) for t in shown)]
                )
        times = [trial.seconds for trial in shown]
        rows.append(
            ["time", *("-" if t is None else duration(t) for t in times)]
        )
        return table(rows, numbers=True)

    def describe_failures(self) -> str | None:
        """How many of those that ended failed, and most often why; or None."""
        failed = [trial for trial in self.trials if trial.state == "failed"]
        if not failed:
            return None
        kinds = collections.Counter((t.reason, t.place) for t in failed)
        kind, count = kinds.most_common(1)[0]
        first = next(t for t in failed if (t.reason, t.place) == kind)
        reason = " ".join((first.reason or "").split()).rstrip(".")
        place = f" ({first.place})" if first.place else ""
        ended = sum(trial.state != "running" for trial in self.trials)
        return (
            f"{len(failed)} of {ended} trials failed, {count} of them with: "
            f"{reason}{place}. Trial {first.number} is one of these."
        )


def _shown(name: str, values: dict[str, Any]) -> str:
    value = values.get(name)
    shown = ranges.shown_value(name, value)
    # Four digits of 0.99987 would be 0.9999.
    return f"{shown:.6g}" if shown is not value else _cell(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 16 else f"{text[:7]}…{text[-8:]}"
