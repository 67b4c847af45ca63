"""What the user calls what the record has under another name.

The record has `one_minus_beta_2` and `clip_multiplier_minus_1`, so that every
sampler works on their logarithm. Figures and tables show `beta_2` and
`clip_multiplier`, as the user gives them.
"""

import re
from typing import Any

from keras_adamax_tuning._ranges import ABOVE_ONE, BELOW_ONE, Distance

_BELOW = re.compile(r"(.*)one_minus_(beta_[12].*)")
_ABOVE = re.compile(r"(.*clip_multiplier.*)_minus_1")


def shown_name(name: str) -> str:
    """The argument that a hyperparameter of the record stands for.

    Args:
        name: Name in the record.

    Returns:
        The user's name; `name` itself where the record has the value.

    Example:
        >>> shown_name("one_minus_beta_2"), shown_name("units")
        ('beta_2', 'units')
    """
    return "".join(_match(name)[1])


def shown_value(name: str, value: Any) -> Any:
    """The value that the argument has, for the value in the record.

    Args:
        name: Name in the record.
        value: Value in the record.

    Returns:
        The user's value; `value` itself where the record has it.

    Example:
        >>> shown_value("one_minus_beta_2", 0.001)
        0.999
    """
    distance, _ = _match(name)
    if distance is None or not isinstance(value, (int, float)):
        return value
    return distance.value(value)


def is_reversed(name: str) -> bool:
    """Whether the value falls while the record's number rises."""
    distance, _ = _match(name)
    return distance is not None and distance.direction < 0


def _match(name: str) -> tuple[Distance | None, tuple[str, ...]]:
    for pattern, distance in ((_BELOW, BELOW_ONE), (_ABOVE, ABOVE_ONE)):
        found = pattern.fullmatch(name)
        if found is not None:
            return distance, found.groups()
    return None, (name,)
