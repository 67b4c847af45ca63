"""The schedules that a search can choose, and what it searches of each."""

import dataclasses
import functools
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
from keras_adamax_tuning.space.arguments import Argument
from keras_adamax_tuning.space.ranges import ABOVE_ONE, Range

CONSTANT = "constant"

# (1 - t / n)^p is an exponential in the limit of a large p. At this one it is
# as near as float32 lets it be: 0.05 % for an approach by a factor of 20.
_POWER = 4096


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of schedule.

    Attributes:
        make: From the value of the hyperparameter and the parts: the schedule.
        parts: What can be searched of it.
        uses_value: Whether the value of the hyperparameter has an effect.
    """

    make: Callable[..., float | LearningRateSchedule]
    parts: tuple[Argument, ...] = ()
    uses_value: bool = True


def _steps(name: str, standard: Any, minimum: int = 1, **more: Any) -> Argument:
    limits = {"minimum": minimum}
    more = {"scale": "log", **more}
    return Argument(
        name, kind="integer", limits=limits, standard=standard, **more
    )


def _fraction(name: str, low: float, high: float, scale: str) -> Argument:
    limits = {"minimum": 0, "maximum": 1}
    return Argument(name, limits=limits, scale=scale, standard=Range(low, high))


def _whole_run(num_steps: int) -> int:
    return num_steps


def _shares_of_run(first: int, last: int, num_steps: int) -> Range:
    """From `1 / first` to `1 / last` of a run."""
    low = max(1, num_steps // first)
    return Range(low, max(low + 1, num_steps // last))


_FROM_1_TO_25_PERCENT = functools.partial(_shares_of_run, 100, 4)
_DECAY_STEPS = _steps("decay_steps", _whole_run)
_NO_WARMUP = _steps("warmup_steps", 0, minimum=0, scale="linear")


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
    decay = ExponentialDecay(value, decay_steps, decay_rate)
    return _after_warmup(value, warmup_steps, decay)


def _polynomial(
    value: float,
    decay_steps: int,
    end_factor: float,
    power: float,
    warmup_steps: int,
) -> LearningRateSchedule:
    end = end_factor * value
    decay = PolynomialDecay(value, decay_steps, end, power)
    return _after_warmup(value, warmup_steps, decay)


def _after_warmup(
    value: float, warmup_steps: int, decay: LearningRateSchedule
) -> LearningRateSchedule:
    if not warmup_steps:
        return decay
    return JoinedSchedule(
        [LinearRamp(0.0, value, warmup_steps), decay], [warmup_steps]
    )


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
    approach = PolynomialDecay(1 - first, decay_steps, 1.0, _POWER)
    return JoinedSchedule([approach, value], [math.ceil(length)])


_CONSTANT_KIND = Kind(lambda value: value)
# Hyperparameter to the kinds of its schedule.
KINDS: Mapping[str, Mapping[str, Kind]] = {
    "learning_rate": {
        CONSTANT: _CONSTANT_KIND,
        "warmup": Kind(
            lambda value, warmup_steps: LinearRamp(0.0, value, warmup_steps),
            (_steps("warmup_steps", _FROM_1_TO_25_PERCENT),),
        ),
        "cosine": Kind(
            _cosine,
            (_DECAY_STEPS, _fraction("alpha", 0.0, 0.1, "linear"), _NO_WARMUP),
        ),
        "exponential": Kind(
            _exponential,
            (
                _DECAY_STEPS,
                _fraction("decay_rate", 0.001, 0.5, "log"),
                _NO_WARMUP,
            ),
        ),
        "polynomial": Kind(
            _polynomial,
            (
                _DECAY_STEPS,
                _fraction("end_factor", 0.0, 0.1, "linear"),
                Argument(
                    "power",
                    default=1.0,
                    limits={"minimum": 0},
                    standard=Range(0.5, 3.0),
                ),
                _NO_WARMUP,
            ),
        ),
    },
    "beta_2": {
        CONSTANT: _CONSTANT_KIND,
        "exponential": Kind(
            _exponential_approach,
            (
                Argument(
                    "start_factor",
                    default=20.0,
                    limits={"minimum": 1},
                    scale="log",
                    standard=Range(2.0, 100.0),
                ),
                _steps("half_life", _FROM_1_TO_25_PERCENT, default=2000),
            ),
        ),
    },
    "clip_multiplier": {
        CONSTANT: _CONSTANT_KIND,
        "linear": Kind(
            lambda value, start, num_steps: LinearRamp(start, value, num_steps),
            (
                Argument(
                    "start",
                    limits={"minimum": 1},
                    scale="log",
                    distance=ABOVE_ONE,
                    standard=Range(1.01, 10.0),
                ),
                _steps("num_steps", functools.partial(_shares_of_run, 20, 1)),
            ),
        ),
        "target_rate": Kind(
            lambda value, target: TargetClipRate(target),  # finds the value
            (
                Argument(
                    "target",
                    default=0.01,
                    limits={"exclusive_minimum": 0, "exclusive_maximum": 1},
                    scale="log",
                    standard=Range(0.001, 0.1),
                ),
            ),
            uses_value=False,
        ),
    },
}
