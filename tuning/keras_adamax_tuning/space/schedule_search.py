"""Which schedules a search chooses between for one argument."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax._validation import check_optional_integer
from keras_adamax_tuning.space.arguments import Argument
from keras_adamax_tuning.space.parameters import Parameter, declare
from keras_adamax_tuning.space.schedule_kinds import CONSTANT, KINDS


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

        `declare_value` declares the value of the hyperparameter; it is active
        only where a kind uses it.
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

    def as_argument(
        self,
        convert: Callable[[Any], Any] = lambda specification: specification,
    ) -> dict[str, Any]:
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
        name, kinds = self.record_name, ", ".join(self.kinds)
        is_choice = len(self.kinds) > 1
        rows = [(name, kinds, "fixed", "")]
        if is_choice:
            rows = [(name, kinds, f"{name}: choice", self.default())]
        for kind, parts in self.kinds.items():
            for part in parts:
                argument, values, record, start = part.row()
                if is_choice and part.is_searched:
                    record += f" (if {kind})"
                rows.append((argument, values, record, start))
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
    parts: tuple[Argument, ...],
    given: Any,
    num_steps: int | None,
    prefix: str,
) -> tuple[Parameter, ...]:
    if not isinstance(given, Mapping):
        raise TypeError(
            f"`{argument}` must be a dictionary of specifications. "
            f"Received: {given!r}."
        )
    names = [part.name for part in parts]
    for name in given:
        if name not in names:
            raise ValueError(
                f"`{argument}` has no part {name!r}. "
                f"Received: {dict(given)!r}. It has "
                f"{', '.join(names) or 'none'}."
            )
    parameters = []
    for part in parts:
        specification = part.standard
        if part.name in given:
            specification = given[part.name]
        elif callable(specification):
            if num_steps is None:
                raise ValueError(
                    f"`num_steps` must be given, or {part.name!r} in "
                    f"`{argument}`: nothing else says how long the schedule "
                    "is. Received: num_steps=None."
                )
            specification = specification(num_steps)
        parameters.append(Parameter.parse(part, specification, prefix))
    return tuple(parameters)
