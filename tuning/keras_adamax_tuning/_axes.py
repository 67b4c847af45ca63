"""Hyperparameters as axes: which ones vary, and on which scale."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from keras_adamax_tuning import _names

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
        return _names.shown_name(self.name)

    @property
    def is_reversed(self) -> bool:
        """Whether the user's value falls while the record's rises."""
        return self.kind != "choice" and _names.is_reversed(self.name)

    def position(self, value: Any) -> float:
        """Where `value` stands on the axis: a choice at its number."""
        if self.kind == "choice":
            return float(_index(self.choices, value))
        return float(value)

    def fraction(self, value: Any) -> float:
        """The position as a fraction of the axis, on the user's scale."""
        low, high, here = self.low, self.high, self.position(value)
        if self.kind == "log":
            low, high, here = math.log(low), math.log(high), math.log(here)
        share = (here - low) / (high - low) if high > low else 0.5
        return 1 - share if self.is_reversed else share

    def ticks(self, at_most: int) -> tuple[list[float], list[str]]:
        """Round positions and their labels, no more than `at_most`."""
        if self.kind == "choice":
            step = -(-len(self.choices) // at_most)
            chosen = range(0, len(self.choices), step)
            return list(map(float, chosen)), [
                shorten(str(_names.shown_value(self.name, self.choices[index])))
                for index in chosen
            ]
        values = (log_ticks if self.kind == "log" else linear_ticks)(
            self.low, self.high, at_most
        )
        return values, [
            f"{_names.shown_value(self.name, value):g}" for value in values
        ]


def shorten(text: str, length: int = 14) -> str:
    """`text`, with its middle left out where it is too long."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def log_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Powers of ten; in a short range the numbers 1, 2 and 5, too."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [
            float(f"{factor}e{decade}")
            for decade in range(first, last + 1)
            for factor in factors
        ]
        # An end may miss its decade by rounding.
        values = [
            value
            for value in values
            if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
        ]
        if len(values) <= at_most:
            break
    if len(values) < 2:
        return linear_ticks(low, high, at_most)
    return values[:: -(-len(values) // at_most)]


def linear_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Multiples of a round step."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10(high - low))
    for factor in (0.1, 0.2, 0.25, 0.5, 1, 2, 5):
        first = math.ceil(low / (step * factor) - 1e-9)
        last = math.floor(high / (step * factor) + 1e-9)
        if last - first + 1 <= at_most:
            values = np.arange(first, last + 1) * step * factor
            return [float(f"{value:.10g}") for value in values]
    return [low, high]


def axes_of(
    trials: Sequence[Any], hyperparameters: Iterable[Any] = ()
) -> list[Axis]:
    """The hyperparameters that took more than one value, in their order.

    Args:
        trials: `LogicalTrial`s.
        hyperparameters: KerasTuner's hyperparameters of the search, which
            know their scale; of others the values decide. Defaults to `()`.

    Returns:
        A list of `Axis`.
    """
    known: dict[str, Any] = {}
    for one in hyperparameters:
        known.setdefault(one.name, one)
    recorded = dict.fromkeys(
        name for trial in trials for name in trial.hyperparameters
    )
    names = [name for name in known if name in recorded]
    names += [name for name in recorded if name not in known]
    axes = []
    for name in names:
        values = [
            trial.hyperparameters[name]
            for trial in trials
            if name in trial.hyperparameters
        ]
        axis = _axis(name, values, known.get(name))
        if axis is not None:
            axes.append(axis)
    return axes


def _axis(name: str, values: list[Any], declared: Any) -> Axis | None:
    choices: list[Any] = list(getattr(declared, "values", ()))
    for value in values:
        if value not in choices:
            choices.append(value)
    numeric = all(
        isinstance(value, (int, float)) and not isinstance(value, bool)
        for value in choices
    )
    if numeric and declared is None:
        low, high = min(choices), max(choices)
        return _range_axis(name, low, high, low > 0 and high / low > 30)
    few = _few_integers(declared)
    if few:
        choices = sorted({*few, *choices})
    elif numeric and declared is not None and hasattr(declared, "min_value"):
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


def _index(choices: Sequence[Any], value: Any) -> int:
    for index, choice in enumerate(choices):
        # True equals 1, but is another choice.
        if type(choice) is type(value) and choice == value:
            return index
    return list(choices).index(value)
