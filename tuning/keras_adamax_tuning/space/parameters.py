"""A specified argument in KerasTuner's terms: its name, kind and value."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax import _validation
from keras_adamax_tuning.space.arguments import Argument, values_of
from keras_adamax_tuning.space.ranges import Distance, Range

# What a few operations in float64 may lose.
_ROUNDING = 1e-14


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An argument and what the user specified for it."""

    argument: Argument
    specification: Any
    prefix: str = ""

    @classmethod
    def parse(
        cls, argument: Argument, given: Any, prefix: str = ""
    ) -> "Parameter":
        """The parameter of what the user gave, checked."""
        return cls(argument, argument.parse(given), prefix)

    @property
    def is_searched(self) -> bool:
        """Whether it has a hyperparameter."""
        return isinstance(self.specification, (Range, list))

    @property
    def record_name(self) -> str:
        """The name of its hyperparameter."""
        form = self._distance.record_name if self._distance else "{}"
        # The prefix stays in front: `encoder_one_minus_beta_2`.
        return self.prefix + form.format(self.argument.name)

    def values(self) -> list[Any]:
        """The value, the ends of the range, or the choices."""
        return values_of(self.specification)

    def declare(self, hp: Any) -> Any:
        """Declares it in `hp`; the value that `hp` has for it.

        Where `hp` is in a scope that is not active: the default.
        """
        if not self.is_searched:
            return self.specification
        kind, default, settings = self._declaration()
        value = declare(hp, kind, self.record_name, default, **settings)
        return self._from_record(value)

    def narrow(self, recorded: Mapping[str, Any], factor: float) -> Any:
        """A smaller specification around the recorded value.

        A range keeps the part `factor` of its width, on its scale.
        """
        if not self.is_searched:
            return self.specification
        name = self.record_name
        if name not in recorded:
            raise ValueError(
                f"`best` must have a value for {name!r}. Received: values for "
                f"{sorted(recorded)}. Give what a search over this space "
                "found."
            )
        self._check_recorded(recorded[name])
        if isinstance(self.specification, list):
            return self._from_record(recorded[name])
        return self._narrow_range(self.specification, recorded[name], factor)

    def row(self) -> tuple[str, str, str, str]:
        """Its name, its values, how the record has them, and the first one."""
        specification, name = self.specification, self.argument.name
        if not self.is_searched:
            return self.prefix + name, label(specification), "fixed", ""
        default = self._from_record(self._declaration()[1])
        start = (
            f"{default:.6g}" if isinstance(default, float) else label(default)
        )
        if isinstance(specification, list):
            values, how = ", ".join(_labels(specification)), "choice"
        else:
            values = f"{specification.low:.6g} to {specification.high:.6g}"
            low, high = self._record_ends()
            how = f"{low:.6g} to {high:.6g}, {specification.scale}"
        return self.prefix + name, values, f"{self.record_name}: {how}", start

    @property
    def _distance(self) -> Distance | None:
        """What the record has in place of the value."""
        specification = self.specification
        if isinstance(specification, Range) and specification.scale == "log":
            return self.argument.distance
        return None

    def _to_record(self, value: float) -> float:
        return self._distance.measure(value) if self._distance else value

    def _from_record(self, recorded: Any) -> Any:
        """The value of the argument, from the value in the record."""
        if isinstance(self.specification, list):
            if self._is_labelled():
                place = _labels(self.specification).index(recorded)
                return self.specification[place]
            return bool(recorded) if self._is("boolean") else recorded
        # Samplers hit an end but for rounding: `low * (high / low)` may be
        # larger than `high`.
        for end in self.values():
            if math.isclose(recorded, self._to_record(end), rel_tol=_ROUNDING):
                return end
        if self._distance:
            return self._distance.value(recorded)
        return int(recorded) if self._is("integer") else float(recorded)

    def _record_ends(self) -> list[float]:
        """The range as the record has it: smallest and largest number."""
        return sorted(map(self._to_record, self.values()))

    def _is(self, kind: str) -> bool:
        return self.argument.kind == kind

    def _is_labelled(self) -> bool:
        """Whether KerasTuner gets strings: it takes no `None`, no objects."""
        return not self._is("boolean") and any(
            value is None or isinstance(value, LearningRateSchedule)
            for value in self.specification
        )

    def _declaration(self) -> tuple[str, Any, dict[str, Any]]:
        """KerasTuner's kind, the default in the record, and what it takes."""
        to_type = int if self._is("integer") else float
        default = self.argument.default
        if isinstance(self.specification, list):
            values = self.specification
            if default not in values:
                default = values[0]
            if self._is("boolean"):
                # KerasTuner's Choice makes 1 and 0 of booleans.
                return "Boolean", default, {}
            if self._is_labelled():
                labels = _labels(values)
                default = labels[values.index(default)]
                return "Choice", default, {"values": labels, "ordered": False}
            # KerasTuner's Choice takes one type only.
            values = list(map(to_type, values))
            default = to_type(default)
            return "Choice", default, {"values": values, "ordered": True}
        scale = self.specification.scale
        low, high = self._record_ends()
        first, last = self.values()
        if default is not None and first <= default <= last:
            default = self._to_record(default)
        elif scale == "log":
            default = math.sqrt(low) * math.sqrt(high)
        else:
            default = low + (high - low) / 2
        low, high = to_type(low), to_type(high)
        is_integer = self._is("integer")
        return (
            "Int" if is_integer else "Float",
            min(max(to_type(default), low), high),
            {
                "min_value": low,
                "max_value": high,
                # What KerasTuner makes of None.
                "step": 1 if is_integer and scale == "linear" else None,
                "sampling": scale,
            },
        )

    def _check_recorded(self, value: Any) -> None:
        if isinstance(self.specification, list):
            kind, _, settings = self._declaration()
            allowed = [True, False] if kind == "Boolean" else settings["values"]
            is_allowed = value in allowed
            words = f"one of {allowed}"
        else:
            low, high = self._record_ends()
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
            math.log(x) if is_log else x for x in (*self._record_ends(), number)
        )
        width = factor * (high - low)
        low = min(max(best - width / 2, low), high - width)
        ends = [math.exp(end) if is_log else end for end in (low, low + width)]
        value = self._from_record(number)
        if self._is("integer"):
            ends = [round(end) for end in ends]
        else:
            ends = [self._from_record(end) for end in ends]
        # Rounding may lead out of the old range, or past the best value.
        low = min(max(min(ends), range_.low), value)
        high = max(min(max(ends), range_.high), value)
        return Range(low, high, range_.scale) if low < high else value


def declare(
    hp: Any, kind: str, name: str, default: Any, **settings: Any
) -> Any:
    """Declares a hyperparameter in `hp`; its value, or `default`.

    KerasTuner returns the first declaration's value if another one of the same
    name follows, and `None` if the scope is not active.
    """
    # The name with the scopes that are open in `hp`. No public way leads to
    # them; tests/tuning/space notices when this one moves.
    qualified = hp._get_name(name)
    for existing in hp.space:
        if existing.name != qualified:
            continue
        config = existing.get_config()
        found = {key: config.get(key) for key in settings}
        if type(existing).__name__ != kind or found != settings:
            words = ", ".join(f"{k}={v!r}" for k, v in settings.items())
            raise ValueError(
                f"The hyperparameter {qualified!r} is already declared, in "
                f"another way: as {existing!r}, and now as "
                f"{kind}({words}). Rename the other one, or give "
                "the space a `name_prefix`."
            )
    value = getattr(hp, kind)(name, default=default, **settings)
    return default if value is None else value


def label(value: Any) -> str:
    """The value in words, for the record and for tables."""
    if isinstance(value, LearningRateSchedule):
        return type(value).__name__
    return repr(value)


def _labels(values: list[Any]) -> list[str]:
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


def serialize(specification: Any) -> Any:
    """The specification for a configuration, ready for JSON."""
    if isinstance(specification, list):
        return [serialize(value) for value in specification]
    if isinstance(specification, (Range, LearningRateSchedule)):
        return keras.saving.serialize_keras_object(specification)
    return specification


def deserialize(config: Any) -> Any:
    """The argument that `serialize` was given."""
    if isinstance(config, list):
        return [deserialize(item) for item in config]
    if isinstance(config, Mapping):
        return keras.saving.deserialize_keras_object(dict(config))
    return config
