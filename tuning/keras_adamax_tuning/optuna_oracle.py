"""OptunaOracle: a KerasTuner oracle whose trials live in an Optuna study."""

import contextlib
import copy
import dataclasses
import datetime
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras_tuner
import numpy as np
import optuna
from keras_tuner.engine import trial as keras_tuner_trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from keras_adamax._validation import check_integer
from keras_adamax_tuning import (
    _attempts,
    _credentials,
    _database_errors,
    _distributions,
    _heartbeat,
    _owner,
    _put_back,
    _samplers,
    _storage,
)
from keras_adamax_tuning._errors import (
    ConsecutiveFailuresError,
    SearchMismatchError,
    StorageError,
)
from keras_adamax_tuning._logical_storage import LogicalStorage, filtered_study
from keras_adamax_tuning._patient_storage import PatientStorage
from keras_adamax_tuning._progress import note
from keras_adamax_tuning._waiting import Waiting
from keras_adamax_tuning.logical_trial import LogicalTrial, logical_trials

TrialStatus = keras_tuner_trial.TrialStatus
PRUNED = "PRUNED"

# Attribute of a study: the hyperparameters that trials have found so far.
SPACE = "keras_adamax:space"
_IDENTITY = "keras_adamax:identity"
_SECONDS_BETWEEN_LOOKS = 0.5
# How long a beat may take that is due.
_SECONDS_TO_BEAT_AGAIN = 1
# Signs of life that are older are not missing because of an outage.
_SECONDS_OF_LONGEST_OUTAGE = 600


@dataclasses.dataclass
class _Running:
    """An attempt that runs in this process."""

    trial: keras_tuner_trial.Trial
    attempt_id: int
    number: int
    owner: dict[str, Any]
    proposal: dict[str, Any]
    result: dict[str, Any]


class AttemptLost(Exception):
    """This attempt was given up by another worker: its result is void."""


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
        if seed is not None:
            seed = check_integer(
                "seed", seed, minimum=0, alternatives=" or None"
            )
        max_retries = check_integer("max_retries", max_retries, minimum=0)
        self.max_consecutive_failures = check_integer(
            "max_consecutive_failures", max_consecutive_failures, minimum=1
        )
        self.heartbeat_interval = check_integer(
            "heartbeat_interval", heartbeat_interval, minimum=1
        )
        self.grace_period = check_integer(
            "grace_period", grace_period, minimum=1
        )
        if self.grace_period <= self.heartbeat_interval:
            raise ValueError(
                "`grace_period` must be larger than `heartbeat_interval`. "
                f"Received: grace_period={grace_period}, "
                f"heartbeat_interval={heartbeat_interval}."
            )
        if storage is not None and not isinstance(storage, (str, BaseStorage)):
            raise TypeError(
                "`storage` must be a database URL, an Optuna storage or None. "
                f"Received: storage of type {type(storage).__name__}."
            )
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
        self.seed = (
            random.SystemRandom().getrandbits(31) if seed is None else seed
        )
        self.max_retries = max_retries
        self.study_name = study_name
        self.sampler = _samplers.check_sampler(sampler)
        self.pruner = _samplers.make_pruner(pruner)
        self._storage_argument = storage
        self._study: optuna.Study | None = None
        self._running: dict[str, _Running] = {}
        self._last_book: list[_attempts.LogicalAttempts] = []
        self._begun = False
        self._warned_of_sqlite = False
        self._identity: dict[str, Any] | None = None
        self._over_before: set[int] = set()

    # The study.

    @property
    def study(self) -> optuna.Study:
        """The Optuna study, as `optuna-dashboard` shows it.

        Each of its trials is one attempt. It is created, or joined, when it
        is first asked for.
        """
        if self._study is None:
            self._open()
        assert self._study is not None
        return self._study

    def _open(self) -> None:
        argument = self._storage_argument
        if argument is None:
            if getattr(self, "_project_name", None) is None:
                raise ValueError(
                    "OptunaOracle(storage=None) keeps its study in the folder "
                    "of a tuner. Give the oracle to OptunaTuner first, or "
                    "name a database with `storage`."
                )
            argument = _storage.sqlite_url(
                Path(self._project_dir).resolve() / "study.db"
            )
        # Only beats go to it directly; all else goes through `_cached`, which
        # has Optuna's cache in it and outlives outages.
        self._storage = _storage.open_storage(argument)
        _heartbeat.prepare(
            self._storage, self.heartbeat_interval, self.grace_period
        )
        self._cached = PatientStorage(
            optuna.storages.get_storage(self._storage),
            argument,
            _heartbeat.interval_of(self._storage),
        )
        self._waiting = Waiting(
            self.grace_period, _heartbeat.is_kept_by(self._storage)
        )
        study = optuna.create_study(
            storage=self._cached,
            study_name=self.study_name,
            direction=self._direction,
            load_if_exists=True,
        )
        if study.direction.name.lower() != self._direction:
            raise SearchMismatchError(
                f"The study {self.study_name!r} has another objective: it "
                f"is to be {study.direction.name.lower()}d, and "
                f"{self.objective.name!r} is to be {self._direction}d. "
                "Choose another output folder or `study_name`."
            )
        self._study = study

    @property
    def _direction(self) -> Literal["minimize", "maximize"]:
        return "maximize" if self.objective.direction == "max" else "minimize"

    def _read(self) -> list[FrozenTrial]:
        study_id = self.study._study_id
        return self._cached.get_all_trials(study_id, deepcopy=False)

    def _book(self) -> list[_attempts.LogicalAttempts]:
        return _attempts.read(self._read())

    def _logical_study(
        self,
        book: Sequence[_attempts.LogicalAttempts],
        sampler: optuna.samplers.BaseSampler | None = None,
    ) -> optuna.Study:
        """The study as samplers and pruners see it."""
        view = LogicalStorage(
            self._cached, self.study._study_id, _attempts.renumbered(book)
        )
        # A study keeps what it has read, so there is a new one each time.
        return optuna.load_study(
            study_name=self.study_name,
            storage=view,
            sampler=sampler or optuna.samplers.RandomSampler(),
            pruner=self.pruner,
        )

    def logical_trials(self) -> list[LogicalTrial]:
        """The trials of the search so far, by number, whoever ran them."""
        return logical_trials(self._book(), self.max_retries)

    def identity(self) -> dict[str, Any]:
        """What the study of this search is compared by."""
        if self._identity is None:
            # As it is before the trials: what a `fit` declares comes later,
            # and a search that goes on begins without it.
            self._identity = {
                "objective": self._describe_objective(),
                "space": _distributions.describe(self.hyperparameters.space),
            }
        return self._identity

    def check_search(self) -> None:
        """Compares the search with the record, and writes nothing.

        Raises:
            SearchMismatchError: If the study was made with another space or
                another objective.
            StorageError: If the database cannot be used.
            ValueError: If the sampler is `"grid"` and the space is not finite.
        """
        self._check_grid()
        study = self.study
        recorded = study.user_attrs.get(_IDENTITY)
        if recorded is not None:
            self._check_identity(recorded, self.identity())

    def _check_grid(self) -> None:
        if self.sampler == "grid":
            _distributions.grid(self.hyperparameters.space)

    def begin_search(self) -> None:
        """Compares the search with the record; called before the first trial.

        Raises:
            SearchMismatchError: If the study was made with another space or
                another objective.
            StorageError: If the database cannot be used.
            ValueError: If the sampler is `"grid"` and the space is not finite.
        """
        self._check_grid()
        study = self.study
        identity = self.identity()
        if _IDENTITY not in study.user_attrs:
            study.set_user_attr(_IDENTITY, identity)
        # If two processes begin at once, the later one's is compared.
        self._check_identity(study.user_attrs[_IDENTITY], identity)
        grown = study.user_attrs.get(SPACE)
        if grown is not None:
            self.update_space(keras_tuner.HyperParameters.from_config(grown))
        self._over_before = {
            entry.number
            for entry in self._book()
            if _attempts.is_over(entry, self.max_retries)
        }
        self._begun = True

    def _describe_objective(self) -> list[list[str]]:
        parts = getattr(self.objective, "objectives", [self.objective])
        return sorted([part.name, part.direction] for part in parts)

    def _check_identity(
        self, recorded: dict[str, Any], identity: dict[str, Any]
    ) -> None:
        advice = (
            "Continue it with what it began with, or choose another output "
            "folder or `study_name`."
        )
        if recorded["objective"] != identity["objective"]:
            raise SearchMismatchError(
                f"The study {self.study_name!r} has another objective: "
                f"{_name_objective(recorded['objective'])}, not "
                f"{_name_objective(identity['objective'])}. {advice}"
            )
        if recorded["space"] != identity["space"]:
            raise SearchMismatchError(
                f"The study {self.study_name!r} has another space: "
                f"{_first_difference(recorded['space'], identity['space'])}. "
                f"{advice}"
            )

    def without_credentials(self, text: str) -> str:
        """A text with `***` in place of the database's password.

        A callback may use the same database, and quote its URL in an error.
        """
        secrets = _database_errors.secrets_of(self._storage)
        return _credentials.hide(text, secrets)

    # KerasTuner's interface.

    def create_trial(self, tuner_id: str) -> keras_tuner_trial.Trial:
        """The next attempt, for the worker to run.

        Args:
            tuner_id: Name of the worker; any.

        Returns:
            A KerasTuner trial. Its status is `"RUNNING"`; or `"IDLE"`, if all
            that is left runs elsewhere (ask again: one of those workers may
            die); or `"STOPPED"`, if nothing is left.
        """
        del tuner_id
        if not self._begun:
            self.begin_search()
        entry = self._claim()
        if entry == TrialStatus.IDLE:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        else:
            self._waiting.end()
        if isinstance(entry, str):
            return keras_tuner_trial.Trial(
                self.get_space(), trial_id="none", status=entry
            )
        owner = _owner.claim()
        attempt = entry.last
        trial_id = entry.trial_id(attempt)
        try:
            self._cached.set_trial_user_attr(
                attempt._trial_id, _attempts.OWNER, owner
            )
            proposal = attempt.user_attrs.get(_attempts.PROPOSAL)
            if proposal is None:
                proposal = self._propose(entry)
        except UpdateFinishedTrialError:
            # This process slept for so long that another gave up on it.
            _owner.release(owner)
            return self.create_trial("")
        except StorageError:
            self._give_back_later(trial_id, owner)
            raise
        except BaseException:
            self._give_back(attempt._trial_id, trial_id, owner)
            raise
        hyperparameters = self._with_values(proposal["values"])
        trial = keras_tuner_trial.Trial(hyperparameters, trial_id=trial_id)
        self._running[trial_id] = _Running(
            trial, attempt._trial_id, entry.number, owner, proposal, {}
        )
        self.trials[trial_id] = trial
        self._print_begin(entry, trial)
        return trial

    def _with_values(
        self, values: dict[str, Any]
    ) -> keras_tuner.HyperParameters:
        """The space with the values of a proposal.

        A retry may be older than a hyperparameter that a model builder has
        declared since. The first attempt came to that with its default.
        """
        hyperparameters = self.get_space()
        hyperparameters.values = copy.deepcopy(values)
        for hp in hyperparameters.space:
            if hp.name not in hyperparameters.values and (
                _distributions.is_active(hp, hyperparameters.values)
            ):
                hyperparameters.values[hp.name] = hp.default
        return hyperparameters

    def _claim(self) -> _attempts.LogicalAttempts | str:
        """Makes an attempt this process's own, or says why there is none."""
        while True:
            trials = self._read()
            book = _attempts.read(trials)
            if self._clear_up(trials, book):
                continue
            entries = book[: self.max_trials]
            waiting = [e for e in entries if e.last.state == TrialState.WAITING]
            for entry in waiting:
                if self._take(entry.last):
                    self._last_book = book
                    return entry
            if waiting:
                continue  # other workers were faster
            running = {
                entry.number: entry.last
                for entry in entries
                if entry.last.state == TrialState.RUNNING
            }
            # One that has not said who runs it has died, or is about to tell.
            # A search that goes on before its dead trial would propose
            # something else than one that was not killed.
            if any(
                _attempts.OWNER not in a.user_attrs for a in running.values()
            ):
                self._waiting.look(running)
                return TrialStatus.IDLE
            if len(book) < self.max_trials and self._can_propose(len(book)):
                self._cached.create_new_trial(
                    self.study._study_id,
                    optuna.trial.create_trial(state=TrialState.WAITING),
                )
                continue
            if running:
                self._waiting.look(running)
                return TrialStatus.IDLE
            return TrialStatus.STOPPED

    def _clear_up(
        self,
        trials: Sequence[FrozenTrial],
        book: Sequence[_attempts.LogicalAttempts],
    ) -> bool:
        """Ends what is dead or double, and replaces it where it is due.

        Returns:
            Whether anything was done, so that the study is to be read again.
        """
        ended = self._dead(trials) + _duplicates(trials, book)
        entries = {entry.last._trial_id: entry for entry in book}
        for attempt in ended:
            if self._is_to_be_put_back(entries.get(attempt._trial_id)):
                self._record_put_back(attempt._trial_id)
                continue
            # Another worker may have done it at the same moment.
            with contextlib.suppress(UpdateFinishedTrialError):
                self._cached.set_trial_state_values(
                    attempt._trial_id, TrialState.FAIL
                )
        retries = _attempts.due_retries(book, self.max_retries)
        for entry in retries:
            self._add_retry(entry)
        return bool(ended or retries)

    def _dead(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """The attempts that no process works on any more."""
        running = [t for t in trials if t.state == TrialState.RUNNING]
        if not running:
            return []
        stale = self._stale()
        dead = []
        for attempt in running:
            owner = attempt.user_attrs.get(_attempts.OWNER)
            is_stale = attempt._trial_id in stale
            if owner is None:
                is_dead = not _heartbeat.is_kept_by(
                    self._storage
                ) and self._started_long_ago(attempt)
            else:
                is_dead = _owner.is_surely_dead(owner)
                is_stale = is_stale and not _owner.surely_lives(owner)
            if is_dead or is_stale:
                dead.append(attempt)
            elif owner is not None and _owner.is_elsewhere(owner):
                self._warn_of_sqlite(attempt)
        return dead

    def _stale(self) -> list[int]:
        """The attempts whose worker gives no signs of life.

        After an outage or a pause of the database, and after a suspend of
        this machine, all signs are old. Living workers need an interval to
        give new ones, and so does one that this process has not watched for
        that long.
        """
        storage = self._storage
        if not isinstance(storage, RDBStorage):
            return []

        def ask(later: int) -> list[int]:
            return self._cached.patiently(
                lambda: _heartbeat.stale_trial_ids(
                    storage, self.study._study_id, later
                )
            )

        stale = ask(0)
        if not stale:
            return []
        since = max(self._cached.answers_since, _storage.connected_at(storage))
        watched = time.monotonic() - since
        interval = _heartbeat.interval_of(storage)
        if watched > interval + _SECONDS_TO_BEAT_AGAIN:
            return stale
        pause = math.ceil(self._cached.longest_pause_seen)
        return ask(max(_SECONDS_OF_LONGEST_OUTAGE, pause))

    def _warn_of_sqlite(self, attempt: FrozenTrial) -> None:
        storage = self._storage
        if (
            self._warned_of_sqlite
            or not isinstance(storage, RDBStorage)
            or storage.engine.dialect.name != "sqlite"
        ):
            return
        self._warned_of_sqlite = True
        host = attempt.user_attrs[_attempts.OWNER].get("host", "unknown")
        file = storage.engine.url.database
        note(
            f"warning: another machine or container ({host}) seems to work "
            f"with the SQLite file {file}, too. SQLite is for one machine: on "
            "a file system that several share the record can break, and signs "
            "of life are judged by clocks that differ. Stop one of them, and "
            "use PostgreSQL (`storage`) for several machines. Go on if that "
            "machine is off, or if it is this one before a restart"
        )

    def _take(self, attempt: FrozenTrial) -> bool:
        # First, so that one whose worker dies at once is noticed, too.
        self._cached.patiently(
            lambda: _heartbeat.beat(self._storage, attempt._trial_id)
        )
        try:
            return self._cached.set_trial_state_values(
                attempt._trial_id, TrialState.RUNNING
            )
        except UpdateFinishedTrialError:
            return False

    def _can_propose(self, number: int) -> bool:
        if self.sampler != "grid":
            return True
        space = self.hyperparameters.space
        return _distributions.nth_of_grid(space, number) is not None

    def _add_retry(self, entry: _attempts.LogicalAttempts) -> None:
        template: dict[str, Any] = {"state": TrialState.WAITING}
        system_attrs: dict[str, Any] = {}
        proposal = entry.proposal
        if proposal is not None:
            # Some samplers keep what they know in the trial.
            system_attrs.update(proposal.system_attrs)
            template["params"] = proposal.params
            template["distributions"] = proposal.distributions
            template["user_attrs"] = {
                _attempts.PROPOSAL: proposal.user_attrs[_attempts.PROPOSAL]
            }
        for name, value in entry.attempts[0].system_attrs.items():
            if name == "fixed_params":  # of a trial that a user enqueued
                system_attrs[name] = value
        system_attrs[_attempts.RETRY_OF] = entry.last.number
        self._cached.create_new_trial(
            self.study._study_id,
            optuna.trial.create_trial(**template, system_attrs=system_attrs),
        )

    def _started_long_ago(self, attempt: FrozenTrial) -> bool:
        started = attempt.datetime_start
        assert started is not None
        age = datetime.datetime.now() - started
        return age.total_seconds() > self.grace_period

    def _propose(self, entry: _attempts.LogicalAttempts) -> dict[str, Any]:
        attempt = copy.deepcopy(entry.last)
        attempt.number, attempt.state = entry.number, TrialState.RUNNING
        space = self.hyperparameters.space
        fixed = dict(attempt.system_attrs.get("fixed_params", {}))
        if self.sampler == "grid":
            values = _distributions.nth_of_grid(space, entry.number)
            assert values is not None
            relative: dict[str, Any] = {}
        else:
            values = None
            sampler = self._sampler_for(entry.number)
            # It was read when the attempt was taken, a moment ago.
            logical_study = self._logical_study(self._last_book, sampler)
            study = filtered_study(logical_study, attempt)
            sampler.before_trial(study, attempt)
            relative = sampler.sample_relative(
                study,
                attempt,
                sampler.infer_relative_search_space(study, attempt),
            )
        proposed: dict[str, Any] = {}
        parameters = _distributions.parameters_of(space)
        for hp, parameter in zip(space, parameters, strict=True):
            if hp.name in proposed or not _distributions.is_active(
                hp, proposed
            ):
                continue
            if parameter is None:
                proposed[hp.name] = hp.value
                continue
            name, distribution = parameter.name, parameter.distribution
            if name in attempt.params:
                stored = attempt.params[name]
            else:
                if name in fixed:
                    stored = fixed[name]
                elif values is not None:
                    stored = parameter.to_stored(values[hp.name])
                elif distribution.single():
                    stored = parameter.only_value()
                elif name in relative:
                    stored = relative[name]
                else:
                    stored = sampler.sample_independent(
                        study, attempt, name, distribution
                    )
                self._cached.set_trial_param(
                    attempt._trial_id,
                    name,
                    distribution.to_internal_repr(stored),
                    distribution,
                )
                attempt.params[name] = stored
                attempt.distributions[name] = distribution
            proposed[hp.name] = _to_python(parameter.to_value(stored))
        proposal = {
            "values": proposed,
            "seed": _samplers.derived_seed(self.seed, entry.number, 1),
        }
        self._cached.set_trial_user_attr(
            attempt._trial_id, _attempts.PROPOSAL, proposal
        )
        return proposal

    def _sampler_for(self, number: int) -> optuna.samplers.BaseSampler:
        if isinstance(self.sampler, str):
            return _samplers.make_sampler(
                self.sampler, _samplers.derived_seed(self.seed, number, 0)
            )
        return self.sampler

    # What a worker reports.

    def seed_of(self, trial_id: str, execution: int = 0) -> int:
        """The seed for one execution of a running trial."""
        seed = self._running[trial_id].proposal["seed"]
        return _samplers.derived_seed(seed, execution) if execution else seed

    def heartbeat(self, trial_id: str) -> _heartbeat.Heartbeat:
        """A context in which a running trial gives signs of life."""
        self.study  # noqa: B018
        return _heartbeat.Heartbeat(
            self._storage,
            self._running[trial_id].attempt_id,
            self._cached.note_failure,
        )

    def report(self, trial_id: str, value: float, step: int) -> bool:
        """Records the objective after an epoch.

        Args:
            trial_id: Name of a running trial.
            value: The objective.
            step: The epoch, from 0.

        Returns:
            Whether the pruner asks to end the trial.

        Raises:
            AttemptLost: If another worker has given up on this attempt.
        """
        running = self._running[trial_id]
        try:
            self._cached.set_trial_intermediate_value(
                running.attempt_id, step, float(value)
            )
        except UpdateFinishedTrialError:
            raise AttemptLost(trial_id) from None
        if isinstance(self.pruner, optuna.pruners.NopPruner):
            return False
        attempt = copy.copy(self._cached.get_trial(running.attempt_id))
        attempt.number = running.number
        study = filtered_study(self._logical_study(self._book()), attempt)
        return self.pruner.prune(study, attempt)

    def record_result(self, trial_id: str, **result: Any) -> None:
        """Notes what is recorded beside the score when the trial ends."""
        self._running[trial_id].result.update(result)

    def result_so_far(self, trial_id: str) -> dict[str, Any]:
        """What was noted of a running trial with `record_result`."""
        return self._running[trial_id].result

    def put_back(self, trial_id: str) -> None:
        """Gives a running trial back, to be tried again: it is not its fault.

        It is the same trial then, with the same hyperparameters, and is not
        counted against `max_retries`. One that has its result keeps it.
        """
        running = self._running.pop(trial_id, None)
        if running is None:
            return
        self._give_back(running.attempt_id, trial_id, running.owner)

    def put_back_later(self, trial_id: str) -> None:
        """As `put_back`, for when the database is away.

        The word is left in the trial's folder. It holds when a search that
        reaches the folder goes on.
        """
        running = self._running.pop(trial_id, None)
        if running is not None:
            self._give_back_later(trial_id, running.owner)

    def _give_back(
        self, attempt_id: int, trial_id: str, owner: dict[str, Any]
    ) -> None:
        try:
            self._record_put_back(attempt_id)
        except BaseException:
            # The database is away, or the user does not wait for it.
            self._give_back_later(trial_id, owner)
            raise
        _owner.release(owner)

    def _give_back_later(self, trial_id: str, owner: dict[str, Any]) -> None:
        try:
            folder = self._trial_folder(trial_id)
            if folder is not None:
                _put_back.leave_word(folder, owner)
        finally:
            # Last: before the word is there, nobody shall count a loss.
            _owner.release(owner)

    def _record_put_back(self, attempt_id: int) -> None:
        # Another worker may have given up on it already.
        with contextlib.suppress(UpdateFinishedTrialError):
            self._cached.set_trial_user_attr(
                attempt_id, _attempts.RESULT, {"put_back": True}
            )
            self._cached.set_trial_state_values(attempt_id, TrialState.FAIL)

    def _is_to_be_put_back(
        self, entry: _attempts.LogicalAttempts | None
    ) -> bool:
        """Whether the worker of its last attempt has left word."""
        if entry is None or _attempts.OWNER not in entry.last.user_attrs:
            return False
        folder = self._trial_folder(entry.trial_id(entry.last))
        return folder is not None and _put_back.has_word(
            folder, entry.last.user_attrs[_attempts.OWNER]
        )

    def _trial_folder(self, trial_id: str) -> Path | None:
        """The folder of an attempt; `None` without a tuner."""
        name = getattr(self, "_project_name", None)
        if name is None:
            return None
        # KerasTuner's `_project_dir` would make a folder that is lost again.
        return Path(self._directory) / name / f"trial_{trial_id}"

    def abandon(self, trial_id: str) -> None:
        """Forgets an attempt that has ended, or that another worker ended."""
        running = self._running.pop(trial_id, None)
        if running is not None:
            _owner.release(running.owner)

    def update_trial(
        self, trial_id: str, metrics: dict[str, float], step: int = 0
    ) -> keras_tuner_trial.Trial:
        """As in KerasTuner: the metrics of a running trial.

        Args:
            trial_id: Name of a running trial.
            metrics: Values by name, the objective among them.
            step: The epoch that they belong to.

        Returns:
            The KerasTuner trial.
        """
        self._check_objective_found(metrics)
        trial = self._running[trial_id].trial
        for name, value in metrics.items():
            if not math.isfinite(value):
                if name == self.objective.name:
                    self._running[trial_id].result["reason"] = (
                        f"The objective {name!r} is {value}."
                    )
                continue  # KerasTuner looks for the best among numbers
            if not trial.metrics.exists(name):
                direction = "min"
                if name == self.objective.name:
                    direction = self.objective.direction
                trial.metrics.register(name, direction=direction)
            trial.metrics.update(name, value, step=step)
        return trial

    def end_trial(self, trial: keras_tuner_trial.Trial) -> None:
        """Publishes the result of a running trial, if it is still its own.

        Args:
            trial: A KerasTuner trial, with status `"COMPLETED"`, `"PRUNED"`,
                `"FAILED"` or `"INVALID"`. KerasTuner tries `"INVALID"` ones
                again; here an exception is the trial's own fault, and only
                a lost worker is not.

        Raises:
            ConsecutiveFailuresError: If too many trials failed in a row.
        """
        running = self._running[trial.trial_id]
        try:
            state, value = self._conclude(running, trial)
            published = self._publish(running, state, value)
        except StorageError:
            self.put_back_later(trial.trial_id)
            raise
        except BaseException:
            self.put_back(trial.trial_id)
            raise
        self.abandon(trial.trial_id)
        self._print_end(running, trial, published)
        if published and state == TrialState.FAIL:
            self._check_consecutive_failures()

    def _conclude(
        self, running: _Running, trial: keras_tuner_trial.Trial
    ) -> tuple[TrialState, float | None]:
        """Completes the result of a trial that ends; its state and value."""
        result = running.result
        if trial.status == TrialStatus.COMPLETED:
            if "reason" in result:
                trial.status = TrialStatus.FAILED
            else:
                self.score_trial(trial)
        if trial.status in (TrialStatus.FAILED, TrialStatus.INVALID):
            state, value = TrialState.FAIL, None
            trial.status, trial.score = TrialStatus.FAILED, None
            if trial.message:
                result.setdefault("traceback", trial.message)
                last_line = trial.message.strip().splitlines()[-1]
                result.setdefault("reason", last_line)
            result.setdefault("reason", "It failed without a message.")
            for name in {"reason", "traceback"} & set(result):
                result[name] = self.without_credentials(result[name])
        elif trial.status == PRUNED:
            state = TrialState.PRUNED
            value = self._last_report(running.attempt_id)
        else:
            state, value = TrialState.COMPLETE, float(trial.score)
            result.setdefault("score", value)
            result.setdefault("best_epoch", int(trial.best_step))
        self.update_space(trial.hyperparameters)
        result["values"] = {
            name: _to_python(v)
            for name, v in trial.hyperparameters.values.items()
        }
        return state, value

    def _last_report(self, attempt_id: int) -> float | None:
        reports = self._cached.get_trial(attempt_id).intermediate_values
        return reports[max(reports)] if reports else None

    def _publish(
        self, running: _Running, state: TrialState, value: float | None
    ) -> bool:
        """Whether this attempt, and no other process, ended its trial."""
        values = None if value is None else [value]
        try:
            self._cached.set_trial_user_attr(
                running.attempt_id,
                _attempts.RESULT,
                _to_python(running.result),
            )
            if not isinstance(self.sampler, str):
                # Ours do not outlive a trial: they have nothing to learn.
                self._tell_sampler(self.sampler, running, state, values)
            self._cached.set_trial_state_values(
                running.attempt_id, state, values
            )
        except UpdateFinishedTrialError:
            return False
        return True

    def _tell_sampler(
        self,
        sampler: optuna.samplers.BaseSampler,
        running: _Running,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        attempt = copy.deepcopy(self._cached.get_trial(running.attempt_id))
        attempt.number = running.number
        logical_study = self._logical_study(self._book(), sampler)
        study = filtered_study(logical_study, attempt)
        sampler.after_trial(study, attempt, state, values)

    def _check_consecutive_failures(self) -> None:
        over = [
            entry
            for entry in self._book()
            if entry.number not in self._over_before
            and _attempts.is_over(entry, self.max_retries)
        ]
        over.sort(key=lambda entry: entry.last.datetime_complete)  # type: ignore[arg-type,return-value]
        latest = over[-self.max_consecutive_failures :]
        if len(latest) == self.max_consecutive_failures and all(
            entry.last.state == TrialState.FAIL for entry in latest
        ):
            last = logical_trials(latest[-1:], self.max_retries)[0]
            place = "" if last.place is None else f" ({last.place})"
            error = ConsecutiveFailuresError(
                f"{len(latest)} trials failed one after another, which is "
                "what `max_consecutive_failures` allows. The last one, trial "
                f"{last.number}: {last.reason}{place} Mend it and start the "
                "same search again to go on."
            )
            if last.traceback is not None:
                error.add_note(f"Trial {last.number}:\n{last.traceback}")
            raise error

    def update_space(
        self, hyperparameters: keras_tuner.HyperParameters
    ) -> None:
        """As in KerasTuner; what a trial found is there after a resume, too."""
        before = len(self.hyperparameters.space)
        super().update_space(hyperparameters)
        if self._begun and len(self.hyperparameters.space) != before:
            self.study.set_user_attr(
                SPACE, _distributions.to_config(self.hyperparameters)
            )

    def get_trial(self, trial_id: str) -> keras_tuner_trial.Trial:
        """The KerasTuner trial of that name, from whichever process.

        Raises:
            KeyError: If there is none.
        """
        if trial_id in self._running:
            return self._running[trial_id].trial
        for trial in self.logical_trials():
            if trial.trial_id == trial_id:
                return self._to_keras_tuner(trial)
        raise KeyError(trial_id)

    def get_best_trials(
        self, num_trials: int = 1
    ) -> list[keras_tuner_trial.Trial]:
        """The best completed trials, from whichever process, best first.

        Args:
            num_trials: How many at most. Defaults to `1`.

        Returns:
            KerasTuner trials. Of equal scores the earlier trial comes first.
            Trials that were added to the study by hand are left out, because
            they have no weights.
        """
        scored = [
            (trial.score, trial)
            for trial in self.logical_trials()
            if trial.state == "completed" and trial.score is not None
        ]
        scored.sort(
            key=lambda pair: pair[0],
            reverse=self.objective.direction == "max",
        )
        return [self._to_keras_tuner(trial) for _, trial in scored[:num_trials]]

    def _to_keras_tuner(self, logical: LogicalTrial) -> keras_tuner_trial.Trial:
        hyperparameters = self.get_space()
        hyperparameters.values = dict(logical.hyperparameters)
        status = {
            "completed": TrialStatus.COMPLETED,
            "pruned": PRUNED,
            "failed": TrialStatus.FAILED,
            "running": TrialStatus.RUNNING,
        }[logical.state]
        trial = keras_tuner_trial.Trial(
            hyperparameters, logical.trial_id, status, logical.traceback
        )
        trial.score = logical.score
        trial.best_step = logical.best_epoch or 0
        if logical.score is not None:
            trial.metrics.register(
                self.objective.name, direction=self.objective.direction
            )
            trial.metrics.update(
                self.objective.name, logical.score, step=trial.best_step
            )
        return trial

    def remaining_trials(self) -> int:
        """How many of `max_trials` have no result yet."""
        over = sum(
            _attempts.is_over(entry, self.max_retries) for entry in self._book()
        )
        return max(self.max_trials - over, 0)

    # KerasTuner's own record, which a kill can leave half written: not kept.

    def save(self) -> None:
        """Does nothing: the study is saved with each transaction."""

    def reload(self) -> None:
        """Does nothing: the study is read when something is asked of it."""

    def get_state(self) -> dict[str, Any]:
        """Nothing: the study is the state."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing: the study is the state."""

    # What is printed; `verbose=0` in `search` turns it off.

    def _print_begin(
        self,
        entry: _attempts.LogicalAttempts,
        trial: keras_tuner_trial.Trial,
    ) -> None:
        if self.verbose < 1:
            return
        again = ""
        if len(entry.attempts) > 1:
            again = f" (attempt {len(entry.attempts)})"
        print(f"Trial {entry.number} (0 to {self.max_trials - 1}){again}")
        for name, value in trial.hyperparameters.values.items():
            is_float = isinstance(value, float)
            print(f"  {name}: {f'{value:.5g}' if is_float else value}")

    def _print_end(
        self,
        running: _Running,
        trial: keras_tuner_trial.Trial,
        published: bool,
    ) -> None:
        if self.verbose < 1:
            return
        if not published:
            said = "was given to another worker"
        elif trial.status == TrialStatus.FAILED:
            said = f"failed: {running.result['reason']}"
        elif trial.status == PRUNED:
            said = "was pruned"
        else:
            said = f"{self.objective.name} {trial.score:.5g}"
        best = self.get_best_trials()
        best_said = f" (best: {best[0].score:.5g})" if best else ""
        print(f"Trial {running.number}: {said}{best_said}")


def _duplicates(
    trials: Sequence[FrozenTrial], book: Sequence[_attempts.LogicalAttempts]
) -> list[FrozenTrial]:
    """Attempts that wait, but replace one that another replaces already."""
    counted = {a._trial_id for entry in book for a in entry.attempts}
    return [
        t
        for t in trials
        if t.state == TrialState.WAITING and t._trial_id not in counted
    ]


def _to_python(value: Any) -> Any:
    """The same in Python's own types, for JSON."""
    if isinstance(value, dict):
        return {key: _to_python(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_python(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # strict JSON has no NaN
    return value


def _name_objective(parts: list[list[str]]) -> str:
    return " and ".join(f"{name} ({direction})" for name, direction in parts)


def _first_difference(
    recorded: list[dict[str, Any]], now: list[dict[str, Any]]
) -> str:
    def key(hp: dict[str, Any]) -> str:
        return f"{hp['name']} {hp['conditions']}"

    by_key = {key(hp): hp for hp in recorded}
    for hp in now:
        before = by_key.pop(key(hp), None)
        if before is None:
            return f"it has no hyperparameter {hp['name']!r}"
        if before != hp:
            changed = {
                field: value
                for field, value in before.items()
                if hp.get(field) != value
            }
            current = {field: hp.get(field) for field in changed}
            return f"{hp['name']!r} has {changed}, not {current}"
    if by_key:
        name = next(iter(by_key.values()))["name"]
        return f"it has a hyperparameter {name!r} that is missing now"
    return "its hyperparameters are declared in another order"
