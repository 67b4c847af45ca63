"""Ranges to search, and what the record has in place of their values."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import keras

from keras_adamax import _validation

SCALES = ("linear", "log")


@keras.saving.register_keras_serializable("keras_adamax_tuning")
@dataclasses.dataclass(frozen=True)
class Range:
    """A range to search, with the scale to search it on.

    Use it where a `(low, high)` tuple is not enough: to search on another
    scale than the argument's own.

    Args:
        low: Smallest value. Number.
        high: Largest value. Number > `low`.
        scale: `"linear"`, `"log"`, or `None` for the argument's own scale,
            which a tuple gets too. Defaults to `None`.

    Raises:
        TypeError: If `low` or `high` is no number.
        ValueError: If `low` or `high` is not finite, `low` is not smaller than
            `high`, or `scale` is unknown.

    Example:
        >>> from keras_adamax_tuning import AdamaxClippedSpace
        >>> from keras_adamax_tuning import Range
        >>> space = AdamaxClippedSpace(
        ...     clip_multiplier=Range(1.0, 2.0, scale="linear")
        ... )
    """

    low: float
    high: float
    scale: str | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            number = _validation.check_number(name, getattr(self, name))
            object.__setattr__(self, name, number)
        check_order("low", self.low, "high", self.high)
        if self.scale is not None and self.scale not in SCALES:
            raise ValueError(
                '`scale` must be "linear", "log" or None. '
                f"Received: scale={self.scale!r}."
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Range":
        """Makes the range that `get_config` described."""
        return cls(**config)


@dataclasses.dataclass(frozen=True)
class Distance:
    """What the logarithm of a searched value is taken of.

    `1 - beta` and `multiplier - 1` are the quantities whose order of
    magnitude matters. The record has them, so that every sampler works on
    their logarithm; figures and tables show the values that the user gives.

    Attributes:
        record_name: The name in the record, with `{}` for the argument's.
        pattern: Takes such a name apart: what is before and after it.
        limit: Where the distance is 0.
        direction: 1 where values lie above the limit, -1 where below.
    """

    record_name: str
    pattern: str
    limit: float
    direction: int

    def measure(self, value: float) -> float:
        """The distance of `value`; of 0.9999 from 1 it is 0.0001."""
        return float(f"{self.direction * (value - self.limit):.12g}")

    def value(self, distance: float) -> float:
        """The value at this distance."""
        return float(f"{self.limit + self.direction * distance:.15g}")


BELOW_ONE = Distance("one_minus_{}", "(.*)one_minus_(beta_[12].*)", 1, -1)
ABOVE_ONE = Distance("{}_minus_1", "(.*clip_multiplier.*)_minus_1", 1, 1)


def shown_name(name: str) -> str:
    """The argument that a hyperparameter of the record stands for.

    Example:
        >>> shown_name("one_minus_beta_2"), shown_name("units")
        ('beta_2', 'units')
    """
    return _distance_of(name)[1]


def shown_value(name: str, value: Any) -> Any:
    """The value that the argument has, for the value in the record.

    Example:
        >>> shown_value("one_minus_beta_2", 0.001)
        0.999
    """
    distance, _ = _distance_of(name)
    if distance is None or not isinstance(value, (int, float)):
        return value
    return distance.value(value)


def is_reversed(name: str) -> bool:
    """Whether the value falls while the record's number rises."""
    distance, _ = _distance_of(name)
    return distance is not None and distance.direction < 0


def _distance_of(name: str) -> tuple[Distance | None, str]:
    for distance in (BELOW_ONE, ABOVE_ONE):
        found = re.fullmatch(distance.pattern, name)
        if found is not None:
            return distance, "".join(found.groups())
    return None, name


def check_order(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raises a `ValueError` if a range is empty."""
    if low >= high:
        raise ValueError(
            f"`{low_name}` must be smaller than `{high_name}`. "
            f"Received: low={low!r}, high={high!r}. Give one number to keep "
            "it fixed."
        )
