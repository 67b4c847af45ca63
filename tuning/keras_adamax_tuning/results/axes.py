"""Hyperparameters as axes of figures: which ones vary, and on which scale."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from keras_adamax_tuning.space.ranges import (
    is_reversed,
    shown_name,
    shown_value,
)

# Integers with no more values than this are categories.
_FEW = 8


@dataclasses.dataclass(frozen=True)
class Axis:
    """One hyperparameter that was searched.

    Attributes:
        name: Its name in the record.
        kind: `"linear"`, `"log"` or `"choice"`.
        choices: The values of a `"choice"`, in their order.
        low: The smallest value that was possible; of a choice 0.
        high: The largest; of a choice the last one's position.
    """

    name: str
    kind: Literal["linear", "log", "choice"]
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def label(self) -> str:
        """The name as the user gives it."""
        return shown_name(self.name)

    @property
    def is_reversed(self) -> bool:
        """Whether the user's value falls while the record's rises."""
        return self.kind != "choice" and is_reversed(self.name)

    def label_of(self, value: Any) -> str:
        """A value of the record as the user gives it."""
        shown = shown_value(self.name, value)
        return shorten(str(shown)) if self.kind == "choice" else f"{shown:g}"

    def position(self, value: Any) -> float:
        """Where `value` stands on the axis: a choice at its number."""
        if self.kind != "choice":
            return float(value)
        # True equals 1, but is another choice.
        for index, choice in enumerate(self.choices):
            if type(choice) is type(value) and choice == value:
                return float(index)
        return float(self.choices.index(value))

    def pairs(self, trials: Iterable[Any]) -> list[tuple[float, Any]]:
        """Position and trial, of those trials that have the hyperparameter."""
        return [
            (self.position(trial.hyperparameters[self.name]), trial)
            for trial in trials
            if self.name in trial.hyperparameters
        ]

    def fraction(self, value: Any) -> float:
        """How far along the axis, on the user's scale: from 0 to 1."""
        return self.height_at(self.position(value))

    def height_at(self, position: float) -> float:
        """The same for a position; choices divide the axis among them."""
        if self.kind == "choice":
            return (position + 0.5) / len(self.choices)
        low, high = self.low, self.high
        if self.kind == "log":
            low, high, position = map(math.log, (low, high, position))
        share = (position - low) / (high - low) if high > low else 0.5
        return 1 - share if self.is_reversed else share

    def height_of(self, trial: Any) -> float | None:
        """The fraction of a trial's value; None where it has none."""
        if self.name not in trial.hyperparameters:
            return None
        return self.fraction(trial.hyperparameters[self.name])


def shorten(text: str, length: int = 14) -> str:
    """`text`, with its middle left out where it is too long."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def axes_of(
    trials: Sequence[Any], hyperparameters: Iterable[Any] = ()
) -> list[Axis]:
    """The hyperparameters that took more than one value, in their order.

    KerasTuner's `hyperparameters` of the search know their scale; of others
    the values decide.
    """
    known: dict[str, Any] = {}
    for one in hyperparameters:
        known.setdefault(one.name, one)
    recorded: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.hyperparameters.items():
            recorded.setdefault(name, []).append(value)
    names = [name for name in known if name in recorded]
    names += [name for name in recorded if name not in known]
    axes = (_axis(name, recorded[name], known.get(name)) for name in names)
    return [axis for axis in axes if axis is not None]


def _axis(name: str, values: list[Any], declared: Any) -> Axis | None:
    choices: list[Any] = list(getattr(declared, "values", ()))
    for value in values:
        if value not in choices:
            choices.append(value)
    numeric = all(
        isinstance(value, (int, float)) and not isinstance(value, bool)
        for value in choices
    )
    few = _few_integers(declared)
    if few:
        choices = sorted({*few, *choices})
    elif numeric and declared is None:
        low, high = min(choices), max(choices)
        return _range_axis(name, low, high, low > 0 and high / low > 30)
    elif numeric and hasattr(declared, "min_value"):
        low = min(declared.min_value, *choices)
        high = max(declared.max_value, *choices)
        return _range_axis(name, low, high, "log" in (declared.sampling or ""))
    if len(choices) < 2:
        return None
    if numeric:
        choices.sort()
    return Axis(name, "choice", tuple(choices), 0.0, len(choices) - 1.0)


def _few_integers(declared: Any) -> list[int]:
    """The values of an integer that has few; else nothing."""
    low, high = (
        getattr(declared, f"{end}_value", None) for end in ("min", "max")
    )
    if not isinstance(low, int) or not isinstance(high, int):
        return []
    step = declared.step if "log" not in (declared.sampling or "") else 1
    values = range(low, high + 1, step or 1)
    return list(values) if len(values) <= _FEW else []


def _range_axis(name: str, low: float, high: float, log: bool) -> Axis | None:
    if not low < high:
        return None
    return Axis(name, "log" if log else "linear", (), float(low), float(high))
