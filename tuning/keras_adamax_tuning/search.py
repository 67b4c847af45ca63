"""`run_search`: create a search or join it, in one process or in several."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import optuna
from keras_tuner.oracles import RandomSearchOracle

from keras_adamax import kernels
from keras_adamax._validation import check_bool, check_integer
from keras_adamax_tuning import (
    _heap,
    _identity,
    _preflight,
    _record,
    _signals,
    _stop_check,
    _storage,
    _tensorflow,
    _user_errors,
    _workers,
)
from keras_adamax_tuning._data import Data, as_data
from keras_adamax_tuning._errors import (
    ConsecutiveFailuresError,
    SearchWarning,
)
from keras_adamax_tuning._progress import Progress, note
from keras_adamax_tuning._result_files import ResultFiles, in_words
from keras_adamax_tuning.hypermodel import AdamaxClippedHyperModel
from keras_adamax_tuning.optuna_oracle import OptunaOracle, TrialStatus
from keras_adamax_tuning.results import SearchResult, describe_failures
from keras_adamax_tuning.search_space import AdamaxClippedSpace
from keras_adamax_tuning.tuner import OptunaTuner

_SECONDS_TO_WAIT_FOR_WRITERS = 30


@dataclasses.dataclass(frozen=True)
class _Settings:
    """All that a worker has to know; goes to other processes."""

    build_model: Callable[[Any], keras.Model] | keras_tuner.HyperModel
    data: Any
    objective: keras_tuner.Objective
    space: AdamaxClippedSpace
    max_trials: int
    epochs: Any
    batch_size: Any
    validation_split: float
    sampler: Any
    pruner: Any
    seed: int | None
    executions_per_trial: int
    output: Path
    # It may have a password in it.
    storage: Any = dataclasses.field(repr=False)
    study_name: str
    callbacks_factory: Callable[..., Any] | None
    tensorboard: bool
    oracle_arguments: dict[str, Any]
    # What `shared_compilations` gave to the parent.
    compilations: Any = None


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
    workers = check_integer("workers", workers, minimum=1)
    max_trials = check_integer("max_trials", max_trials, minimum=1)
    check_integer("executions_per_trial", executions_per_trial, minimum=1)
    if isinstance(epochs, int):
        check_integer("epochs", epochs, minimum=1)
    if storage is not None and not isinstance(storage, str):
        raise TypeError(
            "`storage` must be the URL of a database or None. Received: "
            f"storage of type {type(storage).__name__}."
        )
    if heartbeat_interval is not None and grace_period is None:
        grace_period = 4 * check_integer(
            "heartbeat_interval", heartbeat_interval, minimum=1
        )
    folder = Path(output).resolve()
    storage = storage or _storage.sqlite_url(folder / "study.db")
    given = {
        "max_retries": max_retries,
        "max_consecutive_failures": max_consecutive_failures,
        "heartbeat_interval": heartbeat_interval,
        "grace_period": grace_period,
    }
    settings = _Settings(
        build_model=build_model,
        data=data,
        objective=_objective(objective, direction),
        space=AdamaxClippedSpace() if space is None else space,
        max_trials=max_trials,
        epochs=epochs,
        batch_size=batch_size,
        validation_split=validation_split,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        executions_per_trial=executions_per_trial,
        output=folder,
        storage=storage,
        study_name=study_name
        or _identity.study_name_of(
            folder, lambda: _storage.open_storage(storage)
        ),
        callbacks_factory=callbacks_factory,
        tensorboard=check_bool("tensorboard", tensorboard),
        oracle_arguments={k: v for k, v in given.items() if v is not None},
    )
    if workers > 1:
        _workers.check_importable(settings)
    with (
        _signals.handled(),
        kernels.load().shared_compilations() as compilations,
        _workers.started(workers, __name__) as processes,
    ):
        try:
            if workers == 1:
                tuner = _work(settings, verbose=verbose)
            else:
                _work_in_processes(
                    dataclasses.replace(settings, compilations=compilations),
                    processes,
                    verbose,
                )
                tuner = _make_tuner(settings)
        except ConsecutiveFailuresError:
            # The reasons are in the results.
            _finish(settings, _make_tuner(settings), verbose)
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


def _identify(settings: _Settings, data: Data) -> dict[str, Any]:
    def name(value: Any) -> Any:
        plain = value is None or isinstance(value, (str, int))
        return value if plain else type(value).__name__

    with _tensorflow.not_imported():
        space, epochs, batch_size = map(
            keras.saving.serialize_keras_object,
            (settings.space, settings.epochs, settings.batch_size),
        )
    return {
        "build_model": _identity.name_of(settings.build_model),
        "data": data.fingerprint(),
        "objective": [settings.objective.name, settings.objective.direction],
        "space": space,
        "epochs": epochs,
        "batch_size": batch_size,
        "executions_per_trial": settings.executions_per_trial,
        "sampler": name(settings.sampler),
        "pruner": name(settings.pruner),
        "seed": settings.seed,
    }


class _Worker(OptunaTuner):
    """A tuner that looks for signals, and says when a trial ended."""

    files: ResultFiles
    progress: Progress | None = None

    def on_search_begin(self) -> None:
        """As in KerasTuner; says in the study what a reader has to know."""
        super().on_search_begin()
        _record.note_arguments(self.oracle)
        if self.progress is not None:
            self.progress.update(self.oracle.logical_trials())

    def pre_create_trial(self) -> None:
        """As in KerasTuner; stops here if a signal has come."""
        _signals.check()
        super().pre_create_trial()

    def on_trial_end(self, trial: Any) -> None:
        """As in KerasTuner; writes the results and shows the progress."""
        problems: dict[str, Exception] = {}
        if trial.status == TrialStatus.COMPLETED:
            score = self.oracle.result_so_far(trial.trial_id)["score"]
            # A large model takes its time.
            with self.oracle.heartbeat(trial.trial_id):
                problems = self.files.prepare(trial.trial_id, score)
        super().on_trial_end(trial)
        for text in in_words(problems | self.files.write()):
            note(f"{text} It is tried again when the next trial ends.")
        if self.progress is not None:
            self.progress.update(self.oracle.logical_trials())


def _make_oracle(settings: _Settings) -> OptunaOracle:
    return OptunaOracle(
        objective=settings.objective,
        max_trials=settings.max_trials,
        storage=settings.storage,
        study_name=settings.study_name,
        sampler=settings.sampler,
        pruner=settings.pruner,
        seed=settings.seed,
        **settings.oracle_arguments,
    )


def _make_hypermodel(settings: _Settings) -> AdamaxClippedHyperModel:
    # A fixed number goes to `search`, where pruners see it.
    epochs = settings.epochs
    return AdamaxClippedHyperModel(
        settings.build_model,
        settings.space,
        batch_size=settings.batch_size,
        epochs=None if isinstance(epochs, int) else epochs,
    )


def _folder(settings: _Settings, data: Data) -> _identity.Folder:
    return _identity.Folder(
        settings.output,
        settings.output / _identity.TRIALS,
        _identify(settings, data),
        _storage.sqlite_file(settings.storage),
    )


def _make_tuner(
    settings: _Settings,
    output: _identity.Folder | None = None,
    hypermodel: AdamaxClippedHyperModel | None = None,
) -> _Worker:
    if hypermodel is None:
        hypermodel = _make_hypermodel(settings)
        # The one that trials were run with has done so.
        hypermodel.warns_of_replaced = False
    tuner = _Worker(
        hypermodel,
        oracle=_make_oracle(settings),
        directory=str(settings.output),
        project_name=_identity.TRIALS,
        callbacks_factory=settings.callbacks_factory,
        executions_per_trial=settings.executions_per_trial,
        tensorboard_dir=(
            settings.output / "tensorboard" if settings.tensorboard else None
        ),
    )
    tuner._output = output
    tuner.files = ResultFiles(
        settings.output,
        settings.objective.direction,
        tuner.oracle.logical_trials,
        lambda trial: settings.space.build_optimizer(
            tuner.oracle.get_trial(trial.trial_id).hyperparameters
        ),
        lambda trial_id: tuner.load_model(tuner.oracle.get_trial(trial_id)),
    )
    return tuner


def _work(
    settings: _Settings, *, verbose: bool = False, is_first: bool = True
) -> _Worker:
    """Runs trials in this process until none is left."""
    _user_errors.note_own(
        settings.build_model, settings.data, settings.callbacks_factory
    )
    hypermodel = _make_hypermodel(settings)
    hypermodel.warns_of_replaced = is_first
    _make_oracle(settings)  # checks its arguments
    data = as_data(settings.data, settings.validation_split)
    _preflight.check_model_takes_data(
        hypermodel,
        data,
        None
        if settings.callbacks_factory or hypermodel.has_own_fit
        else settings.objective.name,
    )
    output = _folder(settings, data)
    output.check_unused()
    output.look()
    tuner = _make_tuner(settings, output, hypermodel)
    # Here, where a signal ends the waiting for a database.
    tuner.oracle.study  # noqa: B018
    if verbose:
        tuner.progress = Progress(
            settings.max_trials, settings.objective.direction
        )
    arguments: dict[str, Any] = {"validation_data": data.validation_data}
    if data.y is not None:
        arguments["y"] = data.y
    if isinstance(settings.epochs, int):
        arguments["epochs"] = settings.epochs
    try:
        with _heap.what_is_there_is_no_garbage(), _signals.deferred():
            tuner.search(
                data.x,
                **arguments,
                callbacks=[_stop_check.StopCheck()],
                verbose=0,
            )
    finally:
        if tuner.progress is not None:
            tuner.progress.close()
    return tuner


def _work_in_processes(
    settings: _Settings, processes: dict[int, Any], verbose: bool
) -> None:
    _make_hypermodel(settings)  # checks its arguments
    oracle = _make_oracle(settings)
    data = as_data(settings.data, settings.validation_split)
    output = _folder(settings, data)
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
        _workers.run_workers(
            _run_worker, settings, processes, look, progress.say
        )
    finally:
        progress.close()


def _run_worker(settings: _Settings, number: int) -> None:
    """What a process of its own does; the parent prints."""
    quiet_optuna()
    _storage.expect_answer(settings.storage)
    # JAX is imported already: an environment would come too late.
    with kernels.load().shared_compilations(settings.compilations):
        _work(settings, is_first=number == 1)


def quiet_optuna() -> None:
    """Turns off, for this process, what Optuna says beside our progress."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _finish(settings: _Settings, tuner: _Worker, verbose: bool) -> SearchResult:
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
    failures = describe_failures(result.trials)
    # Without a completed trial the result says so itself.
    if failures is not None and result.best_trial is not None:
        said.append(
            f"{failures} {result.output / 'trials.csv'} has all reasons, and "
            "the folder of a trial its traceback."
        )
    for text in said:
        warnings.warn(text, SearchWarning, stacklevel=3)
    return result
