"""What an argument of a search may be: a fixed value, a range, or choices."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax import _validation

SCALES = ("linear", "log")
# What a few operations in float64 may lose.
_ROUNDING = 1e-14


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
        >>> from keras_adamax_tuning.search_space import AdamaxClippedSpace
        >>> from keras_adamax_tuning.search_space import Range
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
class Fixed:
    """A value that is not searched."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Choices:
    """Two or more values to choose from."""

    values: tuple[Any, ...]


Specification = Fixed | Range | Choices


@dataclasses.dataclass(frozen=True)
class Distance:
    """What the logarithm of a searched value is taken of.

    `1 - beta` and `multiplier - 1` are the quantities whose order of
    magnitude matters.

    Attributes:
        record_name: The name in the record, with `{}` for the argument's.
        limit: Where the distance is 0.
        direction: 1 where values lie above the limit, -1 where below.
    """

    record_name: str
    limit: float
    direction: int

    def measure(self, value: float) -> float:
        """The distance of `value`; of 0.9999 from 1 it is 0.0001."""
        return float(f"{self.direction * (value - self.limit):.12g}")

    def value(self, distance: float) -> float:
        """The value at this distance."""
        return float(f"{self.limit + self.direction * distance:.15g}")


BELOW_ONE = Distance("one_minus_{}", limit=1, direction=-1)
ABOVE_ONE = Distance("{}_minus_1", limit=1, direction=1)


@dataclasses.dataclass(frozen=True)
class Argument:
    """What one argument takes, and how it is searched.

    Attributes:
        name: Its name, for messages and the record.
        kind: `"number"`, `"integer"` or `"boolean"`.
        default: The value to start a search with, where it is in range.
        limits: Keywords of the check of a number.
        scale: Its own scale: that of a range which names none.
        distance: What a log scale is the logarithm of; `None` for the value.
        takes_none: Whether `None` is a value.
        check_schedule: Checks a schedule; `None` if it takes none.
    """

    name: str
    kind: str = "number"
    default: Any = None
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: str = "linear"
    distance: Distance | None = None
    takes_none: bool = False
    check_schedule: Callable[[LearningRateSchedule], Any] | None = None

    def parse(self, given: Any) -> Specification:
        """What the user gave, checked.

        Raises:
            TypeError: If it, or a part of it, is of a wrong type.
            ValueError: If it, or a part of it, is out of range.
        """
        if isinstance(given, (Fixed, Choices)):
            given = raw(given)
        if isinstance(given, tuple):
            if len(given) != 2:
                raise ValueError(
                    f"`{self.name}` must be a pair (low, high) where it is a "
                    f"tuple. Received: {self.name}={given!r}. Give a list to "
                    "choose from."
                )
            if self.kind == "boolean":
                raise self._no_range(given)
            for end, value in zip(("low", "high"), given, strict=True):
                self._check_number(f"{self.name}.{end}", value)
            check_order(f"{self.name}.low", given[0], "high", given[1])
            given = Range(*given)
        if isinstance(given, Range):
            return self._check_range(given)
        if isinstance(given, list):
            return self._check_choices(given)
        return Fixed(self._check_value(self.name, given))

    def is_transformed(self, range_: Range) -> bool:
        """Whether the record has the distance in place of the value."""
        return self.distance is not None and range_.scale == "log"

    def to_record(self, range_: Range, value: float) -> float:
        """The number that the record has for `value`."""
        if self.distance is not None and range_.scale == "log":
            return self.distance.measure(value)
        return value

    def from_record(self, range_: Range, number: float) -> float:
        """The value that the record's `number` means."""
        # Samplers hit an end but for rounding: `low * (high / low)` may be
        # larger than `high`.
        for end in (range_.low, range_.high):
            recorded = self.to_record(range_, end)
            if math.isclose(number, recorded, rel_tol=_ROUNDING):
                return end
        if self.distance is not None and range_.scale == "log":
            return self.distance.value(number)
        return int(number) if self.kind == "integer" else float(number)

    def record_ends(self, range_: Range) -> tuple[float, float]:
        """The range as the record has it: smallest and largest number."""
        low, high = sorted(
            self.to_record(range_, end) for end in (range_.low, range_.high)
        )
        return low, high

    def _check_number(self, name: str, value: Any, hint: str = "") -> Any:
        if self.kind == "integer":
            return _validation.check_integer(name, value, **self.limits)
        return _validation.check_number(name, value, hint=hint, **self.limits)

    def _check_value(self, name: str, value: Any) -> Any:
        if self.kind == "boolean":
            return _validation.check_bool(name, value)
        if value is None and self.takes_none:
            return None
        if isinstance(value, LearningRateSchedule) and self.check_schedule:
            return self.check_schedule(value)
        return self._check_number(
            name,
            value,
            hint="Or give a (low, high) tuple, a list of choices or a Range.",
        )

    def _check_range(self, range_: Range) -> Range:
        if self.kind == "boolean":
            raise self._no_range(range_)
        low, high = (
            self._check_number(f"{self.name}.{end}", getattr(range_, end))
            for end in ("low", "high")
        )
        range_ = Range(low, high, range_.scale or self.scale)
        if range_.scale == "log" and self.record_ends(range_)[0] <= 0:
            limit = self.distance.limit if self.distance else 0
            raise ValueError(
                f"`{self.name}.low` must be a number > {limit} on a log "
                f"scale. Received: {self.name}.low={low!r}. Give "
                f'Range({low!r}, {high!r}, scale="linear") to search on a '
                "linear one."
            )
        return range_

    def _check_choices(self, given: list[Any]) -> Fixed | Choices:
        if not given:
            raise ValueError(
                f"`{self.name}` must have a value to choose. "
                f"Received: {self.name}=[]."
            )
        values = tuple(
            self._check_value(f"{self.name}[{i}]", value)
            for i, value in enumerate(given)
        )
        for i, value in enumerate(values):
            if any(value is v or value == v for v in values[:i]):
                raise ValueError(
                    f"`{self.name}` must have different values to choose "
                    f"from. Received: {self.name}={given!r}."
                )
        return Fixed(values[0]) if len(values) == 1 else Choices(values)

    def _no_range(self, given: Any) -> TypeError:
        return TypeError(
            f"`{self.name}` must be True, False or a list of both. "
            f"Received: {self.name}={given!r}."
        )


def raw(specification: Specification) -> Any:
    """The specification as an argument: what `Argument.parse` takes."""
    if isinstance(specification, Fixed):
        return specification.value
    if isinstance(specification, Choices):
        return list(specification.values)
    return specification


def check_order(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raises an error if a range is empty.

    Raises:
        ValueError: If `low` is not smaller than `high`.
    """
    if low >= high:
        raise ValueError(
            f"`{low_name}` must be smaller than `{high_name}`. "
            f"Received: low={low!r}, high={high!r}. Give one number to keep "
            "it fixed."
        )
