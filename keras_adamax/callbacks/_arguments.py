"""Checks of the arguments that callbacks have in common."""

import os
from collections.abc import Sequence
from typing import Any

from keras_adamax import _validation


def check_freq(name: str, value: Any) -> str | int:
    """Returns `"epoch"` or a number of batches.

    Args:
        name: Of the argument, for messages.
        value: What was given.
    """
    if value == "epoch":
        return value
    if isinstance(value, str):
        raise ValueError(
            f'`{name}` must be "epoch" or an integer >= 1, a number of '
            f"batches. Received: {name}={value!r}."
        )
    return _validation.check_integer(
        name, value, minimum=1, alternatives=' or "epoch"'
    )


def check_path(name: str, value: Any, alternatives: str = "") -> str:
    """Returns a path as a string.

    Args:
        name: Of the argument, for messages.
        value: What was given.
        alternatives: What else it could have been, for the message.
    """
    if not isinstance(value, str | os.PathLike) or not str(os.fspath(value)):
        raise TypeError(
            f"`{name}` must be a path (a string, not empty, or a "
            f"`pathlib.Path`){alternatives}. Received: {name}={value!r}."
        )
    return str(os.fspath(value))


def check_optional_path(name: str, value: Any) -> str | None:
    """Returns a path as a string, or `None`."""
    return None if value is None else check_path(name, value, " or None")


def check_batch_logs(value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names of summaries.

    Args:
        value: A bool for all or none, or some of them.
        known: All that there are.
    """
    if isinstance(value, bool):
        return known if value else ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(
            "`batch_logs` must be a bool or a list of some of "
            f"{', '.join(known)}. Received: batch_logs={value!r} (of type "
            f"{type(value).__name__})."
        )
    unknown = [name for name in value if name not in known]
    if unknown:
        raise ValueError(
            "`batch_logs` must be a bool or a list of some of "
            f"{', '.join(known)}. Received: batch_logs={list(value)!r}."
        )
    return tuple(value)


def check_on_record(value: Any) -> Any:
    """Returns a function of step, name and value, or `None`."""
    if value is not None and not callable(value):
        raise TypeError(
            "`on_record` must be None or a function of three arguments: "
            f"step, name and value. Received: on_record={value!r}."
        )
    return value
