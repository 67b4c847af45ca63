"""Checks of constructor arguments, with one form of error.

Every message states the constraint, what was received and, where it is not
obvious, how to mend it. NumPy scalars count as numbers; booleans and strings
never do.
"""

import numbers
from typing import Any

import numpy as np


def describe_range(
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    exclusive_maximum: float | None = None,
) -> str:
    """Words for an interval, as the errors use them."""
    if exclusive_minimum is not None:
        lower, lower_word = f"({exclusive_minimum}", f"> {exclusive_minimum}"
    elif minimum is not None:
        lower, lower_word = f"[{minimum}", f">= {minimum}"
    else:
        lower, lower_word = "(-inf", ""
    if exclusive_maximum is not None:
        upper = f"{exclusive_maximum})"
    elif maximum is not None:
        upper = f"{maximum}]"
    else:
        return f"a finite number {lower_word}".rstrip()
    return f"a number in the range {lower}, {upper}"


def is_number(value: Any) -> bool:
    """Whether `value` is a Python or NumPy integer or float (no boolean)."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return isinstance(value, numbers.Real) and not isinstance(
        value, (bool, np.bool_)
    )


def to_python_number(value: Any) -> int | float:
    """The Python number that `value` was written as.

    A NumPy float of less than double precision becomes its shortest decimal:
    `np.float32(0.001)` is `0.001`, not `0.0010000000474974513`.
    """
    if isinstance(value, np.ndarray):
        value = value[()]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, np.floating) and not isinstance(value, float):
        return float(str(value))
    return float(value)


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    exclusive_maximum: float | None = None,
    alternatives: str = "",
    hint: str = "",
) -> int | float:
    """Returns `value` as a Python number, if it is finite and in range.

    Args:
        name: Name of the argument, for the message.
        value: What the user gave.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        exclusive_minimum: The value must be larger than this.
        exclusive_maximum: The value must be smaller than this.
        alternatives: Words for what else the argument takes, for example
            `" or None"`.
        hint: How to mend it, where that is not obvious.

    Returns:
        An `int` or a `float`.

    Raises:
        TypeError: If `value` is no number.
        ValueError: If `value`, or what float32 makes of it, is not finite or
            not in the range. (The optimizer keeps its hyperparameters in
            float32: a number may not round to one that is not allowed.)
    """
    constraint = (
        f"`{name}` must be "
        + describe_range(minimum, maximum, exclusive_minimum, exclusive_maximum)
        + alternatives
        + "."
    )
    hint = f" {hint}" if hint else ""
    if not is_number(value):
        raise TypeError(
            f"{constraint} Received: {name}={value!r} "
            f"(of type {type(value).__name__}).{hint}"
        )
    number = to_python_number(value)

    def is_allowed(candidate: float) -> bool:
        return bool(
            np.isfinite(candidate)
            and (minimum is None or candidate >= minimum)
            and (maximum is None or candidate <= maximum)
            and (exclusive_minimum is None or candidate > exclusive_minimum)
            and (exclusive_maximum is None or candidate < exclusive_maximum)
        )

    try:
        as_float = float(number)
    except OverflowError:
        as_float = np.inf
    if not is_allowed(as_float):
        raise ValueError(f"{constraint} Received: {name}={value!r}.{hint}")
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(np.float32(as_float))
    if not is_allowed(rounded):
        raise ValueError(
            f"{constraint} Received: {name}={value!r}, which float32 rounds "
            f"to {rounded!r}.{hint}"
        )
    return number


def check_optional_number(
    name: str, value: Any, **constraints: Any
) -> int | float | None:
    """As `check_number`, but lets `None` pass."""
    if value is None:
        return None
    return check_number(name, value, alternatives=" or None", **constraints)


def check_integer(
    name: str, value: Any, *, minimum: int, alternatives: str = ""
) -> int:
    """Returns `value` as an `int`, if it is an integer >= `minimum`.

    Raises:
        TypeError: If `value` is no integer.
        ValueError: If `value` is smaller than `minimum`.
    """
    constraint = f"`{name}` must be an integer >= {minimum}{alternatives}."
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, numbers.Integral
    ):
        raise TypeError(
            f"{constraint} Received: {name}={value!r} "
            f"(of type {type(value).__name__})."
        )
    if value < minimum:
        raise ValueError(f"{constraint} Received: {name}={value!r}.")
    return int(value)


def check_optional_integer(
    name: str, value: Any, *, minimum: int
) -> int | None:
    """As `check_integer`, but lets `None` pass."""
    if value is None:
        return None
    return check_integer(name, value, minimum=minimum, alternatives=" or None")


def check_bool(name: str, value: Any) -> bool:
    """Returns `value`, if it is `True` or `False`.

    Raises:
        TypeError: If `value` is anything else, `0`, `1` and `None` included.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(
        f"`{name}` must be True or False. Received: {name}={value!r} "
        f"(of type {type(value).__name__})."
    )
