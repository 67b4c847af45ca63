"""A study as its samplers and pruners see it: one trial a logical trial."""

from collections.abc import Container

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from keras_adamax_tuning._forwarding_storage import ForwardingStorage


class LogicalStorage(ForwardingStorage):
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
        super().__init__(storage)
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

    def get_study_id_from_name(self, study_name: str) -> int:
        del study_name
        return self._study_id


def filtered_study(study: optuna.Study, trial: FrozenTrial) -> optuna.Study:
    """The trials that a sampler may learn from, which Hyperband restricts."""
    return optuna.pruners._filter_study(study, trial)
