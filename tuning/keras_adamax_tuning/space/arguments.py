"""What the arguments of a search take: limits, scales and defaults.

An argument is specified by a value, which is fixed, by a range or by a list
of choices.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax import AdamaxClipped, _validation, hyperparameters
from keras_adamax_tuning.space.ranges import (
    ABOVE_ONE,
    BELOW_ONE,
    Distance,
    Range,
    check_order,
)


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
        standard: Of a part of a schedule: its specification where the user
            gives none; or a function that makes it of the length of a run in
            updates.
    """

    name: str
    kind: str = "number"
    default: Any = None
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: str = "linear"
    distance: Distance | None = None
    takes_none: bool = False
    check_schedule: Callable[[LearningRateSchedule], Any] | None = None
    standard: Any = None

    def parse(self, given: Any) -> Any:
        """What the user gave, checked.

        Returns:
            A fixed value, a `Range` with a scale, or a list of two choices or
            more.
        """
        if isinstance(given, tuple):
            if len(given) != 2:
                raise ValueError(
                    f"`{self.name}` must be a pair (low, high) where it is a "
                    f"tuple. Received: {self.name}={given!r}. Give a list to "
                    "choose from."
                )
            self._check_ends(given, *given)
            check_order(f"{self.name}.low", given[0], "high", given[1])
            given = Range(*given)
        if isinstance(given, Range):
            return self._check_range(given)
        if isinstance(given, list):
            return self._check_choices(given)
        return self._check_value(self.name, given)

    def _check_number(self, name: str, value: Any, hint: str = "") -> Any:
        if self.kind == "integer":
            return _validation.check_integer(name, value, **self.limits)
        return _validation.check_number(name, value, hint=hint, **self.limits)

    def _check_ends(self, given: Any, low: Any, high: Any) -> list[Any]:
        if self.kind == "boolean":
            raise TypeError(
                f"`{self.name}` must be True, False or a list of both. "
                f"Received: {self.name}={given!r}."
            )
        return [
            self._check_number(f"{self.name}.{end}", value)
            for end, value in (("low", low), ("high", high))
        ]

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

    def _check_range(self, given: Range) -> Range:
        low, high = self._check_ends(given, given.low, given.high)
        scale = given.scale or self.scale
        measure = self.distance.measure if self.distance else float
        if scale == "log" and min(measure(low), measure(high)) <= 0:
            limit = self.distance.limit if self.distance else 0
            raise ValueError(
                f"`{self.name}.low` must be a number > {limit} on a log "
                f"scale. Received: {self.name}.low={low!r}. Give "
                f'Range({low!r}, {high!r}, scale="linear") to search on a '
                "linear one."
            )
        return Range(low, high, scale)

    def _check_choices(self, given: list[Any]) -> Any:
        if not given:
            raise ValueError(
                f"`{self.name}` must have a value to choose. "
                f"Received: {self.name}=[]."
            )
        values = [
            self._check_value(f"{self.name}[{i}]", value)
            for i, value in enumerate(given)
        ]
        for i, value in enumerate(values):
            if any(value is v or value == v for v in values[:i]):
                raise ValueError(
                    f"`{self.name}` must have different values to choose "
                    f"from. Received: {self.name}={given!r}."
                )
        return values[0] if len(values) == 1 else values


def values_of(specification: Any) -> list[Any]:
    """The fixed value, the ends of the range, or the choices."""
    if isinstance(specification, Range):
        return [specification.low, specification.high]
    return specification if isinstance(specification, list) else [specification]


def _number(name: str, default: float | None, **settings: Any) -> Argument:
    takes_schedule = name in ("learning_rate", *hyperparameters.SCHEDULABLE)
    check = functools.partial(hyperparameters.check, name)
    return Argument(
        name,
        default=default,
        limits=hyperparameters.RANGES[name],
        scale="log",
        check_schedule=check if takes_schedule else None,
        **settings,
    )


# The optimizer's arguments that a search has. The defaults are those of the
# original optimizer: a search starts there.
ARGUMENTS = {
    argument.name: argument
    for argument in (
        _number("learning_rate", 0.001),
        _number("beta_1", 0.9, distance=BELOW_ONE),
        _number("beta_2", 0.999, distance=BELOW_ONE),
        _number("epsilon", 1e-8),
        Argument("clip_gradients", kind="boolean", default=True),
        _number("clip_multiplier", 1.2, distance=ABOVE_ONE),
        _number("clip_epsilon", 1e-4),
        Argument("bias_correction", kind="boolean", default=False),
        _number("weight_decay", None, takes_none=True),
        _number("spike_threshold", None, takes_none=True),
        Argument(
            "max_skipped_spikes",
            kind="integer",
            default=5,
            limits=hyperparameters.RANGES["max_skipped_spikes"],
        ),
    )
}
# Without clipping they have no effect.
OF_CLIPPING = (
    "clip_multiplier",
    "clip_epsilon",
    "spike_threshold",
    "max_skipped_spikes",
)
# They are written only where they are not the optimizer's defaults: the
# configuration of a search from before they existed stays the same.
ADDED_LATER = ("spike_threshold", "max_skipped_spikes")


def check_optimizer_arguments(given: Any) -> dict[str, Any]:
    """Checks what is given to the optimizer beside what is searched."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            "`optimizer_arguments` must be a dictionary or None. Received: "
            f"optimizer_arguments={given!r} (of type {type(given).__name__})."
        )
    for name in given:
        if name in ARGUMENTS:
            raise ValueError(
                "`optimizer_arguments` must not have what the space has an "
                f"argument for. Received: {name!r}. Give {name}="
                f"{given[name]!r} to the space."
            )
    config = AdamaxClipped(**given).get_config()
    return {name: config[name] for name in given}
