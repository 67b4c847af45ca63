"""Who stands in front of a logger, and so does not see what it logs."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

# They take whatever is in `logs` when an epoch ends.
_TAKE_ALL = (
    keras.callbacks.CSVLogger,
    keras.callbacks.History,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


class Late(NamedTuple):
    """Loggers that come too late for callbacks in front of them.

    Attributes:
        callbacks: Names of the classes in front.
        keys: What these lack.
        loggers: Names of the loggers' classes.
    """

    callbacks: tuple[str, ...]
    keys: tuple[str, ...]
    loggers: tuple[str, ...]


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


def find_late(callbacks: Sequence[Any], kind: type) -> Late | None:
    """What callbacks in front of loggers lack.

    Args:
        callbacks: All, in their order.
        kind: The loggers' class, with `summary_keys`.
    """
    loggers = [c for c in callbacks if isinstance(c, kind)]
    behind: dict[str, Any] = {}
    for logger in loggers:
        for key in logger.summary_keys:
            behind.setdefault(key, logger)
    names: dict[str, None] = {}
    keys: dict[str, None] = {}
    late: dict[str, None] = {}
    for callback in callbacks:
        if isinstance(callback, kind):
            for key in callback.summary_keys:
                behind.pop(key, None)
        for key in _wanted(callback, list(behind)):
            names[type(callback).__name__] = None
            keys[key] = None
            late[type(behind[key]).__name__] = None
    return Late(tuple(names), tuple(keys), tuple(late)) if names else None


def _wanted(callback: Any, keys: list[str]) -> list[str]:
    """Those of the keys that a callback reads."""
    if isinstance(callback, _TAKE_ALL):
        return keys
    # A checkpoint of each epoch does not look at what it monitors.
    if not getattr(callback, "save_best_only", True):
        return []
    return [key for key in keys if getattr(callback, "monitor", None) == key]
