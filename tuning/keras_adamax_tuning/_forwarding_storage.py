"""A storage that hands every call on to another one."""

from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage


def forward(name: str) -> Any:
    """A method that hands its arguments to the real storage's."""

    def method(self: "ForwardingStorage", *args: Any, **kwargs: Any) -> Any:
        return self._call(lambda: getattr(self._real, name)(*args, **kwargs))

    method.__name__ = name
    return method


class ForwardingStorage(BaseStorage):
    """Hands every call on; a subclass has what it does in another way.

    Args:
        real: The storage that does it.
    """

    def __init__(self, real: BaseStorage):
        self._real = real

    def _call(self, call: Callable[[], Any]) -> Any:
        """Makes each call that is handed on; a subclass may repeat it."""
        return call()

    create_new_study = forward("create_new_study")
    delete_study = forward("delete_study")
    set_study_user_attr = forward("set_study_user_attr")
    set_study_system_attr = forward("set_study_system_attr")
    get_study_id_from_name = forward("get_study_id_from_name")
    get_study_name_from_id = forward("get_study_name_from_id")
    get_study_directions = forward("get_study_directions")
    get_study_user_attrs = forward("get_study_user_attrs")
    get_study_system_attrs = forward("get_study_system_attrs")
    get_all_studies = forward("get_all_studies")
    create_new_trial = forward("create_new_trial")
    set_trial_param = forward("set_trial_param")
    set_trial_state_values = forward("set_trial_state_values")
    set_trial_intermediate_value = forward("set_trial_intermediate_value")
    set_trial_user_attr = forward("set_trial_user_attr")
    set_trial_system_attr = forward("set_trial_system_attr")
    get_trial = forward("get_trial")
    get_all_trials = forward("get_all_trials")
    get_best_trial = forward("get_best_trial")
