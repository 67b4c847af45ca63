"""Keras's list of callbacks, and our loggers in it."""

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

import keras


def running() -> keras.callbacks.CallbackList | None:
    """The list that calls `set_model` or `on_train_begin`, if one does.

    Keras makes a new one for each `fit`, `evaluate` and `predict`, and does
    not tell a callback about it: it is looked for among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name in ("set_model", "on_train_begin"):
            owner: Any = frame.f_locals.get("self")
            if isinstance(owner, keras.callbacks.CallbackList):
                return owner
        frame = frame.f_back
    return None


# The loggers in each of Keras's lists of callbacks, also those that another
# callback hands its hooks on to. A list is made for one `fit` (or `evaluate`,
# or `predict`): what an earlier one has left behind, however it ended, is not
# in that of the next.
_attached: "weakref.WeakKeyDictionary[Any, list[weakref.ref[Any]]]" = (
    weakref.WeakKeyDictionary()
)


def attach(logger: Any) -> None:
    """Notes a logger that is in the running list."""
    callbacks = running()
    if callbacks is not None and logger not in _attached_to(callbacks):
        _attached.setdefault(callbacks, []).append(weakref.ref(logger))


def attached() -> list[Any]:
    """The loggers of the `fit` that calls `on_train_begin`, in order."""
    callbacks = running()
    return [] if callbacks is None else _attached_to(callbacks)


def together_with(logger: Any) -> list[Any]:
    """The loggers of the last list that a logger was in, itself included."""
    found = [logger]
    for callbacks in list(_attached):
        loggers = _attached_to(callbacks)
        if logger in loggers:
            found = loggers
    return found


def _attached_to(callbacks: Any) -> list[Any]:
    loggers = [reference() for reference in _attached.get(callbacks, [])]
    return [logger for logger in loggers if logger is not None]


def put_first(kind: type) -> None:
    """Puts the loggers before all other callbacks of the running list.

    What they add to the logs then reaches every callback, wherever the user
    has put it. The list that is being gone through stays as it is: the order
    holds from the next hook on.

    Args:
        kind: The loggers' class.
    """
    callbacks = running()
    if callbacks is not None:
        callbacks.callbacks = sorted(
            callbacks.callbacks, key=lambda c: not isinstance(c, kind)
        )


def join(names: Sequence[str]) -> str:
    """`a, b and c`, for a message."""
    return " and ".join([", ".join(names[:-1]), names[-1]]).removeprefix(
        " and "
    )
