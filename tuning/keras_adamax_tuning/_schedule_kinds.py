"""The schedules that a search can choose, and what it searches of each."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from keras.optimizers.schedules import (
    CosineDecay,
    ExponentialDecay,
    LearningRateSchedule,
    PolynomialDecay,
)

from keras_adamax import JoinedSchedule, LinearRamp, TargetClipRate
from keras_adamax._validation import check_optional_integer
from keras_adamax_tuning._parameters import Parameter, declare
from keras_adamax_tuning._ranges import ABOVE_ONE, Argument, Range

CONSTANT = "constant"

# (1 - t / n)^p is an exponential in the limit of a large p. At this one it is
# as near as float32 lets it be: 0.05 % for an approach by a factor of 20.
_POWER = 4096


@dataclasses.dataclass(frozen=True)
class Part:
    """An argument of a kind of schedule.

    Attributes:
        argument: What it takes.
        standard: From the length of a run in updates: the specification where
            the user gives none.
        needs_num_steps: Whether `standard` uses that length.
    """

    argument: Argument
    standard: Callable[[int], Any]
    needs_num_steps: bool = False


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of schedule.

    Attributes:
        make: From the value of the hyperparameter and the parts: the schedule.
        parts: What can be searched of it.
        uses_value: Whether the value of the hyperparameter has an effect.
    """

    make: Callable[..., float | LearningRateSchedule]
    parts: tuple[Part, ...] = ()
    uses_value: bool = True


def _steps(name: str, minimum: int = 1) -> Argument:
    return Argument(
        name, kind="integer", limits={"minimum": minimum}, scale="log"
    )


def _fraction(name: str, scale: str) -> Argument:
    return Argument(name, limits={"minimum": 0, "maximum": 1}, scale=scale)


def _whole(num_steps: int) -> int:
    return num_steps


def _part_of(low: int, high: int) -> Callable[[int], Any]:
    """From `1 / low` to `1 / high` of a run."""

    def standard(num_steps: int) -> Any:
        first = max(1, num_steps // low)
        return Range(first, max(first + 1, num_steps // high))

    return standard


_DECAY_STEPS = Part(_steps("decay_steps"), _whole, needs_num_steps=True)
_NO_WARMUP = Part(
    dataclasses.replace(_steps("warmup_steps", minimum=0), scale="linear"),
    lambda num_steps: 0,
)


def _constant(value: float) -> float:
    return value


def _warmup(value: float, warmup_steps: int) -> LearningRateSchedule:
    return LinearRamp(0.0, value, warmup_steps)


def _cosine(
    value: float, decay_steps: int, alpha: float, warmup_steps: int
) -> LearningRateSchedule:
    if not warmup_steps:
        return CosineDecay(value, decay_steps, alpha=alpha)
    return CosineDecay(
        0.0,
        decay_steps,
        alpha=alpha,
        warmup_target=value,
        warmup_steps=warmup_steps,
    )


def _exponential(
    value: float, decay_steps: int, decay_rate: float, warmup_steps: int
) -> LearningRateSchedule:
    return _after_warmup(
        value, warmup_steps, ExponentialDecay(value, decay_steps, decay_rate)
    )


def _polynomial(
    value: float,
    decay_steps: int,
    end_factor: float,
    power: float,
    warmup_steps: int,
) -> LearningRateSchedule:
    decay = PolynomialDecay(
        value,
        decay_steps,
        end_learning_rate=end_factor * value,
        power=power,
    )
    return _after_warmup(value, warmup_steps, decay)


def _after_warmup(
    value: float, warmup_steps: int, decay: LearningRateSchedule
) -> LearningRateSchedule:
    if not warmup_steps:
        return decay
    return JoinedSchedule(
        [LinearRamp(0.0, value, warmup_steps), decay], [warmup_steps]
    )


def _ramp(value: float, start: float, num_steps: int) -> LearningRateSchedule:
    return LinearRamp(start, value, num_steps)


def _exponential_approach(
    value: float, start_factor: float, half_life: int
) -> float | LearningRateSchedule:
    last = 1 - value
    first = min(1.0, start_factor * last)
    if first <= last:
        return value
    length = half_life * math.log2(first / last)
    # Keras's schedules decay to a value; none but this one can be led to 1
    # from below. It is cut off where it meets `value`.
    decay_steps = length / -math.expm1(-math.log(first / last) / _POWER)
    approach = PolynomialDecay(
        1 - first, decay_steps, end_learning_rate=1.0, power=_POWER
    )
    return JoinedSchedule([approach, value], [math.ceil(length)])


def _target_rate(value: float | None, target: float) -> LearningRateSchedule:
    del value  # the loop finds it
    return TargetClipRate(target)


# Hyperparameter to the kinds of its schedule.
KINDS: Mapping[str, Mapping[str, Kind]] = {
    "learning_rate": {
        CONSTANT: Kind(_constant),
        "warmup": Kind(
            _warmup,
            (
                Part(
                    _steps("warmup_steps"),
                    _part_of(100, 4),
                    needs_num_steps=True,
                ),
            ),
        ),
        "cosine": Kind(
            _cosine,
            (
                _DECAY_STEPS,
                Part(_fraction("alpha", "linear"), lambda _: Range(0.0, 0.1)),
                _NO_WARMUP,
            ),
        ),
        "exponential": Kind(
            _exponential,
            (
                _DECAY_STEPS,
                Part(
                    _fraction("decay_rate", "log"), lambda _: Range(0.001, 0.5)
                ),
                _NO_WARMUP,
            ),
        ),
        "polynomial": Kind(
            _polynomial,
            (
                _DECAY_STEPS,
                Part(
                    _fraction("end_factor", "linear"), lambda _: Range(0.0, 0.1)
                ),
                Part(
                    Argument("power", default=1.0, limits={"minimum": 0}),
                    lambda _: Range(0.5, 3.0),
                ),
                _NO_WARMUP,
            ),
        ),
    },
    "beta_2": {
        CONSTANT: Kind(_constant),
        "exponential": Kind(
            _exponential_approach,
            (
                Part(
                    Argument(
                        "start_factor",
                        default=20.0,
                        limits={"minimum": 1},
                        scale="log",
                    ),
                    lambda _: Range(2.0, 100.0),
                ),
                Part(
                    dataclasses.replace(_steps("half_life"), default=2000),
                    _part_of(100, 4),
                    needs_num_steps=True,
                ),
            ),
        ),
    },
    "clip_multiplier": {
        CONSTANT: Kind(_constant),
        "linear": Kind(
            _ramp,
            (
                Part(
                    Argument(
                        "start",
                        limits={"minimum": 1},
                        scale="log",
                        distance=ABOVE_ONE,
                    ),
                    lambda _: Range(1.01, 10.0),
                ),
                Part(
                    _steps("num_steps"), _part_of(20, 1), needs_num_steps=True
                ),
            ),
        ),
        "target_rate": Kind(
            _target_rate,
            (
                Part(
                    Argument(
                        "target",
                        default=0.01,
                        limits={
                            "exclusive_minimum": 0,
                            "exclusive_maximum": 1,
                        },
                        scale="log",
                    ),
                    lambda _: Range(0.001, 0.1),
                ),
            ),
            uses_value=False,
        ),
    },
}


@dataclasses.dataclass(frozen=True)
class ScheduleSearch:
    """Which kinds of schedule of one hyperparameter are searched.

    Attributes:
        name: Name of the hyperparameter.
        kinds: Kind to its parts.
        prefix: What names in the record begin with.
    """

    name: str
    kinds: Mapping[str, tuple[Parameter, ...]]
    prefix: str = ""

    @classmethod
    def parse(
        cls, name: str, given: Any, num_steps: Any, prefix: str
    ) -> "ScheduleSearch":
        """What the user gave, checked.

        Args:
            name: Name of the hyperparameter.
            given: A kind, a list of kinds, or a dictionary from kinds to
                dictionaries of specifications by part.
            num_steps: Length of a run in updates, or `None`.
            prefix: What names in the record begin with.

        Raises:
            TypeError: If something is of a wrong type.
            ValueError: If a kind or a part is unknown, or nothing says how
                long a schedule is.
        """
        argument = f"{name}_schedule"
        num_steps = check_optional_integer("num_steps", num_steps, minimum=1)
        if isinstance(given, str):
            given = [given]
        if isinstance(given, list):
            given = dict.fromkeys(_check_names(argument, given), {})
        if not isinstance(given, Mapping) or not given:
            raise TypeError(
                f"`{argument}` must be a kind, a list of kinds, or a "
                "dictionary from kinds to their parts. "
                f"Received: {argument}={given!r}. The kinds are "
                f"{', '.join(KINDS[name])}."
            )
        _check_names(argument, list(given))
        kinds = {}
        for kind, parts in given.items():
            if kind not in KINDS[name]:
                raise ValueError(
                    f"`{argument}` must have kinds out of "
                    f"{', '.join(KINDS[name])}. Received: {kind!r}."
                )
            kinds[kind] = _parse_parts(
                f"{argument}[{kind!r}]",
                KINDS[name][kind].parts,
                parts,
                num_steps,
                f"{prefix}{name}_{kind}_",
            )
        return cls(name, kinds, prefix)

    @property
    def record_name(self) -> str:
        """The name of the hyperparameter that is the kind."""
        return f"{self.prefix}{self.name}_schedule"

    @property
    def is_constant(self) -> bool:
        """Whether there is no schedule at all."""
        return list(self.kinds) == [CONSTANT]

    @property
    def kinds_that_use_the_value(self) -> list[str]:
        """Those in which the value of the hyperparameter has an effect."""
        return [k for k in self.kinds if KINDS[self.name][k].uses_value]

    def targets(self) -> list[float]:
        """The targets of `TargetClipRate`, at least those at the ends."""
        return [
            value
            for part in self.kinds.get("target_rate", ())
            for value in part.values()
        ]

    def uses_value(self, recorded: Mapping[str, Any]) -> bool:
        """Whether the value has an effect in the recorded kind."""
        kind = recorded.get(self.record_name, self.default())
        return kind not in self.kinds or KINDS[self.name][kind].uses_value

    def declare(
        self, hp: Any, declare_value: Callable[[], float]
    ) -> float | LearningRateSchedule:
        """Declares value, kinds and parts in `hp`; what `hp` makes of them.

        Args:
            hp: The hyperparameters.
            declare_value: Declares the value of the hyperparameter; it is
                active only where a kind uses it.
        """
        names = list(self.kinds)
        using = self.kinds_that_use_the_value
        value = declare_value() if using == names else None
        if len(names) == 1:
            ((kind, parts),) = self.kinds.items()
            return self._make(kind, value, self._declare_parts(hp, parts))
        chosen = declare(
            hp,
            "Choice",
            self.record_name,
            self.default(),
            values=names,
            ordered=False,
        )
        if using and using != names:
            with hp.conditional_scope(self.record_name, using):
                value = declare_value()
        values = {}
        for kind, parts in self.kinds.items():
            if not any(part.is_searched for part in parts):
                values[kind] = self._declare_parts(hp, parts)
                continue
            with hp.conditional_scope(self.record_name, [kind]):
                values[kind] = self._declare_parts(hp, parts)
        return self._make(chosen, value, values[chosen])

    def narrow(self, recorded: Mapping[str, Any], factor: float) -> Any:
        """The best kind alone, and its parts narrowed, as an argument."""
        kind = self.default()
        if len(self.kinds) > 1:
            kind = str(recorded.get(self.record_name))
            if kind not in self.kinds:
                raise ValueError(
                    f"`best` must have a value for {self.record_name!r} that "
                    f"is one of {list(self.kinds)}. Received: {kind!r}. Give "
                    "what a search over this space found."
                )
        return {
            kind: {
                part.argument.name: part.narrow(recorded, factor)
                for part in self.kinds[kind]
            }
        }

    def as_argument(self, convert: Callable[[Any], Any]) -> dict[str, Any]:
        """The dictionary that `parse` takes, with converted specifications."""
        return {
            kind: {
                part.argument.name: convert(part.specification)
                for part in parts
            }
            for kind, parts in self.kinds.items()
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Rows of a table, see `Parameter.row`; none without a schedule."""
        if self.is_constant:
            return []
        names = list(self.kinds)
        is_choice = len(names) > 1
        rows = [
            (
                self.record_name,
                ", ".join(names),
                f"{self.record_name}: choice" if is_choice else "fixed",
                self.default() if is_choice else "",
            )
        ]
        for kind, parts in self.kinds.items():
            note = f" (if {kind})" if is_choice else ""
            for part in parts:
                argument, values, record = part.row()
                condition = note if part.is_searched else ""
                rows.append(
                    (argument, values, record + condition, part.start())
                )
        return rows

    def default(self) -> str:
        """The kind that a search starts with."""
        return CONSTANT if CONSTANT in self.kinds else next(iter(self.kinds))

    def _declare_parts(
        self, hp: Any, parts: tuple[Parameter, ...]
    ) -> dict[str, Any]:
        return {part.argument.name: part.declare(hp) for part in parts}

    def _make(
        self, kind: str, value: float | None, parts: Mapping[str, Any]
    ) -> float | LearningRateSchedule:
        # Keras computes in integers where it is given one.
        if kind != CONSTANT and value is not None:
            value = float(value)
        return KINDS[self.name][kind].make(value, **parts)


def _check_names(argument: str, names: list[Any]) -> list[str]:
    if not names:
        raise ValueError(
            f"`{argument}` must have a kind to choose. "
            f"Received: {argument}={names!r}."
        )
    if any(not isinstance(name, str) for name in names):
        raise TypeError(
            f"`{argument}` must have kinds that are strings. "
            f"Received: {argument}={names!r}."
        )
    if len(set(names)) != len(names):
        raise ValueError(
            f"`{argument}` must have different kinds. "
            f"Received: {argument}={names!r}."
        )
    return names


def _parse_parts(
    argument: str,
    parts: tuple[Part, ...],
    given: Any,
    num_steps: int | None,
    prefix: str,
) -> tuple[Parameter, ...]:
    if not isinstance(given, Mapping):
        raise TypeError(
            f"`{argument}` must be a dictionary of specifications. "
            f"Received: {given!r}."
        )
    names = [part.argument.name for part in parts]
    for name in given:
        if name not in names:
            raise ValueError(
                f"`{argument}` has no part {name!r}. "
                f"Received: {dict(given)!r}. It has "
                f"{', '.join(names) or 'none'}."
            )
    parameters = []
    for part in parts:
        name = part.argument.name
        if name in given:
            specification = given[name]
        elif part.needs_num_steps and num_steps is None:
            raise ValueError(
                f"`num_steps` must be given, or {name!r} in `{argument}`: "
                "nothing else says how long the schedule is. "
                "Received: num_steps=None."
            )
        else:
            specification = part.standard(num_steps or 0)
        parameters.append(
            Parameter(part.argument, part.argument.parse(specification), prefix)
        )
    return tuple(parameters)
