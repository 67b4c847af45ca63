"""`run_search`: create a search or join it, in one process or in several."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner.oracles import RandomSearchOracle

from keras_adamax_tuning.base import signals
from keras_adamax_tuning.errors import ConsecutiveFailuresError, SearchWarning
from keras_adamax_tuning.results.progress import Progress
from keras_adamax_tuning.results.result_files import in_words
from keras_adamax_tuning.results.search_result import SearchResult
from keras_adamax_tuning.running import (
    compilations,
    work,
    worker_processes,
)
from keras_adamax_tuning.running.data import as_data
from keras_adamax_tuning.running.settings import Settings
from keras_adamax_tuning.space.adamax_clipped_space import AdamaxClippedSpace
from keras_adamax_tuning.study import database, folder_identity
from keras_adamax_tuning.study.optuna_oracle import OptunaOracle

_SECONDS_TO_WAIT_FOR_WRITERS = 30


def run_search(
    build_model: Callable[[Any], keras.Model] | keras_tuner.HyperModel,
    data: Any,
    *,
    output: Any,
    objective: str | keras_tuner.Objective = "val_loss",
    direction: str | None = None,
    space: AdamaxClippedSpace | None = None,
    max_trials: int = 40,
    epochs: Any = 10,
    batch_size: Any = None,
    validation_split: float = 0.2,
    sampler: Any = "tpe",
    pruner: Any = None,
    seed: int | None = None,
    executions_per_trial: int = 1,
    max_retries: int = 3,
    max_consecutive_failures: int | None = None,
    workers: int = 1,
    storage: str | None = None,
    study_name: str | None = None,
    callbacks_factory: Callable[..., Any] | None = None,
    tensorboard: bool = False,
    heartbeat_interval: int | None = None,
    grace_period: int | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Searches the best `AdamaxClipped` for a model, and loses nothing.

    The same call creates the search in `output`, goes on with it after any
    crash, and joins it while others work on it: from another process, or,
    with a `storage` that they all reach, from another machine. It returns
    when all trials have ended, whoever ran them.

    With `workers` > 1 the processes import `build_model` and the others by
    their names: they must be functions of a module, and a script needs the
    usual `if __name__ == "__main__":`.

    In `output` it keeps, beside the record of the trials, `trials.csv`,
    `best.keras` and `best_optimizer.json` up to date as trials end. The
    folder `figures` follows at the end. `SearchResult.load` reads all of
    that at any time.

    What cannot be written or drawn does not end the search: a
    `SearchWarning` says what it was and why, and the rest is there. Another
    one says how many trials have failed, if some have.

    Args:
        build_model: Function that takes KerasTuner's `HyperParameters` and
            returns a built Keras model, compiled with its loss and metrics.
            Or a `keras_tuner.HyperModel`, whose own `fit` is called.
        data: `(x, y)`; `((x_train, y_train), (x_val, y_val))`; a dictionary,
            or the path of a `.npz` file, of x_train, y_train, x_val, y_val
            (or x_test, y_test), or of x and y; a pair of datasets; or a
            function that returns one of these.
        output: Path of the folder of the search, which all workers reach.
        objective: String or `keras_tuner.Objective`. What to judge by: a
            metric of `fit`. Defaults to `"val_loss"`.
        direction: `"min"`, `"max"` or None, which knows Keras's own metrics.
            Defaults to `None`.
        space: `AdamaxClippedSpace` or None. What is searched. Defaults to
            `None`, for `AdamaxClippedSpace()`.
        max_trials: Integer. How many trials the search has; a larger number
            goes on with a search that was done. Defaults to `40`.
        epochs: Integer, what is searched, as in `AdamaxClippedHyperModel`, or
            None where a hypermodel's own `fit` sets it. Defaults to `10`.
        batch_size: Integer, what is searched, or None for Keras's 32.
            Defaults to `None`.
        validation_split: Float. Which part of `(x, y)` to judge by, chosen at
            random but always the same. Defaults to `0.2`.
        sampler: As for `OptunaOracle`. Defaults to `"tpe"`.
        pruner: As for `OptunaOracle`. Defaults to `None`.
        seed: Integer or None. Repeats a search. Defaults to `None`.
        executions_per_trial: Integer. Trainings of each trial, whose scores
            are averaged. Defaults to `1`.
        max_retries: Integer. How often the trial of a worker that died is
            tried again. Defaults to `3`.
        max_consecutive_failures: Integer or None, as for `OptunaOracle`.
            Defaults to `None`.
        workers: Integer. Processes on this machine, which share its cores.
            Defaults to `1`: this process.
        storage: String or None. URL of a database. Defaults to `None`: SQLite
            in `output`.
        study_name: String or None. Name of the search in the database.
            Defaults to `None`: that of the search in `output`; the name of
            the folder for a new one.
        callbacks_factory: Function `f(trial, hp, folder)` that returns the
            callbacks of a trial, or None for the loggers of `keras_adamax`.
            Defaults to `None`.
        tensorboard: Whether to write event files for TensorBoard, with
            HParams, into the folder `tensorboard` in `output`. Needs
            tensorboardX. Defaults to `False`.
        heartbeat_interval: Integer or None, as for `OptunaOracle`. Defaults
            to `None`.
        grace_period: Integer or None, as for `OptunaOracle`. Defaults to
            `None`: four intervals.
        verbose: Whether to print progress and the table of the best trials.
            Defaults to `True`.

    Returns:
        A `SearchResult`.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument is out of range, or the data do not fit
            the model.
        SearchMismatchError: If `output` holds another search or the trials
            of another study, or if the study has its trials in another
            folder; a `ValueError`, too.
        StorageError: If the database cannot be reached or written, or does
            not answer for 90 seconds in the midst of the search.
        ConsecutiveFailuresError: If too many trials failed in a row; the
            results so far are written.
        Exception: What `build_model`, with the default hyperparameters, or
            the function `data` raises. With several workers it is the same
            exception, and a note has the worker's traceback.
        WorkersDiedError: If all of several workers died.
        KeyboardInterrupt: On Ctrl-C and SIGTERM, after what is running went
            back into the search.

    Example:
        >>> from keras_adamax_tuning import run_search
        >>> result = run_search(
        ...     build_model, (x, y), max_trials=1, epochs=1,
        ...     output="runs/search1", verbose=False,
        ... )
        >>> optimizer = result.load_best_optimizer()
    """
    arguments = dict(locals())
    del arguments["verbose"]
    settings = complete(Settings(**arguments))
    with (
        signals.handled(),
        worker_processes.started(workers, __name__) as processes,
    ):
        return search(settings, processes, verbose)


def complete(settings: Settings) -> Settings:
    """The settings, with what follows where nothing was given; checked."""
    folder = Path(settings.output).resolve()
    storage = settings.storage or database.sqlite_url(folder / "study.db")
    name = settings.study_name or folder_identity.study_name_of(
        folder, lambda: database.open_storage(storage)
    )
    space = settings.space
    settings = dataclasses.replace(
        settings,
        objective=_objective(settings.objective, settings.direction),
        space=AdamaxClippedSpace() if space is None else space,
        output=folder,
        storage=storage,
        study_name=name,
    )
    if settings.workers > 1:
        worker_processes.check_importable(settings)
    return settings


def search(
    settings: Settings, processes: dict[int, Any], verbose: bool
) -> SearchResult:
    """As `run_search`, in processes that wait; if there are none, in this one.

    Args:
        settings: What `complete` returned.
        processes: What `worker_processes.started` gave.
        verbose: As for `run_search`.
    """
    with compilations.shared() as shared_compilations:
        try:
            if not processes:
                tuner = work.work(settings, verbose=verbose)
            else:
                _work_in_processes(
                    dataclasses.replace(
                        settings, compilations=shared_compilations
                    ),
                    processes,
                    verbose,
                )
                tuner = work.make_tuner(settings)
        except ConsecutiveFailuresError:
            # The reasons are in the results.
            _finish(settings, work.make_tuner(settings), verbose)
            raise
        return _finish(settings, tuner, verbose)


def _objective(
    objective: str | keras_tuner.Objective, direction: str | None
) -> keras_tuner.Objective:
    if direction is not None:
        if direction not in ("min", "max") or not isinstance(objective, str):
            raise ValueError(
                '`direction` must be "min", "max" or None, and None if the '
                "objective is a keras_tuner.Objective. Received: "
                f"direction={direction!r}, objective={objective!r}."
            )
        return keras_tuner.Objective(objective, direction)
    try:
        # KerasTuner's public way to its knowledge of metrics.
        found = RandomSearchOracle(objective=objective).objective
    except ValueError as error:
        raise ValueError(
            f"`direction` must be given for the objective {objective!r}, "
            'which is none of Keras\'s own metrics: "min" or "max".'
        ) from error
    if not isinstance(found, keras_tuner.Objective) or hasattr(
        found, "objectives"
    ):
        raise TypeError(
            "`objective` must be the name of one metric, or one "
            f"keras_tuner.Objective. Received: objective={objective!r}."
        )
    return found


def _work_in_processes(
    settings: Settings, processes: dict[int, Any], verbose: bool
) -> None:
    work.make_hypermodel(settings)  # checks its arguments
    oracle = OptunaOracle(**settings.of_oracle())
    data = as_data(settings.data, settings.validation_split)
    output = work.folder_of(settings, data)
    output.check_unused()
    output.look()
    del data  # the workers load their own
    oracle.study  # noqa: B018  # a database that cannot be used ends it here
    progress = Progress(
        settings.max_trials, settings.objective.direction, len(processes)
    )

    def look() -> None:
        if verbose:
            progress.update(oracle.logical_trials())

    look()
    try:
        worker_processes.run_workers(
            work.run_worker, settings, processes, look, progress.say
        )
    finally:
        progress.close()


def _finish(
    settings: Settings, tuner: work.SearchTuner, verbose: bool
) -> SearchResult:
    """Writes the results."""
    problems = tuner.files.write(_SECONDS_TO_WAIT_FOR_WRITERS)
    result = SearchResult(
        settings.output,
        settings.objective.name,
        settings.objective.direction,
        tuple(tuner.oracle.logical_trials()),
        tuple(tuner.oracle.hyperparameters.space),
        settings.max_trials,
    )
    result.save_figures(
        on_error=lambda name, error: problems.update(
            {f"figures/{name}.png": error}
        )
    )
    if verbose:
        print(result.describe())
        print(f"Results are in {settings.output}")
    said = in_words(problems)
    failures = result.describe_failures()
    # Without a completed trial the result says so itself.
    if failures is not None and result.best_trial is not None:
        said.append(
            f"{failures} {result.output / 'trials.csv'} has all reasons, and "
            "the folder of a trial its traceback."
        )
    for text in said:
        warnings.warn(text, SearchWarning, stacklevel=4)
    return result
