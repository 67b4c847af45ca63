"""A study as its samplers and pruners see it: one trial a logical trial."""

from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class LogicalStorage(BaseStorage):
    """Shows a list of logical trials; everything else is the real storage's.

    Attempts that were interrupted are not in the list, and the numbers of
    trials are logical ones. A search that was killed and resumed thus makes
    the same proposals as one that was not. The list is read once for each
    proposal and each question of a pruner, rather than once for each
    hyperparameter.

    Args:
        storage: The real one.
        study_id: Which study in it.
        trials: The logical trials.
    """

    def __init__(
        self, storage: BaseStorage, study_id: int, trials: list[FrozenTrial]
    ):
        self._real = storage
        self._study_id = study_id
        self._trials = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        del study_id, deepcopy  # the trials are copies already
        return [t for t in self._trials if states is None or t.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        for trial in self._trials:
            if trial._trial_id == trial_id:
                return trial
        return self._real.get_trial(trial_id)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return self._real.get_best_trial(study_id)

    def create_new_study(
        self,
        directions: Sequence[StudyDirection],
        study_name: str | None = None,
    ) -> int:
        return self._real.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self._real.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._real.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(
        self, study_id: int, key: str, value: Any
    ) -> None:
        self._real.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        del study_name
        return self._study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._real.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._real.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._real.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._real.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[Any]:
        return self._real.get_all_studies()

    def create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> int:
        return self._real.create_new_trial(study_id, template_trial)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        self._real.set_trial_param(
            trial_id, param_name, param_value_internal, distribution
        )

    def set_trial_state_values(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None = None,
    ) -> bool:
        return self._real.set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._real.set_trial_intermediate_value(
            trial_id, step, intermediate_value
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._real.set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(
        self, trial_id: int, key: str, value: Any
    ) -> None:
        self._real.set_trial_system_attr(trial_id, key, value)


def filtered_study(study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
    """The trials that a sampler may learn from, which Hyperband restricts."""
    return optuna.pruners._filter_study(study, trial)
