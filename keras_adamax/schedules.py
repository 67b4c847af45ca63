"""Schedules that Keras lacks; Keras's own work everywhere too."""

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax._validation import check_integer, check_number, is_number
from keras_adamax.target_clip_rate import TargetClipRate

Tensor = Any

# Steps are compared as integers; Keras counts them in 32 bits on JAX and torch.
_LARGEST_STEP = 2**31 - 1
# Float32 holds every number up to this, and the difference of any two.
_LARGEST_VALUE = 1e38


@keras.saving.register_keras_serializable("keras_adamax")
class JoinedSchedule(LearningRateSchedule):
    """Schedules one after another, each starting from its own step 0.

    Use it to warm up and then decay, or to hold a value for a while: from
    step `boundaries[i]` on, `schedules[i + 1]` takes over and counts from
    there.

        value(step) = schedules[i](step - start_i)

    where `start_0 = 0`, `start_i = boundaries[i - 1]`, and `i` is the last one
    with `start_i <= step`. A schedule is only ever asked for the steps in which
    it is used.

    Args:
        schedules: Sequence of `keras.optimizers.schedules.LearningRateSchedule`
            instances and numbers. A number is a part of constant value.
        boundaries: Sequence of integers >= 1, strictly increasing: the steps
            from which on the next schedule is used. One fewer than `schedules`.

    Raises:
        TypeError: If an item of `schedules` is neither a schedule nor a
            number, or a `TargetClipRate`, or one of `boundaries` no integer.
        ValueError: If `schedules` is empty, a number is not finite,
            `boundaries` do not increase, or the lengths do not match.

    Example:
        >>> from keras_adamax import JoinedSchedule, LinearRamp
        >>> schedule = JoinedSchedule([LinearRamp(0.0, 1.0, 4), 0.5], [6])
        >>> [float(schedule(step)) for step in range(8)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]

    References:
        - `optax.join_schedules`, which takes the same arguments. Differs: a
          schedule never sees steps outside its own part, and numbers are
          allowed.
    """

    def __init__(
        self,
        schedules: Iterable[LearningRateSchedule | float],
        boundaries: Iterable[int],
    ):
        self.schedules = tuple(
            _check_part(f"schedules[{i}]", part)
            for i, part in enumerate(_check_sequence("schedules", schedules))
        )
        self.boundaries = tuple(
            _check_step(f"boundaries[{i}]", boundary, minimum=1)
            for i, boundary in enumerate(
                _check_sequence("boundaries", boundaries)
            )
        )
        if not self.schedules:
            raise ValueError(
                "`schedules` must hold at least one schedule or number. "
                "Received: schedules=[]."
            )
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                "`boundaries` must have one item fewer than `schedules`. "
                f"Received: boundaries={list(self.boundaries)} with "
                f"{len(self.schedules)} schedules."
            )
        if any(a >= b for a, b in itertools.pairwise(self.boundaries)):
            raise ValueError(
                "`boundaries` must be strictly increasing. "
                f"Received: boundaries={list(self.boundaries)}."
            )

    def __call__(self, step: Tensor) -> Tensor:
        """The value at `step`, a scalar integer. Returns a float32 scalar."""
        step = _to_counter(step)
        starts = (0, *self.boundaries)
        ends = (*self.boundaries, None)
        value: Tensor = None
        for part, start, end in zip(self.schedules, starts, ends, strict=True):
            part_value: Tensor = part
            if isinstance(part, LearningRateSchedule):
                # Held within the part: outside it a schedule may be NaN, or
                # not defined at all.
                local = ops.maximum(step, start)
                if end is not None:
                    local = ops.minimum(local, end - 1)
                schedule: Any = part
                part_value = schedule(ops.subtract(local, start))
            part_value = ops.convert_to_tensor(part_value, dtype="float32")
            if value is None:
                value = part_value
            else:
                value = ops.where(
                    ops.greater_equal(step, start), part_value, value
                )
        return value

    def get_config(self) -> dict[str, Any]:
        """The arguments, nested schedules serialized; ready for JSON."""
        return {
            "schedules": [
                keras.saving.serialize_keras_object(part)
                if isinstance(part, LearningRateSchedule)
                else part
                for part in self.schedules
            ],
            "boundaries": list(self.boundaries),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "JoinedSchedule":
        """Makes the schedule that `get_config` described."""
        # A copy: Keras's deserialization may change the dictionary it gets.
        config = copy.deepcopy(dict(config))
        config["schedules"] = [
            keras.saving.deserialize_keras_object(part)
            if isinstance(part, Mapping)
            else part
            for part in config["schedules"]
        ]
        return cls(**config)


@keras.saving.register_keras_serializable("keras_adamax")
class LinearRamp(LearningRateSchedule):
    """A straight line from `start` to `end`.

    Use it to warm up a learning rate, or to widen or tighten the bound of the
    clipping (`clip_multiplier`) in the course of a run.

        t = clip(step - delay_steps, 0, num_steps) / num_steps
        value(step) = start + (end - start) * t

    Both ends are exact (as float32), and values near an end are as accurate
    as that end, however much smaller it is than the other. Steps are
    subtracted as integers, so that nothing is lost in long runs.

    Args:
        start: Value up to step `delay_steps`. Number.
        end: Value from step `delay_steps + num_steps` on. Number.
        num_steps: Length of the ramp. Integer >= 1.
        delay_steps: Steps before the ramp begins. Integer >= 0.
            Defaults to `0`.

    Raises:
        TypeError: If `start` or `end` is no number, or `num_steps` or
            `delay_steps` no integer.
        ValueError: If `start` or `end` is not finite, `num_steps` is
            smaller than 1 or `delay_steps` smaller than 0.

    Example:
        >>> from keras_adamax import LinearRamp
        >>> ramp = LinearRamp(1.0, 3.0, num_steps=4, delay_steps=2)
        >>> [float(ramp(step)) for step in range(8)]
        [1.0, 1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    """

    def __init__(
        self,
        start: float,
        end: float,
        num_steps: int,
        delay_steps: int = 0,
    ):
        self.start = _check_value("start", start)
        self.end = _check_value("end", end)
        self.num_steps = _check_step("num_steps", num_steps, minimum=1)
        self.delay_steps = _check_step("delay_steps", delay_steps, minimum=0)

    def __call__(self, step: Tensor) -> Tensor:
        """The value at `step`, a scalar integer. Returns a float32 scalar."""
        step = _to_counter(step)
        passed = ops.subtract(
            ops.maximum(step, self.delay_steps), self.delay_steps
        )
        passed = ops.minimum(passed, self.num_steps)
        left = ops.subtract(self.num_steps, passed)
        # Measured from the nearer end, which makes both of them exact.
        return ops.where(
            ops.less(passed, left),
            self._toward(self.start, self.end, passed),
            self._toward(self.end, self.start, left),
        )

    def _toward(self, here: float, there: float, steps: Tensor) -> Tensor:
        part = ops.divide(ops.cast(steps, "float32"), float(self.num_steps))
        return ops.add(
            ops.convert_to_tensor(here, dtype="float32"),
            ops.multiply(
                ops.convert_to_tensor(there - here, dtype="float32"), part
            ),
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments, ready for JSON."""
        return {
            "start": self.start,
            "end": self.end,
            "num_steps": self.num_steps,
            "delay_steps": self.delay_steps,
        }


def _to_counter(step: Tensor) -> Tensor:
    """`step` as a tensor whose dtype holds every boundary."""
    step = ops.convert_to_tensor(step)
    dtype = keras.backend.standardize_dtype(step.dtype)
    if dtype in ("bool", "int8", "uint8", "int16", "uint16"):
        return ops.cast(step, "int32")
    if dtype in ("float16", "bfloat16"):
        return ops.cast(step, "float32")
    return step


def _check_value(name: str, value: Any) -> int | float:
    return check_number(
        name, value, minimum=-_LARGEST_VALUE, maximum=_LARGEST_VALUE
    )


def _check_step(name: str, value: Any, *, minimum: int) -> int:
    value = check_integer(name, value, minimum=minimum)
    if value > _LARGEST_STEP:
        raise ValueError(
            f"`{name}` must be an integer <= {_LARGEST_STEP}. "
            f"Received: {name}={value!r}."
        )
    return value


def _check_part(name: str, part: Any) -> LearningRateSchedule | int | float:
    if isinstance(part, TargetClipRate):
        raise TypeError(
            f"`{name}` must not be a `TargetClipRate`: its value depends on "
            "what was clipped, and not on the step. "
            f"Received: {name}={part!r}. Give it to `AdamaxClipped` as "
            "`clip_multiplier` itself."
        )
    if isinstance(part, LearningRateSchedule):
        return part
    if is_number(part):
        return _check_value(name, part)
    raise TypeError(
        f"`{name}` must be a number or an instance of "
        "`keras.optimizers.schedules.LearningRateSchedule`. "
        f"Received: {name}={part!r} (of type {type(part).__name__})."
    )


def _check_sequence(name: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(
        value, Iterable
    ):
        raise TypeError(
            f"`{name}` must be a list. "
            f"Received: {name}={value!r} (of type {type(value).__name__})."
        )
    return list(value)
