"""TensorFlow: a graph, one group of variables after another."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_adamax.backends.variable_groups import groups

Tensor = Any
# Elements.
_MEASURED_TOGETHER = 2**18


def measure(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    previous: Sequence[Tensor],
    current: Sequence[Tensor],
    step: Tensor,
) -> Tensor:
    """`pack([function(p, c), ...], step)`, over pairs of values, as a graph."""
    return _measuring_graph(function, pack)(list(previous), list(current), step)


@functools.cache
def _measuring_graph(
    function: Callable[..., Tensor], pack: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    @functools.partial(tf.function, autograph=False)
    def measure_one(previous: Tensor, current: Tensor) -> Tensor:
        # Traced once for each shape, and not for each variable.
        return function(previous, current, in_blocks=True)

    @functools.partial(tf.function, autograph=False)
    def graph(
        previous: list[Tensor], current: list[Tensor], step: Tensor
    ) -> Tensor:
        # A graph computes whatever it can at once, and would hold the
        # differences of all variables: so group after group.
        parts: list[Tensor] = []
        sizes = [value.shape.num_elements() for value in current]
        for start, end in groups(sizes, _MEASURED_TOGETHER):
            with tf.control_dependencies(parts[-1:]):
                parts += [
                    measure_one(previous[i], current[i])
                    for i in range(start, end)
                ]
        return pack(parts, step)

    return graph


def measure_and_keep(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    kept: list[Tensor],
    current: Sequence[Tensor],
    step: Tensor,
) -> Tensor:
    """`measure` of what is kept, which becomes a copy of `current`.

    It shares the variables' memory until a step writes to them: TensorFlow
    copies then.
    """
    packed = measure(function, pack, kept, current, step)
    kept[:] = [tf.identity(value) for value in current]
    return packed


def after(event: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The values, made known only when `event` has been computed."""
    del event  # what is asked for twice is computed twice
    return values


def count_integers(values: Tensor, length: int) -> Tensor:
    """How often each of `0, ..., length - 1` occurs."""
    return tf.math.bincount(values, minlength=length, maxlength=length)


def place_like(value: Tensor, other: Tensor) -> Tensor:
    """`value`, for TensorFlow places it."""
    del other
    return value


def process_index() -> int:
    """Always 0: Keras does not train in several processes on TensorFlow."""
    return 0


def gather(number: int) -> list[int]:
    """The numbers of all processes, once all have come here."""
    return [number]
