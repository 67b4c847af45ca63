"""OptunaOracle: a KerasTuner oracle whose trials live in an Optuna study."""

import functools
import random
import time
from pathlib import Path
from typing import Any

import keras_tuner
import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from keras_adamax._validation import check_integer
from keras_adamax_tuning.base import credentials
from keras_adamax_tuning.errors import StorageError
from keras_adamax_tuning.study import (
    attempt_book,
    database,
    database_errors,
    distributions,
    heartbeats,
    keras_trials,
    samplers,
    study_identity,
)
from keras_adamax_tuning.study.claims import Claims
from keras_adamax_tuning.study.keras_trials import KerasTrial, TrialStatus
from keras_adamax_tuning.study.opened_study import OpenedStudy
from keras_adamax_tuning.study.proposals import Proposals
from keras_adamax_tuning.study.retries import Retries
from keras_adamax_tuning.study.running_attempts import RunningAttempts
from keras_adamax_tuning.study.trials import Trial, best_first, trials_of

# Attribute of a study: the hyperparameters that trials have found so far.
SPACE = "keras_adamax:space"
_SECONDS_BETWEEN_LOOKS = 0.5


class OptunaOracle(keras_tuner.Oracle):
    """Proposes hyperparameters and keeps trials in an Optuna study.

    Use it with `OptunaTuner` instead of KerasTuner's own oracles, when a
    search shall survive crashes, be shared by several processes or machines,
    be pruned, or be looked at with `optuna-dashboard`. There is no chief:
    every process makes an oracle with the same arguments, and the database
    says what is next.

    A trial whose worker died, or that Ctrl-C stopped, is tried again under the
    same number with the same hyperparameters and the same seed. Which
    processes are dead is known at once on the machine that they ran on;
    elsewhere their heartbeat has to be older than `grace_period`, and only a
    database has heartbeats. Other Optuna storages (in memory, or a journal)
    work, in one process or in several processes of one machine, as far as
    they support that: if a trial of another machine is all that is left, and
    it reports nothing for `grace_period`, the search ends with an error that
    says how to give it back.

    A database that does not answer is waited for, up to 90 seconds for each
    access, and no trial counts as lost for it. A line on standard error says
    so.

    Samplers are made anew for each trial from `seed` and the trial's number.
    One worker that is killed and resumed therefore makes the same proposals
    as one that is not, and several workers that sample randomly or from a
    grid propose the same set as one. A sampler given as an object keeps its
    own random state, which is neither seeded nor restored here.

    Args:
        objective: What to optimize: the name of a metric, a
            `keras_tuner.Objective`, or a list of them, as in KerasTuner.
        max_trials: How many trials, >= 1. Those count that were completed or
            pruned, or that failed by their own fault; not their attempts. A
            larger number than before continues a search.
        storage: URL of a database as SQLAlchemy takes it, or an Optuna
            storage. `None` is the SQLite file `study.db` in the project
            folder of the tuner. Defaults to `None`.
        study_name: Name of the study, one of many in a database. Defaults to
            `"search"`.
        sampler: `"tpe"`, `"random"`, `"grid"` (in the order of declaration;
            every hyperparameter needs a finite number of values), `"gp"`
            (needs torch), `"cmaes"` (needs cmaes), or an Optuna sampler.
            Defaults to `"tpe"`.
        pruner: `"median"`, `"hyperband"`, an Optuna pruner, or `None` for
            none. Defaults to `None`.
        seed: Integer >= 0, or `None` for a random one. Defaults to `None`.
        hyperparameters: `keras_tuner.HyperParameters` that override or
            declare in advance what the model builder declares. Defaults to
            `None`.
        max_retries: How often a trial is tried again whose worker was lost.
            Defaults to `3`.
        max_consecutive_failures: After how many failed trials one after
            another the search stops with an error. Defaults to `5`.
        heartbeat_interval: Seconds between two signs of life, an integer.
            Defaults to `30`.
        grace_period: After how many seconds without a sign of life a worker
            counts as dead, an integer larger than `heartbeat_interval`.
            Defaults to `120`.
        tune_new_entries: As in KerasTuner. Defaults to `True`.
        allow_new_entries: As in KerasTuner. Defaults to `True`.

    Raises:
        ValueError: If an argument is out of range or unknown.
        TypeError: If an argument is of the wrong type.
        ImportError: If the sampler needs a package that is not installed.

    Example:
        >>> import keras_tuner
        >>> from keras_adamax_tuning import OptunaOracle
        >>> hp = keras_tuner.HyperParameters()
        >>> units = hp.Int("units", 4, 64)
        >>> import optuna
        >>> oracle = OptunaOracle(
        ...     "val_loss", max_trials=20, seed=0, hyperparameters=hp,
        ...     storage=optuna.storages.InMemoryStorage(),
        ... )
        >>> oracle.verbose = False
        >>> trial = oracle.create_trial("worker")
        >>> 4 <= trial.hyperparameters.get("units") <= 64
        True
    """

    def __init__(
        self,
        objective: Any = None,
        max_trials: int = 10,
        storage: str | BaseStorage | None = None,
        study_name: str = "search",
        sampler: str | optuna.samplers.BaseSampler = "tpe",
        pruner: str | optuna.pruners.BasePruner | None = None,
        seed: int | None = None,
        hyperparameters: keras_tuner.HyperParameters | None = None,
        max_retries: int = 3,
        max_consecutive_failures: int = 5,
        heartbeat_interval: int = 30,
        grace_period: int = 120,
        tune_new_entries: bool = True,
        allow_new_entries: bool = True,
    ):
        max_trials = check_integer("max_trials", max_trials, minimum=1)
        if seed is None:
            seed = random.SystemRandom().getrandbits(31)
        seed = check_integer("seed", seed, minimum=0, alternatives=" or None")
        self.max_retries = check_integer("max_retries", max_retries, minimum=0)
        self.max_consecutive_failures = check_integer(
            "max_consecutive_failures", max_consecutive_failures, minimum=1
        )
        self.heartbeat_interval = check_integer(
            "heartbeat_interval", heartbeat_interval, minimum=1
        )
        self.grace_period = check_integer(
            "grace_period", grace_period, minimum=1
        )
        if grace_period <= heartbeat_interval:
            raise ValueError(
                "`grace_period` must be larger than `heartbeat_interval`. "
                f"Received: grace_period={grace_period}, "
                f"heartbeat_interval={heartbeat_interval}."
            )
        if storage is not None:
            database.check_storage(storage)
        if not isinstance(study_name, str) or not study_name:
            raise ValueError(
                "`study_name` must be a text that is not empty. Received: "
                f"study_name={study_name!r}."
            )
        super().__init__(
            objective=objective,
            max_trials=max_trials,
            hyperparameters=hyperparameters,
            tune_new_entries=tune_new_entries,
            allow_new_entries=allow_new_entries,
            max_retries_per_trial=max_retries,
            max_consecutive_failed_trials=max_consecutive_failures,
        )
        # KerasTuner takes a seed of 0 for none.
        self.seed = seed
        self.study_name = study_name
        self.sampler = samplers.check_sampler(sampler)
        self.pruner = samplers.make_pruner(pruner)
        self._storage_argument = storage
        self._begun = False
        self._identity: dict[str, Any] | None = None
        self._over_before: set[int] = set()

    # The parts of it, made when the study is first asked for.

    @functools.cached_property
    def _opened(self) -> OpenedStudy:
        argument = self._storage_argument
        if argument is None:
            if getattr(self, "_project_name", None) is None:
                raise ValueError(
                    "OptunaOracle(storage=None) keeps its study in the folder "
                    "of a tuner. Give the oracle to OptunaTuner first, or "
                    "name a database with `storage`."
                )
            argument = database.sqlite_url(
                Path(self._project_dir).resolve() / "study.db"
            )
        return OpenedStudy(
            argument,
            self.study_name,
            self.objective,
            self.pruner,
            self.heartbeat_interval,
            self.grace_period,
        )

    @functools.cached_property
    def _attempts(self) -> RunningAttempts:
        opened, period = self._opened, self.grace_period
        retries = Retries(opened, period, self.max_retries, self._folder_of)
        claims = Claims(opened, retries, period)
        proposals = Proposals(opened, self.sampler, self.seed)
        return RunningAttempts(opened, claims, retries, proposals)

    def _folder_of(self, trial_id: str) -> Path | None:
        """The folder of an attempt; `None` without a tuner."""
        name = getattr(self, "_project_name", None)
        if name is None:
            return None
        # KerasTuner's `_project_dir` would make a folder that is lost again.
        return Path(self._directory) / name / f"trial_{trial_id}"

    @property
    def study(self) -> optuna.Study:
        """The Optuna study, as `optuna-dashboard` shows it, created or joined.

        Each of its trials is one attempt.
        """
        return self._opened.study

    def logical_trials(self) -> list[Trial]:
        """The trials of the search so far, by number, whoever ran them."""
        return trials_of(self._opened.book(), self.max_retries)

    def identity(self) -> dict[str, Any]:
        """What the study of this search is compared by."""
        if self._identity is None:
            # As it is before the trials: what a `fit` declares comes later,
            # and a search that goes on begins without it.
            self._identity = study_identity.describe(
                self.objective, self.hyperparameters
            )
        return self._identity

    def check_search(self) -> None:
        """Compares the search with the record, and writes nothing.

        Raises:
            SearchMismatchError: If the study was made with another space or
                another objective.
            StorageError: If the database cannot be used.
            ValueError: If the sampler is `"grid"` and the space is not finite.
        """
        self._compare(begins=False)

    def begin_search(self) -> None:
        """Makes the search the study's; called before the first trial.

        It raises what `check_search` does.
        """
        self._compare(begins=True)
        grown = self.study.user_attrs.get(SPACE)
        if grown is not None:
            self.update_space(keras_tuner.HyperParameters.from_config(grown))
        self._over_before = {entry.number for entry in self._over()}
        self._begun = True

    def _compare(self, begins: bool) -> None:
        if self.sampler == "grid":
            distributions.grid(self.hyperparameters.space)
        study_identity.compare(self.study, self.identity(), begins)

    def _over(self) -> list[attempt_book.Entry]:
        return attempt_book.over(self._opened.book(), self.max_retries)

    def without_credentials(self, text: str) -> str:
        """A text with `***` in place of the database's password.

        A callback may use the same database, and quote its URL in an error.
        """
        secrets = database_errors.secrets_of(self._opened.storage)
        return credentials.hide(text, secrets)

    # KerasTuner's interface.

    def create_trial(self, tuner_id: str) -> KerasTrial:
        """The next attempt, for the worker to run.

        Its status is `"RUNNING"`; or `"IDLE"`, if all that is left runs
        elsewhere (ask again: one of those workers may die); or `"STOPPED"`, if
        nothing is left. The name of the worker may be any.
        """
        if not self._begun:
            self.begin_search()
        begun = self._attempts.begin_next(self.max_trials, self.get_space())
        if begun == TrialStatus.IDLE:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if isinstance(begun, str):
            return KerasTrial(self.get_space(), trial_id="none", status=begun)
        trial = self.trials[begun.trial.trial_id] = begun.trial
        if self.verbose >= 1:
            keras_trials.print_begin(
                trial, begun.number, begun.count, self.max_trials
            )
        return trial

    def update_trial(
        self, trial_id: str, metrics: dict[str, float], step: int = 0
    ) -> KerasTrial:
        """As in KerasTuner: the metrics of a running trial, after an epoch."""
        self._check_objective_found(metrics)
        running = self._attempts[trial_id]
        reason = keras_trials.add_metrics(
            running.trial, metrics, step, self.objective
        )
        if reason is not None:
            running.result["reason"] = reason
        return running.trial

    def end_trial(self, trial: KerasTrial) -> None:
        """Publishes the result of a running trial, if it is still its own.

        KerasTuner tries a trial of status `"INVALID"` again; here an exception
        is the trial's own fault, and only a lost worker is not.

        Raises:
            ConsecutiveFailuresError: If too many trials failed in a row.
        """
        running = self._attempts[trial.trial_id]
        try:
            if trial.status == TrialStatus.COMPLETED:
                if "reason" in running.result:
                    trial.status = TrialStatus.FAILED
                else:
                    self.score_trial(trial)
            state, value = keras_trials.conclude(
                trial, running.result, self.without_credentials
            )
            self.update_space(trial.hyperparameters)
            published = self._attempts.publish(trial.trial_id, state, value)
        except StorageError:
            self.put_back_later(trial.trial_id)
            raise
        except BaseException:
            self.put_back(trial.trial_id)
            raise
        self.abandon(trial.trial_id)
        if self.verbose >= 1:
            said = "was given to another worker"
            if published:
                said = keras_trials.ending(
                    trial, running.result, self.objective
                )
            best = self.get_best_trials()
            best_said = f" (best: {best[0].score:.5g})" if best else ""
            print(f"Trial {running.number}: {said}{best_said}")
        if published and state == TrialState.FAIL:
            keras_trials.check_consecutive_failures(
                [e for e in self._over() if e.number not in self._over_before],
                self.max_consecutive_failures,
                self.max_retries,
            )

    def update_space(
        self, hyperparameters: keras_tuner.HyperParameters
    ) -> None:
        """As in KerasTuner; what a trial found is there after a resume, too."""
        before = len(self.hyperparameters.space)
        super().update_space(hyperparameters)
        if self._begun and len(self.hyperparameters.space) != before:
            self.study.set_user_attr(
                SPACE, distributions.to_config(self.hyperparameters)
            )

    def get_trial(self, trial_id: str) -> KerasTrial:
        """The KerasTuner trial of that name, from whichever process."""
        if trial_id in self._attempts:
            return self._attempts[trial_id].trial
        for trial in self.logical_trials():
            if trial.trial_id == trial_id:
                return self._to_keras_tuner(trial)
        raise KeyError(trial_id)

    def get_best_trials(self, num_trials: int = 1) -> list[KerasTrial]:
        """The best completed trials, from whichever process, best first.

        Of equal scores the earlier trial comes first. Trials that were added
        to the study by hand are left out, because they have no weights.
        """
        best = best_first(self.logical_trials(), self.objective.direction)
        return [self._to_keras_tuner(trial) for trial in best[:num_trials]]

    def _to_keras_tuner(self, trial: Trial) -> KerasTrial:
        return keras_trials.of_record(trial, self.get_space(), self.objective)

    def remaining_trials(self) -> int:
        """How many of `max_trials` have no result yet."""
        return max(self.max_trials - len(self._over()), 0)

    # What a worker reports.

    def seed_of(self, trial_id: str, execution: int = 0) -> int:
        """The seed for one execution of a running trial."""
        seed = self._attempts[trial_id].seed
        return samplers.derived_seed(seed, execution) if execution else seed

    def heartbeat(self, trial_id: str) -> heartbeats.Heartbeat:
        """A context in which a running trial gives signs of life."""
        return self._attempts.heartbeat(trial_id)

    def report(self, trial_id: str, value: float, step: int) -> bool:
        """Records the objective of an epoch; whether to prune the trial.

        Raises:
            AttemptLost: If another worker has given up on this attempt.
        """
        return self._attempts.report(trial_id, value, step)

    def record_result(self, trial_id: str, **result: Any) -> None:
        """Notes what is recorded beside the score when the trial ends."""
        self._attempts[trial_id].result.update(result)

    def result_so_far(self, trial_id: str) -> dict[str, Any]:
        """What was noted of a running trial with `record_result`."""
        return self._attempts[trial_id].result

    def put_back(self, trial_id: str) -> None:
        """Gives a running trial back, to be tried again; that is no loss."""
        self._attempts.put_back(trial_id)

    def put_back_later(self, trial_id: str) -> None:
        """As `put_back` while the database is away: in the trial's folder."""
        self._attempts.put_back_later(trial_id)

    def abandon(self, trial_id: str) -> None:
        """Forgets an attempt that has ended, or that another worker ended."""
        self._attempts.abandon(trial_id)

    # KerasTuner's own record, which a kill can leave half written: not kept.

    def save(self) -> None:
        """Does nothing: the study is saved with each transaction."""

    def reload(self) -> None:
        """Does nothing: the study is read when something is asked of it."""
