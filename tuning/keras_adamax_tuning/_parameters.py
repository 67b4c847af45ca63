"""A specified argument in KerasTuner's terms: its name, kind and value."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax import _validation
from keras_adamax_tuning._ranges import (
    Argument,
    Choices,
    Fixed,
    Range,
    Specification,
    raw,
)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An argument and what the user specified for it.

    Attributes:
        argument: What the argument takes.
        specification: A value, a range or choices.
        prefix: What its name in the record begins with.
    """

    argument: Argument
    specification: Specification
    prefix: str = ""

    @property
    def is_searched(self) -> bool:
        """Whether it has a hyperparameter."""
        return not isinstance(self.specification, Fixed)

    @property
    def record_name(self) -> str:
        """The name of its hyperparameter."""
        name = self.prefix + self.argument.name
        specification = self.specification
        if isinstance(specification, Range) and self.argument.is_transformed(
            specification
        ):
            assert self.argument.distance is not None
            # The prefix stays in front: `encoder_one_minus_beta_2`.
            return self.prefix + self.argument.distance.record_name.format(
                self.argument.name
            )
        return name

    def declare(self, hp: Any) -> Any:
        """Declares it in `hp`; the value that `hp` has for it.

        Where `hp` is in a scope that is not active: the default.

        Raises:
            ValueError: If `hp` has another hyperparameter of this name.
        """
        specification = self.specification
        if isinstance(specification, Fixed):
            return specification.value
        if isinstance(specification, Choices):
            kind, settings = self._choice_settings(specification)
        else:
            kind, settings = self._range_settings(specification)
        default = settings.pop("default")
        value = declare(hp, kind, self.record_name, default, **settings)
        return self.from_record(value)

    def from_record(self, recorded: Any) -> Any:
        """The value of the argument, from the value in the record."""
        specification = self.specification
        if isinstance(specification, Range):
            return self.argument.from_record(specification, recorded)
        assert isinstance(specification, Choices)
        if self._is_labelled(specification):
            labels = _labels(specification.values)
            return specification.values[labels.index(recorded)]
        if self.argument.kind == "boolean":
            return bool(recorded)
        return recorded

    def narrow(self, recorded: Mapping[str, Any], factor: float) -> Any:
        """A smaller specification around the recorded value, as an argument.

        Args:
            recorded: The record's values by name.
            factor: What is left of the width of a range, on its scale.

        Raises:
            ValueError: If the record lacks the value, or it is not one of this
                specification.
        """
        specification = self.specification
        if isinstance(specification, Fixed):
            return specification.value
        name = self.record_name
        if name not in recorded:
            raise ValueError(
                f"`best` must have a value for {name!r}. Received: values for "
                f"{sorted(recorded)}. Give what a search over this space "
                "found."
            )
        self._check_recorded(recorded[name])
        if isinstance(specification, Choices):
            return self.from_record(recorded[name])
        return self._narrow_range(specification, recorded[name], factor)

    def values(self) -> tuple[Any, ...]:
        """The value, the ends of the range, or the choices."""
        specification = self.specification
        if isinstance(specification, Fixed):
            return (specification.value,)
        if isinstance(specification, Range):
            return specification.low, specification.high
        return specification.values

    def start(self) -> str:
        """The value that a search starts with, in words."""
        specification = self.specification
        if isinstance(specification, Fixed):
            return ""
        settings = (
            self._choice_settings(specification)
            if isinstance(specification, Choices)
            else self._range_settings(specification)
        )[1]
        value = self.from_record(settings["default"])
        is_float = isinstance(value, float)
        return f"{value:.6g}" if is_float else label(value)

    def row(self) -> tuple[str, str, str]:
        """Name of the argument, its values, and how the record has them."""
        specification = self.specification
        name = self.prefix + self.argument.name
        if isinstance(specification, Fixed):
            return name, label(specification.value), "fixed"
        if isinstance(specification, Choices):
            values = ", ".join(_labels(specification.values))
            return name, values, f"{self.record_name}: choice"
        low, high = self.argument.record_ends(specification)
        return (
            name,
            f"{specification.low:.6g} to {specification.high:.6g}",
            f"{self.record_name}: {low:.6g} to {high:.6g}, "
            f"{specification.scale}",
        )

    def _is_labelled(self, choices: Choices) -> bool:
        """Whether KerasTuner gets strings: it takes no `None`, no objects."""
        return self.argument.kind != "boolean" and any(
            value is None or isinstance(value, LearningRateSchedule)
            for value in choices.values
        )

    def _choice_settings(self, choices: Choices) -> tuple[str, dict[str, Any]]:
        values = choices.values
        start = self.argument.default
        default = next((v for v in values if v == start), values[0])
        if self.argument.kind == "boolean":
            # KerasTuner's Choice makes 1 and 0 of booleans.
            return "Boolean", {"default": default}
        if self._is_labelled(choices):
            labels = _labels(values)
            return "Choice", {
                "values": labels,
                "ordered": False,
                "default": labels[values.index(default)],
            }
        # KerasTuner's Choice takes one type only.
        to_type = int if self.argument.kind == "integer" else float
        return "Choice", {
            "values": [to_type(value) for value in values],
            "ordered": True,
            "default": to_type(default),
        }

    def _range_settings(self, range_: Range) -> tuple[str, dict[str, Any]]:
        low, high = self.argument.record_ends(range_)
        default = self.argument.default
        if default is not None and range_.low <= default <= range_.high:
            default = self.argument.to_record(range_, default)
        elif range_.scale == "log":
            default = math.sqrt(low) * math.sqrt(high)
        else:
            default = low + (high - low) / 2
        is_integer = self.argument.kind == "integer"
        to_type = int if is_integer else float
        return "Int" if is_integer else "Float", {
            "min_value": to_type(low),
            "max_value": to_type(high),
            # What KerasTuner makes of None.
            "step": 1 if is_integer and range_.scale == "linear" else None,
            "sampling": range_.scale,
            "default": min(max(to_type(default), to_type(low)), to_type(high)),
        }

    def _check_recorded(self, value: Any) -> None:
        specification = self.specification
        if isinstance(specification, Choices):
            kind, settings = self._choice_settings(specification)
            allowed = (True, False) if kind == "Boolean" else settings["values"]
            is_allowed = value in allowed
            words = f"one of {list(allowed)}"
        else:
            assert isinstance(specification, Range)
            low, high = self.argument.record_ends(specification)
            is_allowed = _validation.is_number(value) and (
                low <= value <= high
                or any(math.isclose(value, end) for end in (low, high))
            )
            words = f"in the range [{low}, {high}]"
        if not is_allowed:
            raise ValueError(
                f"`best` must have a value for {self.record_name!r} that is "
                f"{words}. Received: {value!r}. Give what a search over this "
                "space found."
            )

    def _narrow_range(self, range_: Range, number: Any, factor: float) -> Any:
        is_log = range_.scale == "log"
        low, high, best = (
            math.log(x) if is_log else x
            for x in (*self.argument.record_ends(range_), number)
        )
        width = factor * (high - low)
        low = min(max(best - width / 2, low), high - width)
        ends = (math.exp(end) if is_log else end for end in (low, low + width))
        value = self.argument.from_record(range_, number)
        if self.argument.kind == "integer":
            ends = (round(end) for end in ends)
        else:
            ends = (self.argument.from_record(range_, end) for end in ends)
        low, high = sorted(ends)
        # Rounding may lead out of the old range, or past the best value.
        low = min(max(low, range_.low), value)
        high = max(min(high, range_.high), value)
        return Range(low, high, range_.scale) if low < high else value


def declare(
    hp: Any, kind: str, name: str, default: Any, **settings: Any
) -> Any:
    """Declares a hyperparameter in `hp`; its value, or `default`.

    KerasTuner returns the first declaration's value if another one of the same
    name follows, and `None` if the scope is not active.

    Args:
        hp: A `keras_tuner.HyperParameters`.
        kind: Name of its method: `"Float"`, `"Int"`, `"Choice"`, `"Boolean"`.
        name: Name of the hyperparameter.
        default: Its default value.
        **settings: What else the method takes.

    Raises:
        ValueError: If `hp` has another hyperparameter of this name.
    """
    qualified = qualified_name(hp, name)
    for existing in hp.space:
        if existing.name != qualified:
            continue
        config = existing.get_config()
        found = {key: config.get(key) for key in settings}
        if type(existing).__name__ != kind or found != settings:
            raise ValueError(
                f"The hyperparameter {qualified!r} is already declared, in "
                f"another way: as {existing!r}, and now as "
                f"{kind}({_words(settings)}). Rename the other one, or give "
                "the space a `name_prefix`."
            )
    value = getattr(hp, kind)(name, default=default, **settings)
    return default if value is None else value


def qualified_name(hp: Any, name: str) -> str:
    """The name with the scopes that are open in `hp`."""
    # No public way leads to them; tests/tuning/test_search_space.py notices
    # when this one moves.
    return hp._get_name(name)


def label(value: Any) -> str:
    """The value in words, for the record and for tables."""
    if isinstance(value, LearningRateSchedule):
        return type(value).__name__
    return repr(value)


def _labels(values: tuple[Any, ...]) -> list[str]:
    """A different string for each value."""
    labels: list[str] = []
    for value in values:
        first = unique = label(value)
        number = 1
        while unique in labels:
            number += 1
            unique = f"{first}_{number}"
        labels.append(unique)
    return labels


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


def serialize(specification: Specification) -> Any:
    """The specification for a configuration, ready for JSON."""
    value = raw(specification)
    if isinstance(value, list):
        return [_serialize_value(item) for item in value]
    return _serialize_value(value)


def deserialize(config: Any) -> Any:
    """The argument that `serialize` was given."""
    if isinstance(config, list):
        return [deserialize(item) for item in config]
    if isinstance(config, Mapping):
        return keras.saving.deserialize_keras_object(dict(config))
    return config


def _serialize_value(value: Any) -> Any:
    if isinstance(value, (Range, LearningRateSchedule)):
        return keras.saving.serialize_keras_object(value)
    return value
