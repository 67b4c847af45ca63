"""What each process of a search does, from its settings to the last trial."""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import optuna

from keras_adamax_tuning.base import signals, tensorflow_guard, user_errors
from keras_adamax_tuning.base.notes import note
from keras_adamax_tuning.results import search_record
from keras_adamax_tuning.results.progress import Progress
from keras_adamax_tuning.results.result_files import ResultFiles, in_words
from keras_adamax_tuning.running import compilations, preflight
from keras_adamax_tuning.running.data import Data, as_data
from keras_adamax_tuning.running.settings import Settings
from keras_adamax_tuning.space.hypermodel import AdamaxClippedHyperModel
from keras_adamax_tuning.study import database, folder_identity
from keras_adamax_tuning.study.keras_trials import TrialStatus
from keras_adamax_tuning.study.optuna_oracle import OptunaOracle
from keras_adamax_tuning.training.trial_callbacks import StopCheck
from keras_adamax_tuning.training.tuner import OptunaTuner


def identify(settings: Settings, data: Data) -> dict[str, Any]:
    """What makes the search of a folder the one it is, in JSON's types."""

    def name(value: Any) -> Any:
        plain = value is None or isinstance(value, (str, int))
        return value if plain else type(value).__name__

    with tensorflow_guard.not_imported():
        space, epochs, batch_size = map(
            keras.saving.serialize_keras_object,
            (settings.space, settings.epochs, settings.batch_size),
        )
    return {
        "build_model": folder_identity.name_of(settings.build_model),
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


class SearchTuner(OptunaTuner):
    """A tuner that looks for signals, and says when a trial ended."""

    files: ResultFiles
    progress: Progress | None = None

    def on_search_begin(self) -> None:
        """As in KerasTuner; says in the study what a reader has to know."""
        super().on_search_begin()
        search_record.note_arguments(self.oracle)
        if self.progress is not None:
            self.progress.update(self.oracle.logical_trials())

    def pre_create_trial(self) -> None:
        """As in KerasTuner; stops here if a signal has come."""
        signals.check()
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


def make_hypermodel(settings: Settings) -> AdamaxClippedHyperModel:
    """The hypermodel of a search."""
    # A fixed number goes to `search`, where pruners see it.
    epochs = settings.epochs
    return AdamaxClippedHyperModel(
        settings.build_model,
        settings.space,
        batch_size=settings.batch_size,
        epochs=None if isinstance(epochs, int) else epochs,
    )


def folder_of(settings: Settings, data: Data) -> folder_identity.Folder:
    """The output folder of a search, with what it is compared by."""
    return folder_identity.Folder(
        settings.output,
        settings.output / folder_identity.TRIALS,
        identify(settings, data),
        database.sqlite_file(settings.storage),
    )


def make_tuner(
    settings: Settings,
    output: folder_identity.Folder | None = None,
    hypermodel: AdamaxClippedHyperModel | None = None,
) -> SearchTuner:
    """The tuner of a search; to read it takes neither folder nor model."""
    if hypermodel is None:
        hypermodel = make_hypermodel(settings)
        # The one that trials were run with has done so.
        hypermodel.warns_of_replaced = False
    tuner = SearchTuner(
        hypermodel,
        oracle=OptunaOracle(**settings.of_oracle()),
        directory=str(settings.output),
        project_name=folder_identity.TRIALS,
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
        tuner.trained_model,
    )
    return tuner


def work(
    settings: Settings, *, verbose: bool = False, is_first: bool = True
) -> SearchTuner:
    """Runs trials in this process until none is left."""
    user_errors.note_own(
        settings.build_model, settings.data, settings.callbacks_factory
    )
    hypermodel = make_hypermodel(settings)
    hypermodel.warns_of_replaced = is_first
    OptunaOracle(**settings.of_oracle())  # checks its arguments
    data = as_data(settings.data, settings.validation_split)
    preflight.check_model_takes_data(
        hypermodel,
        data,
        None
        if settings.callbacks_factory or hypermodel.has_own_fit
        else settings.objective.name,
    )
    output = folder_of(settings, data)
    output.check_unused()
    output.look()
    tuner = make_tuner(settings, output, hypermodel)
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
        with what_is_there_is_no_garbage(), signals.deferred():
            tuner.search(
                data.x,
                **arguments,
                callbacks=[StopCheck()],
                verbose=0,
            )
    finally:
        if tuner.progress is not None:
            tuner.progress.close()
    return tuner


@contextlib.contextmanager
def what_is_there_is_no_garbage() -> Iterator[None]:
    """Spares the garbage collector, in the block, what was there before it.

    KerasTuner demands a full collection before each trial. Each would look at
    every object of every module that was imported: a third of a second, twice
    per trial.
    """
    if gc.get_freeze_count():
        # The user's own decision.
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_worker(settings: Settings, number: int) -> None:
    """What a process of its own does; the parent prints."""
    quiet_optuna()
    database.expect_answer(settings.storage)
    # JAX is imported already: an environment would come too late.
    with compilations.shared(settings.compilations):
        work(settings, is_first=number == 1)


def quiet_optuna() -> None:
    """Turns off, for this process, what Optuna says beside our progress."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
