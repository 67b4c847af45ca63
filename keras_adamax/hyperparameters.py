"""Hyperparameters of `AdamaxClipped`: their ranges, and their live values.

The numbers live in one packed variable, so that a change takes effect in the
next step of a compiled function; beside it stands what the user wrote, so that
a configuration says 0.001 and not 0.0010000000474974513.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax import _validation, backends
from keras_adamax.target_clip_rate import TargetClipRate
from keras_adamax.update_rule import LARGEST_DECAY_RATE

Tensor = Any

RANGES: Mapping[str, Mapping[str, Any]] = {
    "learning_rate": {"minimum": 0},
    "beta_1": {"minimum": 0, "exclusive_maximum": 1},
    "beta_2": {"minimum": 0, "exclusive_maximum": 1},
    "epsilon": {"minimum": 0},
    "clip_multiplier": {"minimum": 1},
    "clip_epsilon": {"minimum": 0},
    "weight_decay": {"minimum": 0},
    "spike_threshold": {"exclusive_minimum": 0, "exclusive_maximum": 1},
    "max_skipped_spikes": {"minimum": 1},
}
# In the order of the packed variable: saved states depend on it.
PACKED = (
    "beta_1",
    "beta_2",
    "epsilon",
    "clip_multiplier",
    "clip_epsilon",
    "weight_decay",
    "spike_threshold",
    "max_skipped_spikes",
)
# Without a spike gate the state is as it was before there was one: Keras's
# wrappers load it by position.
PACKED_WITHOUT_GATE = PACKED[: PACKED.index("spike_threshold")]
SCHEDULABLE = ("beta_1", "beta_2", "clip_multiplier", "clip_epsilon")
# The default of `AdamaxClipped`.
MAX_SKIPPED_SPIKES = 5
_INTEGERS = frozenset({"max_skipped_spikes"})


def check(name: str, value: Any) -> Any:
    """Returns the number, schedule or `None` that hyperparameter `name` takes.

    Raises:
        TypeError: If it is of a wrong type.
        ValueError: If it is out of range; a schedule, if its first value is.
    """
    if isinstance(value, TargetClipRate):
        if name == "clip_multiplier":
            return value
        raise TypeError(
            f"`{name}` must not be a `TargetClipRate`, which is for "
            f"`clip_multiplier` alone. Received: {name}={value!r}."
        )
    if name == "learning_rate":
        if isinstance(value, LearningRateSchedule) or (
            callable(value) and not isinstance(value, keras.Variable)
        ):
            return value
        return _validation.check_number(
            name,
            value,
            alternatives=", a LearningRateSchedule or a callable",
            **RANGES[name],
        )
    if name in ("weight_decay", "spike_threshold"):
        return _validation.check_optional_number(name, value, **RANGES[name])
    if name in _INTEGERS:
        return _validation.check_integer(name, value, **RANGES[name])
    if name not in SCHEDULABLE:
        hint = (
            f"`{name}` cannot be a schedule."
            if isinstance(value, LearningRateSchedule)
            else ""
        )
        return _validation.check_number(name, value, hint=hint, **RANGES[name])
    if isinstance(value, LearningRateSchedule):
        _check_first_value(name, value)
        return value
    return _validation.check_number(
        name, value, alternatives=" or a LearningRateSchedule", **RANGES[name]
    )


def check_combination(
    values: Mapping[str, Any], clip_gradients: bool, track_clip_rate: bool
) -> None:
    """Refuses hyperparameters that do not go together.

    Args:
        values: Name to checked value, for every name in `PACKED`.
        clip_gradients: Whether gradients are clipped.
        track_clip_rate: Whether clipped elements are counted.

    Raises:
        ValueError: If a spike gate or a `TargetClipRate` lacks what it needs.
    """
    threshold = values["spike_threshold"]
    skipped = values["max_skipped_spikes"]
    if not clip_gradients and (
        threshold is not None or skipped != MAX_SKIPPED_SPIKES
    ):
        raise ValueError(
            "`spike_threshold` and `max_skipped_spikes` need the bounds of "
            f"the clipping. Received: spike_threshold={threshold!r}, "
            f"max_skipped_spikes={skipped!r}, clip_gradients=False. Leave "
            "them out, or set clip_gradients=True."
        )
    multiplier = values["clip_multiplier"]
    if not isinstance(multiplier, TargetClipRate):
        return
    if threshold is not None and multiplier.target >= threshold:
        raise ValueError(
            "The target of a `TargetClipRate` must be below "
            "`spike_threshold`, which would leave out ordinary steps. "
            f"Received: clip_multiplier=TargetClipRate({multiplier.target!r}), "
            f"spike_threshold={threshold!r}. Choose a smaller target "
            "or a larger threshold."
        )
    if not (clip_gradients and track_clip_rate):
        raise ValueError(
            "With a `TargetClipRate` as `clip_multiplier`, "
            "`clip_gradients` and `track_clip_rate` must be True: it "
            "follows the count of clipped elements. "
            f"Received: clip_gradients={clip_gradients}, "
            f"track_clip_rate={track_clip_rate}."
        )


def _check_first_value(name: str, schedule: LearningRateSchedule) -> None:
    # A `MultiOptimizer` may make its optimizers while a step is traced.
    with backends.load().outside_of_graph():
        first = ops.convert_to_numpy(schedule(ops.convert_to_tensor(0)))
    allowed = dict(RANGES[name])
    if name == "clip_multiplier":
        # Held at 1 from below in every step.
        del allowed["minimum"]
    try:
        _validation.check_number(name, np.asarray(first)[()], **allowed)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The schedule of `{name}` gives a value at step 0 that is not "
            f"allowed. {error}"
        ) from error


def shortest_decimal(value: Any) -> float:
    """The shortest decimal number that rounds to a low-precision `value`."""
    return float(str(np.asarray(value)[()]))


def written_or_shortest(written: int | float, value: Any) -> int | float:
    """`written`, if `value` is its rounding; otherwise the shortest decimal."""
    value = np.asarray(value)
    if np.asarray(written, dtype=value.dtype) == value:
        return written
    return shortest_decimal(value)


class LiveHyperparameters:
    """The hyperparameters that a step reads: numbers or schedules.

    Those of the spike gate, where `spike_threshold` is `None`, no step reads.

    Args:
        values: Name to checked value, for every name in `PACKED`.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._names = (
            PACKED_WITHOUT_GATE if values["spike_threshold"] is None else PACKED
        )
        self._unread = {n: values[n] for n in PACKED if n not in self._names}
        self.schedules = {
            name: value
            for name, value in values.items()
            if isinstance(value, LearningRateSchedule)
        }
        self.written = {
            name: value
            for name, value in values.items()
            if value is not None
            and name not in self.schedules
            and name not in self._unread
        }
        self.constructed = dict(self.written)
        self._variable: keras.Variable | None = None
        self._excess: keras.Variable | None = None

    @property
    def target_clip_rate(self) -> TargetClipRate | None:
        """What the clip multiplier follows, if that is a clip rate."""
        schedule = self.schedules.get("clip_multiplier")
        return schedule if isinstance(schedule, TargetClipRate) else None

    @property
    def packed(self) -> np.ndarray:
        """The written numbers in `PACKED`'s order; 0 where there is none."""
        return np.asarray([self.written.get(n, 0.0) for n in self._names])

    def attach(
        self, variable: keras.Variable, excess: keras.Variable | None
    ) -> None:
        """Keeps the numbers in variables from now on.

        Args:
            variable: The numbers in `PACKED`'s order.
            excess: `clip_multiplier - 1`, with a `TargetClipRate`.
        """
        self._variable = variable
        self._excess = excess

    def get(self, name: str, values: np.ndarray) -> Any:
        """What the user wrote, or the present number, given the variable."""
        if name in self.schedules:
            return self.schedules[name]
        if name not in self.written:
            return self._unread.get(name)
        value = written_or_shortest(
            self.written[name], values[PACKED.index(name)]
        )
        # Any number may have been assigned to the variable.
        return max(round(value), 1) if name in _INTEGERS else value

    def set(self, name: str, value: Any, values: np.ndarray) -> None:
        """Sets a number on the live optimizer.

        Args:
            name: One of `PACKED`.
            value: The number.
            values: What the variable holds.

        Raises:
            AttributeError: If the hyperparameter is not a number now.
            TypeError: If `value` is no number.
            ValueError: If `value` is out of range.
        """
        if name in self.schedules:
            raise AttributeError(
                f"`{name}` was given a schedule when the optimizer was made, "
                "and cannot be set. Make the optimizer with a number to set "
                f"it later. Received: {name}={value!r}."
            )
        if name in self._unread:
            raise AttributeError(
                f"`{name}` cannot be set: `spike_threshold` was None when the "
                "optimizer was made, so that it has no spike gate. Make the "
                "optimizer with a number, such as spike_threshold=0.2, to set "
                f"it later. Received: {name}={value!r}."
            )
        if name not in self.written:
            raise AttributeError(
                f"`{name}` was None when the optimizer was made, and cannot be "
                f"set. Make the optimizer with {name}=0.0 to set it later. "
                f"Received: {name}={value!r}."
            )
        if name == "spike_threshold" and value is None:
            raise AttributeError(
                "`spike_threshold` was a number when the optimizer was made, "
                "and cannot be turned off: compiled steps would not see it. "
                "Received: spike_threshold=None. Make the optimizer with "
                "spike_threshold=None."
            )
        check_value = (
            _validation.check_integer
            if name in _INTEGERS
            else _validation.check_number
        )
        self.assign({name: check_value(name, value, **RANGES[name])}, values)

    def assign(self, numbers: Mapping[str, Any], values: np.ndarray) -> None:
        """Changes some numbers in the variable.

        The others stay what the variable holds: a checkpoint, a tree of the
        state or an assignment may have changed it since they were written.

        Args:
            numbers: Name to checked number.
            values: What the variable holds.
        """
        assert self._variable is not None
        values = np.array(values)
        for name, number in numbers.items():
            self.written[name] = number
            values[PACKED.index(name)] = number
        self._variable.assign(values)

    def tensor(self, name: str, step: Tensor, dtype: str) -> Tensor:
        """The value for one step, as a scalar tensor.

        Args:
            name: One of `PACKED`.
            step: Integer scalar, the number of updates applied so far.
            dtype: Dtype of the result.
        """
        if name not in self.schedules:
            packed = ops.convert_to_tensor(self._variable)
            return ops.cast(packed[PACKED.index(name)], dtype)
        if name == "clip_multiplier" and self._excess is not None:
            return 1.0 + ops.cast(self._excess, dtype)
        value = ops.cast(
            ops.convert_to_tensor(self.schedules[name](step)), dtype
        )
        if name == "clip_multiplier":
            return ops.maximum(value, 1.0)
        if name == "clip_epsilon":
            return ops.maximum(value, 0.0)
        return ops.clip(value, 0.0, LARGEST_DECAY_RATE)


class LiveNumber:
    """Descriptor: an attribute of the optimizer kept in `LiveHyperparameters`.

    Reading gives the number as it was written, or the schedule; setting a
    number takes effect in the next step, compiled or not.
    """

    def __init__(self, documentation: str):
        self.__doc__ = documentation

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        if optimizer is None:
            return self
        return optimizer._get_live(self._name)

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer._set_live(self._name, value)
