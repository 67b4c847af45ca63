"""OptunaTuner: a KerasTuner tuner that loses nothing."""

import contextlib
import functools
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner import errors as keras_tuner_errors

from keras_adamax._validation import check_integer
from keras_adamax_tuning.base import tensorflow_guard, user_errors
from keras_adamax_tuning.errors import (
    ConsecutiveFailuresError,
    SearchMismatchError,
    StorageError,
)
from keras_adamax_tuning.study import folder_identity
from keras_adamax_tuning.study.keras_trials import (
    PRUNED,
    KerasTrial,
    TrialStatus,
)
from keras_adamax_tuning.study.optuna_oracle import OptunaOracle
from keras_adamax_tuning.study.running_attempts import AttemptLost
from keras_adamax_tuning.training import executions, returned_metrics
from keras_adamax_tuning.training.trial_callbacks import (
    TrialEvents,
    loggers_of,
)

CallbacksFactory = Callable[
    [KerasTrial, keras_tuner.HyperParameters, Path],
    Sequence[keras.callbacks.Callback],
]

_TRACEBACK = "traceback.txt"
# What is neither the trial's fault nor cured by another trial.
_NOT_THE_TRIALS_FAULT = (
    StorageError,
    SearchMismatchError,
    ConsecutiveFailuresError,
    keras_tuner_errors.FatalError,
)


class OptunaTuner(keras_tuner.Tuner):
    """Runs the trials that an `OptunaOracle` proposes.

    Use it as any tuner of KerasTuner: `search` takes what `fit` takes, and
    `get_best_models` and its siblings give the best so far, from any process
    that has the same oracle arguments and reaches the same folder.

    Each attempt at a trial has a folder of its own, `trial_folder(trial_id)`:
    the weights of the best epoch with the optimizer's state
    (`checkpoint.weights.h5`), the logs of each epoch (`history.csv`), and what
    the callbacks write. The weights are those that the recorded score was
    measured with; with several executions, whose mean is the score, they are
    the best execution's, and the trial's `checkpoint` says which.

    A trial whose objective becomes NaN or infinite fails in that epoch. An
    exception in `build` or `fit` fails its trial, and the search goes on.
    Ctrl-C puts the running attempt back, and the same search continues with
    it when it is started again.

    Args:
        hypermodel: A `keras_tuner.HyperModel`, or a function of `hp` that
            returns a compiled model.
        oracle: An `OptunaOracle`.
        directory: Folder for everything that is written. Defaults to `None`,
            the current one.
        project_name: Name of the folder in `directory`. Defaults to `None`,
            which is KerasTuner's `"untitled_project"`.
        callbacks_factory: Called for each execution as
            `f(trial, hp, folder)`; returns callbacks of that execution's own.
            `None` is a `WeightDeltaLogger` and, where the optimizer is an
            `AdamaxClipped`, a `ClipRateLogger`, which write `weights.csv`
            there. Defaults to `None`.
        executions_per_trial: How often each trial is trained, >= 1. Defaults
            to `1`.
        tensorboard_dir: Folder, in which each training gets event files for
            TensorBoard: its logs, and its row in HParams. Needs tensorboardX.
            Defaults to `None`.
        **kwargs: What else `keras_tuner.Tuner` takes: `max_model_size`,
            `optimizer`, `loss`, `metrics`, `distribution_strategy`,
            `tuner_id`.

    Raises:
        TypeError: If the oracle is no `OptunaOracle`.
        ValueError: If `overwrite=True` is asked for.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> from keras_adamax_tuning import OptunaOracle, OptunaTuner
        >>> def build_model(hp):
        ...     model = keras.Sequential(
        ...         [keras.Input((2,)), keras.layers.Dense(1)]
        ...     )
        ...     model.compile(
        ...         keras.optimizers.SGD(hp.Float("rate", 0.01, 0.1)), "mse"
        ...     )
        ...     return model
        >>> folder = tempfile.mkdtemp()
        >>> tuner = OptunaTuner(
        ...     build_model,
        ...     oracle=OptunaOracle("loss", max_trials=2, seed=0),
        ...     directory=folder,
        ...     project_name="trials",
        ... )
        >>> tuner.search(np.ones((8, 2)), np.ones((8, 1)), verbose=0)
        >>> [t.state for t in tuner.oracle.logical_trials()]
        ['completed', 'completed']
    """

    def __init__(
        self,
        hypermodel: Any,
        oracle: OptunaOracle,
        directory: str | os.PathLike | None = None,
        project_name: str | None = None,
        callbacks_factory: CallbacksFactory | None = None,
        executions_per_trial: int = 1,
        tensorboard_dir: str | os.PathLike | None = None,
        **kwargs: Any,
    ):
        if not isinstance(oracle, OptunaOracle):
            raise TypeError(
                "`oracle` must be an OptunaOracle. Received: "
                f"oracle={oracle!r} (of type {type(oracle).__name__}). Other "
                "oracles work with KerasTuner's own tuners."
            )
        if kwargs.pop("overwrite", False):
            raise ValueError(
                "`overwrite` must be False, because other workers may be in "
                "the same search. Received: overwrite=True. Choose another "
                "folder, or another `study_name` of the oracle."
            )
        if callbacks_factory is not None and not callable(callbacks_factory):
            raise TypeError(
                "`callbacks_factory` must be a function of (trial, hp, "
                "folder), or None. Received: callbacks_factory="
                f"{callbacks_factory!r} (of type "
                f"{type(callbacks_factory).__name__})."
            )
        executions_per_trial = check_integer(
            "executions_per_trial", executions_per_trial, minimum=1
        )
        self.callbacks_factory = callbacks_factory
        # What is written to; `search` finds it, unless a subclass has set it.
        self._output: folder_identity.Folder | None = None
        # Of which attempt the model is that was trained last.
        self._trained: tuple[str, keras.Model] | None = None
        self.tensorboard_dir = None
        if tensorboard_dir is not None:
            self.tensorboard_dir = Path(tensorboard_dir)
            # Tells now if tensorboardX is missing.
            TrialEvents(self.tensorboard_dir, {}, oracle.objective.name)
        super().__init__(
            oracle=oracle,
            hypermodel=hypermodel,
            directory=None if directory is None else os.fspath(directory),
            project_name=project_name,
            executions_per_trial=executions_per_trial,
            **kwargs,
        )

    def search(self, *args: Any, **kwargs: Any) -> None:
        """Runs trials until `max_trials` are done, here or elsewhere.

        Args:
            *args: Positional arguments of `fit`.
            **kwargs: Keyword arguments of `fit`. `callbacks` are copied for
                each execution, as in KerasTuner; `verbose=0` prints nothing.

        Raises:
            SearchMismatchError: If the study was made with another space or
                another objective, or if the folder holds the trials of
                another study, or the study has its trials in another folder.
            StorageError: If the database cannot be used.
            ConsecutiveFailuresError: If too many trials failed in a row.
            KeyboardInterrupt: After Ctrl-C; the same search can be started
                again.
        """
        if "verbose" in kwargs:
            self.oracle.verbose = kwargs["verbose"]
        self.oracle.check_search()
        output = self._claim_folder()
        self.oracle.begin_search()
        self.on_search_begin()
        while True:
            self.pre_create_trial()
            output.check(self.oracle.study)
            trial = self.oracle.create_trial(self.tuner_id)
            if trial.status == TrialStatus.STOPPED:
                break
            if trial.status == TrialStatus.IDLE:
                continue
            try:
                with self.oracle.heartbeat(trial.trial_id):
                    output.check(self.oracle.study)
                    self.on_trial_begin(trial)
                    self._run_attempt(trial, *args, **kwargs)
                self.on_trial_end(trial)
            except AttemptLost:
                self.oracle.abandon(trial.trial_id)
                continue
            except StorageError:
                self.oracle.put_back_later(trial.trial_id)
                raise
            except BaseException:
                self.oracle.put_back(trial.trial_id)
                raise
        self.on_search_end()

    def _claim_folder(self) -> folder_identity.Folder:
        output = self._output
        if output is None:
            objective, space = self.oracle.identity().values()
            named = {f"{hp['name']} {hp['conditions']}": hp for hp in space}
            output = folder_identity.Folder.of_project(
                self.trial_folder("").parent,
                {"objective": objective, "space": named},
            )
        output.claim(self.oracle.study)
        return output

    def _run_attempt(
        self, trial: KerasTrial, *args: Any, **kwargs: Any
    ) -> None:
        try:
            results = self.run_trial(trial, *args, **kwargs)
            self.oracle.update_trial(
                trial.trial_id,
                returned_metrics.to_metrics(results, self.oracle.objective),
                step=self.oracle.result_so_far(trial.trial_id).get(
                    "best_epoch", 0
                ),
            )
            trial.status = TrialStatus.COMPLETED
        except executions.PruneTrial:
            trial.status = PRUNED
        except (AttemptLost, *_NOT_THE_TRIALS_FAULT):
            raise
        except Exception as error:
            trial.status = TrialStatus.FAILED
            if isinstance(error, executions.NonFiniteObjectiveError):
                self.oracle.record_result(
                    trial.trial_id, reason=str(error), epoch=error.epoch
                )
                return
            trial.message = self.oracle.without_credentials(
                traceback.format_exc()
            )
            message = " ".join(str(error).split())
            self.oracle.record_result(
                trial.trial_id,
                reason=f"{type(error).__name__}: {message}".rstrip(": "),
                place=user_errors.place_of(error),
            )
            # A full disk may be the reason; the study has the text, too.
            with contextlib.suppress(OSError):
                (self.trial_folder(trial.trial_id) / _TRACEBACK).write_text(
                    trial.message, encoding="utf-8"
                )

    def run_trial(self, trial: KerasTrial, *args: Any, **kwargs: Any) -> Any:
        """Builds, trains and saves the model of a trial.

        A subclass may override it, as in KerasTuner, to search anything.

        Args:
            trial: The trial.
            *args: Positional arguments of `search`.
            **kwargs: Keyword arguments of `search`.

        Returns:
            A dictionary of metrics, with the objective.
        """
        folder = self.trial_folder(trial.trial_id)
        executions.clear(folder)
        folder.mkdir(parents=True)
        history = executions.HistoryFile(folder / executions.HISTORY)
        done = executions.ExecutionsOfTrial(folder, self.oracle.objective)
        for execution in range(self.executions_per_trial):
            recorder = self._make_recorder(trial, execution, folder, history)
            try:
                score = self._execute(trial, execution, recorder, args, kwargs)
            except executions.PruneTrial:
                assert recorder.best_score is not None
                done.add(recorder, recorder.best_score)
                self.oracle.record_result(trial.trial_id, **done.record())
                raise
            done.add(recorder, score)
            self.oracle.record_result(trial.trial_id, **done.record())
        return {**done.metrics, self.oracle.objective.name: done.score}

    def _make_recorder(
        self,
        trial: KerasTrial,
        execution: int,
        folder: Path,
        history: executions.HistoryFile,
    ) -> executions.ExecutionRecorder:
        report = None
        if execution == 0:  # pruners compare one training with another
            report = functools.partial(self.oracle.report, trial.trial_id)
        return executions.ExecutionRecorder(
            self.oracle.objective,
            folder / f".execution_{execution}.weights.h5",
            history,
            execution,
            report,
        )

    def _execute(
        self,
        trial: KerasTrial,
        execution: int,
        recorder: executions.ExecutionRecorder,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> float:
        """Trains once; the score."""
        with tensorflow_guard.not_imported():
            keras.utils.set_random_seed(
                self.oracle.seed_of(trial.trial_id, execution)
            )
        hp = trial.hyperparameters
        self._trained = None  # one model at a time is in memory
        model = self._try_build(hp)
        folder = self.trial_folder(trial.trial_id)
        if self.executions_per_trial > 1:
            folder = folder / f"execution_{execution}"
            folder.mkdir()
        copied = self._deepcopy_callbacks(list(kwargs.get("callbacks") or ()))
        self._configure_tensorboard_dir(copied, trial, execution)
        own = self._own_callbacks(trial, model, folder)
        fit_kwargs = {**kwargs, "callbacks": [*own, *copied, recorder]}
        results = self.hypermodel.fit(hp, model, *args, **fit_kwargs)
        executions.save_build_config(self.trial_folder(trial.trial_id), model)
        score = recorder.judge(results, model)
        self._trained = trial.trial_id, model
        return score

    def _own_callbacks(
        self, trial: KerasTrial, model: keras.Model, folder: Path
    ) -> list[keras.callbacks.Callback]:
        if self.callbacks_factory is not None:
            callbacks = list(
                self.callbacks_factory(trial, trial.hyperparameters, folder)
            )
        else:
            callbacks = loggers_of(model, folder)
        if self.tensorboard_dir is not None:
            trials = self.trial_folder(trial.trial_id).parent
            callbacks.append(
                TrialEvents(
                    self.tensorboard_dir / folder.relative_to(trials),
                    trial.hyperparameters.values,
                    self.oracle.objective.name,
                )
            )
        return callbacks

    def load_model(self, trial: KerasTrial) -> keras.Model:
        """The model of a trial, with its weights and its optimizer's state.

        Args:
            trial: A completed trial, such as `oracle.get_best_trials` gives.

        Returns:
            A compiled model.
        """
        folder = self.trial_folder(trial.trial_id)
        model = self._try_build(trial.hyperparameters)
        executions.load_weights(folder, model)
        return model

    def trained_model(self, trial_id: str) -> keras.Model:
        """The model of an attempt with its best weights, to be saved.

        It is the one that was trained last, if that was in this attempt, so
        that it is not built again.
        """
        if self._trained is None or self._trained[0] != trial_id:
            return self.load_model(self.oracle.get_trial(trial_id))
        model = self._trained[1]
        executions.load_weights(self.trial_folder(trial_id), model)
        return model

    def trial_folder(self, trial_id: str) -> Path:
        """The folder of an attempt.

        Args:
            trial_id: Name of the attempt, such as a `Trial` has.

        Returns:
            Its path; it need not exist on this machine.
        """
        return Path(self.directory) / self.project_name / f"trial_{trial_id}"

    def on_trial_end(self, trial: KerasTrial) -> None:
        """Publishes the trial's result."""
        self.oracle.end_trial(trial)

    # KerasTuner's own record, which a kill can leave half written: not kept.

    def save(self) -> None:
        """Does nothing: the study is saved with each transaction."""

    def reload(self) -> None:
        """Does nothing: the study is read when something is asked of it."""
