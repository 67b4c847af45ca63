"""KerasTuner's hyperparameters as Optuna's distributions, and back.

Optuna knows a parameter by its name alone, KerasTuner by its name and its
conditions; and Optuna has neither reversed logarithms nor multiplicative
steps. `Parameter` bridges both: it says under which name and with which
distribution a hyperparameter is stored, and turns one value into the other.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import keras_tuner
from keras_tuner.engine import hyperparameters as hp_kinds
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """How one hyperparameter is stored in a study.

    Attributes:
        name: Name of the parameter in the study. It is the name of the
            hyperparameter, unless another one has it (under other
            conditions), or unless the value is stored mirrored.
        distribution: What Optuna samples from.
        mirror: For `reverse_log`, the sum of both bounds: what is stored is
            `mirror - value`, whose distribution is logarithmic. `None`
            otherwise.
    """

    name: str
    distribution: BaseDistribution
    mirror: int | float | None = None

    def to_value(self, stored: Any) -> Any:
        """The value that the model builder sees."""
        return self._mirrored(stored)

    def to_stored(self, value: Any) -> Any:
        """The value that the study keeps."""
        return self._mirrored(value)

    def only_value(self) -> Any:
        """What is stored, if there is one value only: nothing to sample."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices[0]
        return self.distribution.low  # type: ignore[attr-defined]

    def _mirrored(self, value: Any) -> Any:
        if self.mirror is None:
            return value
        distribution: Any = self.distribution
        low, high = distribution.low, distribution.high
        # Exact at the ends, whatever the subtraction rounds to.
        if value in (low, high):
            return high if value == low else low
        return min(max(self.mirror - value, low), high)


def parameters_of(space: Sequence[Any]) -> list[Parameter | None]:
    """How each hyperparameter of a space is stored; `None` for a fixed one."""
    found: list[Parameter | None] = []
    taken: dict[str, Parameter] = {}
    for hp in space:
        parameter = _parameter(hp)
        if parameter is not None:
            if taken.get(parameter.name, parameter) != parameter:
                conditions = " and ".join(
                    f"{c.name} in {c.values}" for c in hp.conditions
                )
                parameter = dataclasses.replace(
                    parameter, name=f"{parameter.name} if {conditions}"
                )
            taken.setdefault(parameter.name, parameter)
        found.append(parameter)
    return found


def _parameter(hp: Any) -> Parameter | None:
    if isinstance(hp, hp_kinds.Fixed):
        return None
    if isinstance(hp, hp_kinds.Boolean):
        return Parameter(hp.name, CategoricalDistribution([False, True]))
    if isinstance(hp, hp_kinds.Choice):
        return Parameter(
            hp.name, CategoricalDistribution(list(dict.fromkeys(hp.values)))
        )
    if not isinstance(hp, (hp_kinds.Int, hp_kinds.Float)):
        raise TypeError(
            "OptunaOracle knows the hyperparameter kinds Int, Float, Choice, "
            f"Boolean and Fixed. Received: {hp!r} (of type "
            f"{type(hp).__name__})."
        )
    is_int = isinstance(hp, hp_kinds.Int)
    low, high, step = hp.min_value, hp.max_value, hp.step
    if hp.sampling == "linear":
        if step is None:
            return Parameter(hp.name, FloatDistribution(low, high))
        if is_int:
            high -= (high - low) % step
            return Parameter(hp.name, IntDistribution(low, high, step=step))
        high = _last_multiple(low, high, step)
        return Parameter(
            hp.name, FloatDistribution(low, high, step=float(step))
        )
    if step is not None:
        return Parameter(
            hp.name, CategoricalDistribution(_multiplicative_steps(hp))
        )
    kind = IntDistribution if is_int else FloatDistribution
    distribution = kind(low, high, log=True)
    if hp.sampling == "log":
        return Parameter(hp.name, distribution)
    return Parameter(f"{hp.name} (mirrored)", distribution, low + high)


def _last_multiple(low: float, high: float, step: float) -> float:
    # In decimals, as it was written: (1 - 0) // 0.2 is 4 in binary floats.
    first, width = Decimal(str(float(low))), Decimal(str(float(step)))
    count = (Decimal(str(float(high))) - first) // width
    return float(first + count * width)


def _multiplicative_steps(hp: Any) -> list[int] | list[float]:
    values, factor = [], 1.0
    low, high, step = hp.min_value, hp.max_value, hp.step
    # A power that is off by rounding still counts as reaching the end.
    while low * factor <= high * (1 + 1e-9):
        value = min(low * factor, high)
        if hp.sampling == "reverse_log":
            value = min(max(high + low - value, low), high)
        is_int = isinstance(hp, hp_kinds.Int)
        values.append(int(round(value)) if is_int else float(value))
        factor *= step
    return list(dict.fromkeys(values))


def finite_values(hp: Any) -> list[Any] | None:
    """Every value that a hyperparameter can take, or `None` if too many.

    A range of floats without a step has no end of values; a range of integers
    has, whatever its sampling.
    """
    if isinstance(hp, hp_kinds.Fixed):
        return [hp.value]
    parameter = _parameter(hp)
    assert parameter is not None
    distribution = parameter.distribution
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        values = range(
            distribution.low, distribution.high + 1, distribution.step
        )
        return [parameter.to_value(v) for v in values]
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is None:
        return [distribution.low] if distribution.single() else None
    count = round((distribution.high - distribution.low) / distribution.step)
    decimals = (
        Decimal(str(distribution.low)) + i * Decimal(str(distribution.step))
        for i in range(count + 1)
    )
    return [float(v) for v in decimals]


def grid(space: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every combination of a finite space, in the order of declaration.

    The hyperparameter that was declared last changes fastest. One that is not
    active takes no part: no combination comes twice.
    """
    for hp in space:
        if finite_values(hp) is None:
            raise ValueError(
                'sampler="grid" needs a finite number of values for each '
                f"hyperparameter. Received: {hp.name!r}, any number from "
                f"{hp.min_value} to {hp.max_value}. Give it a step, list its "
                'values, or choose sampler="random" or "tpe".'
            )
    return _combinations(list(space), {})


def _combinations(
    space: list[Any], values: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if not space:
        yield dict(values)
        return
    hp, rest = space[0], space[1:]
    if not is_active(hp, values) or hp.name in values:
        yield from _combinations(rest, values)
        return
    for value in finite_values(hp) or ():
        yield from _combinations(rest, {**values, hp.name: value})


def is_active(hp: Any, values: dict[str, Any]) -> bool:
    """Whether all conditions of a hyperparameter hold for these values."""
    return all(condition.is_active(values) for condition in hp.conditions)


def nth_of_grid(space: Sequence[Any], number: int) -> dict[str, Any] | None:
    """The combination with this number, or `None` after the last one."""
    return next(itertools.islice(grid(space), number, None), None)


def describe(space: Sequence[Any]) -> list[dict[str, Any]]:
    """What identifies a space, as strict JSON: names, ranges and conditions.

    Defaults are left out: they do not change what is searched.
    """
    described = []
    for hp in space:
        config = hp.get_config()
        config.pop("default", None)
        config["kind"] = type(hp).__name__
        config["conditions"] = [
            {"name": c.name, "values": list(c.values)} for c in hp.conditions
        ]
        described.append(config)
    # What came out of a database compares equal to what went in.
    return json.loads(json.dumps(described))


def to_config(hyperparameters: keras_tuner.HyperParameters) -> dict[str, Any]:
    """`get_config()`, as strict JSON and sharing nothing with its source."""
    return json.loads(json.dumps(hyperparameters.get_config()))
