"""Storages that hand calls on to another one, and do some in another way."""

import functools
from collections.abc import Callable, Container
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState


def forward(name: str) -> Any:
    """A method that hands its arguments to the real storage's."""

    def method(self: "ForwardingStorage", *args: Any, **kwargs: Any) -> Any:
        return self._call(lambda: getattr(self._real, name)(*args, **kwargs))

    method.__name__ = name
    return method


_FORWARDED = {*BaseStorage.__abstractmethods__, "get_best_trial"}
_Base: Any = type(
    "_Base", (BaseStorage,), {name: forward(name) for name in _FORWARDED}
)


class ForwardingStorage(_Base):
    """Hands every call on; a subclass has what it does in another way."""

    def __init__(self, real: BaseStorage):
        self._real = real

    def _call(self, call: Callable[[], Any]) -> Any:
        """Makes each call that is handed on; a subclass may repeat it."""
        return call()


class RenumberedStorage(ForwardingStorage):
    """A study as its samplers and pruners see it, for one running attempt.

    Each trial is there once, under its own number: attempts that were
    interrupted are not. A search that was killed and resumed thus makes the
    same proposals as one that was not.

    Args:
        real: The storage.
        study_id: Which study in it.
        attempt: The attempt, with the number of its trial.
        read: Gives the last attempt at each trial, numbered so. It is called
            once, if at all.
    """

    def __init__(
        self,
        real: BaseStorage,
        study_id: int,
        attempt: FrozenTrial,
        read: Callable[[], list[FrozenTrial]],
    ):
        super().__init__(real)
        self._study_id = study_id
        self._attempt = attempt
        self._trials = functools.cache(read)

    def get_study_id_from_name(self, study_name: str) -> int:
        """As in Optuna, without asking the database."""
        del study_name
        return self._study_id

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """As in Optuna."""
        del study_id, deepcopy  # the trials are copies already
        trials = self._trials()
        return [t for t in trials if states is None or t.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As in Optuna."""
        if trial_id == self._attempt._trial_id:
            return self._attempt
        for trial in self._trials():
            if trial._trial_id == trial_id:
                return trial
        return self._real.get_trial(trial_id)

    def get_trial_id_from_study_id_trial_number(
        self, study_id: int, trial_number: int
    ) -> int:
        """As in Optuna, of the running attempt alone."""
        if trial_number != self._attempt.number:
            raise KeyError(trial_number)
        return self._attempt._trial_id
