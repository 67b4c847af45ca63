"""The study of a search in its storage, once it is opened."""

import copy
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from keras_adamax_tuning.errors import SearchMismatchError
from keras_adamax_tuning.study import attempt_book, database, heartbeats
from keras_adamax_tuning.study.patient_storage import PatientStorage
from keras_adamax_tuning.study.storage_views import RenumberedStorage


class OpenedStudy:
    """A study that is created, or joined, as the parts of an oracle share it.

    Args:
        argument: URL of a database, or an Optuna storage.
        name: Name of the study.
        objective: The `keras_tuner.Objective` of the search.
        pruner: An Optuna pruner.
        heartbeat_interval: Seconds between two signs of life.
        grace_period: Seconds without one after which a worker is dead.
    """

    def __init__(
        self,
        argument: str | BaseStorage,
        name: str,
        objective: Any,
        pruner: optuna.pruners.BasePruner,
        heartbeat_interval: int,
        grace_period: int,
    ):
        self.pruner = pruner
        # Only beats go to it directly; all else goes through `cached`, which
        # has Optuna's cache in it and outlives outages.
        self.storage = database.open_storage(argument)
        heartbeats.prepare(self.storage, heartbeat_interval, grace_period)
        self.cached = PatientStorage(
            optuna.storages.get_storage(self.storage),
            argument,
            heartbeats.interval_of(self.storage),
        )
        direction: Literal["minimize", "maximize"] = (
            "maximize" if objective.direction == "max" else "minimize"
        )
        self.study = optuna.create_study(
            storage=self.cached,
            study_name=name,
            direction=direction,
            load_if_exists=True,
        )
        self.study_id = self.study._study_id
        recorded = self.study.direction.name.lower()
        if recorded != direction:
            raise SearchMismatchError(
                f"The study {name!r} has another objective: it "
                f"is to be {recorded}d, and "
                f"{objective.name!r} is to be {direction}d. "
                "Choose another output folder or `study_name`."
            )

    def read(self) -> list[FrozenTrial]:
        """The attempts so far; they are not to be changed."""
        return self.cached.get_all_trials(self.study_id, deepcopy=False)

    def book(self) -> list[attempt_book.Entry]:
        """The attempts so far, by the trials that they belong to."""
        return attempt_book.read(self.read())

    def seen_by(
        self,
        attempt_id: int,
        number: int,
        sampler: optuna.samplers.BaseSampler | None = None,
    ) -> optuna.Study:
        """The study as samplers and pruners see it, for a running attempt.

        Args:
            attempt_id: Optuna's id of the attempt.
            number: Number of its trial, under which the attempt stands there.
            sampler: Defaults to `None`, for one that is not asked.
        """
        attempt = copy.deepcopy(self.cached.get_trial(attempt_id))
        # If another worker has ended it, the first write says so.
        attempt.number, attempt.state = number, TrialState.RUNNING
        # A study keeps what it has read, so there is a new one each time.
        return optuna.load_study(
            study_name=self.study.study_name,
            storage=RenumberedStorage(
                self.cached,
                self.study_id,
                attempt,
                lambda: attempt_book.renumbered(self.book()),
            ),
            sampler=sampler or optuna.samplers.RandomSampler(),
            pruner=self.pruner,
        )
