"""What a trial tries: values from the sampler, in KerasTuner's terms."""

import copy
from collections.abc import Sequence
from typing import Any

import keras_tuner
import optuna
from optuna.trial import TrialState

from keras_adamax_tuning.study import attempt_book, distributions, samplers
from keras_adamax_tuning.study.opened_study import OpenedStudy


class Proposals:
    """Asks the sampler and the pruner, and tells them what came of it."""

    def __init__(
        self,
        opened: OpenedStudy,
        sampler: str | optuna.samplers.BaseSampler,
        seed: int,
    ):
        self._opened = opened
        self._sampler = sampler
        self._seed = seed

    def propose(
        self, attempt_id: int, number: int, space: Sequence[Any]
    ) -> dict[str, Any]:
        """Draws the values of a trial, and records them with its attempt.

        Returns:
            `"values"` by name, and the `"seed"` of the trial.
        """
        parameters = distributions.parameters_of(space)
        sampler, grid = self._sampler, None
        if sampler == "grid":
            combination = distributions.nth_of_grid(space, number) or {}
            grid = {
                parameter.name: parameter.to_stored(combination[hp.name])
                for hp, parameter in zip(space, parameters, strict=True)
                if parameter is not None and hp.name in combination
            }
        if isinstance(sampler, str):
            seed = samplers.derived_seed(self._seed, number, 0)
            sampler = samplers.make_sampler(sampler, seed, grid)
        study = self._opened.seen_by(attempt_id, number, sampler)
        asked = optuna.trial.Trial(study, attempt_id)
        values: dict[str, Any] = {}
        for hp, parameter in zip(space, parameters, strict=True):
            if hp.name in values or not distributions.is_active(hp, values):
                continue
            if parameter is None:
                values[hp.name] = hp.value
                continue
            stored = asked._suggest(parameter.name, parameter.distribution)
            values[hp.name] = attempt_book.to_python(parameter.to_value(stored))
        proposal = {
            "values": values,
            "seed": samplers.derived_seed(self._seed, number, 1),
        }
        asked.set_user_attr(attempt_book.PROPOSAL, proposal)
        return proposal

    def can_propose(self, number: int, space: Sequence[Any]) -> bool:
        """Whether there is something to propose for the trial of a number."""
        return self._sampler != "grid" or (
            distributions.nth_of_grid(space, number) is not None
        )

    def report(
        self, attempt_id: int, number: int, value: float, step: int
    ) -> bool:
        """Records the objective; whether the pruner asks to end the attempt."""
        if isinstance(self._opened.pruner, optuna.pruners.NopPruner):
            # As below, without reading what nobody asks for.
            self._opened.cached.set_trial_intermediate_value(
                attempt_id, step, value
            )
            return False
        study = self._opened.seen_by(attempt_id, number)
        trial = optuna.trial.Trial(study, attempt_id)
        trial.report(value, step)
        return trial.should_prune()

    def tell(
        self,
        attempt_id: int,
        number: int,
        state: TrialState,
        value: float | None,
    ) -> None:
        """Ends an attempt, of which a user's own sampler may learn.

        Those that have a name do not outlive a trial: they have nothing to
        learn. A pruned attempt gets the value that was reported last.
        """
        own = None if isinstance(self._sampler, str) else self._sampler
        study = self._opened.seen_by(attempt_id, number, own)
        study.tell(number, value, state)


def with_values(
    hyperparameters: keras_tuner.HyperParameters, values: dict[str, Any]
) -> keras_tuner.HyperParameters:
    """Gives a copy of the space the values of a proposal.

    A retry may be older than a hyperparameter that a model builder has
    declared since. The first attempt came to that with its default.
    """
    hyperparameters.values = copy.deepcopy(values)
    for hp in hyperparameters.space:
        if hp.name not in hyperparameters.values and (
            distributions.is_active(hp, hyperparameters.values)
        ):
            hyperparameters.values[hp.name] = hp.default
    return hyperparameters
