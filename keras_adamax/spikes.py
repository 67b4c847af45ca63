"""The spike gate: which steps `AdamaxClipped` leaves out.

The specification, as pure functions in `keras.ops`. The rate of a step is the
fraction of the elements given to the clipping that exceed their bound. The
gate is armed by a step whose rate is at most the threshold. An armed gate
leaves out a step above it, but only so many in a row: the next one is applied,
and disarms the gate. So the warm-up, in which nearly everything exceeds its
bound, passes; and the bound follows a lasting change of the gradients' scale.

What cannot be compared is not above its bound: a NaN counts as given only. An
infinite element exceeds every bound.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import ops

from keras_adamax import update_rule

Tensor = Any

# Elements of a larger variable that are looked at, at least. The standard
# error of a fraction is then below 0.2 %.
SAMPLE = 2**16
# The variable of the gate holds these, in this order.
STATE = ("is_armed", "skips_in_row", "spike_steps")


class Counts(NamedTuple):
    """What was found in some of the variables.

    Attributes:
        above: How many elements exceed their bound, a float32 scalar. Of a
            sample, this is the estimate for the whole variable.
        given: How many elements the clipping is given: a number, or a float32
            scalar.
    """

    above: Tensor
    given: Tensor | float


def stride_of(shape: Sequence[int]) -> int:
    """Every which element of a variable is looked at, in row-major order.

    The stride has no divisor in common with any dimension. The sample then
    visits all positions of every axis alike: a stride of 4096 in a matrix of
    4096 columns would see one column alone.
    """
    size = math.prod(shape)
    stride = max(size // SAMPLE, 1)
    while math.gcd(stride, size) > 1:
        stride -= 1
    return stride


def sample_of(x: Tensor, stride: int) -> Tensor:
    """Every `stride`-th element of `x`, as a vector; all of `x` for 1."""
    return x if stride == 1 else ops.reshape(x, (-1,))[::stride]


def sample_size(shape: Sequence[int], stride: int) -> int:
    """How many elements `sample_of` a tensor of `shape` has."""
    return -(-math.prod(shape) // stride)


def are_above(
    g: Tensor, u: Tensor, clip_multiplier: Tensor, clip_epsilon: Tensor
) -> Tensor:
    """Which elements exceed their bound, as booleans (never a NaN).

    Args:
        g: Gradient, of any float dtype.
        u: Infinity norm before this step.
        clip_multiplier: Scalar, >= 1.
        clip_epsilon: Scalar, >= 0.
    """
    bound = update_rule.clip_bound(u, clip_multiplier, clip_epsilon)
    return update_rule.is_clipped(ops.cast(g, bound.dtype), bound)


def counts_of(
    found: Tensor,
    shapes: Sequence[Sequence[int]],
    strides: Sequence[int],
    constant: Callable[[tuple[float, ...], str, Tensor], Tensor],
    are_excluded: Tensor | None = None,
) -> Counts:
    """The counts of variables with dense gradients.

    Args:
        found: Integers: how many elements of each sample exceed their bound.
        shapes: Of the variables.
        strides: Of the samples.
        constant: Makes a vector of numbers, where another tensor is.
        are_excluded: Booleans: which variables are not clipped. `None`: all
            are.
    """
    sizes = [float(math.prod(shape)) for shape in shapes]
    above = ops.cast(found, "float32")
    if any(stride > 1 for stride in strides):
        weights = [
            size / sample_size(shape, stride) if stride > 1 else 1.0
            for size, shape, stride in zip(sizes, shapes, strides, strict=True)
        ]
        above = above * constant(tuple(weights), "float32", found)
    if are_excluded is None:
        return Counts(ops.sum(above), sum(sizes))
    is_given = ops.cast(ops.logical_not(are_excluded), "float32")
    return Counts(
        ops.sum(above * is_given),
        ops.sum(constant(tuple(sizes), "float32", found) * is_given),
    )


def counts_of_rows(
    above: Tensor,
    row_shape: Sequence[int],
    is_counted: Tensor,
    is_excluded: Tensor | None,
) -> Counts:
    """The counts of a variable with a sparse gradient.

    Args:
        above: Booleans, shape `(n, *row_shape)`: which elements exceed their
            bound.
        row_shape: Shape of a row.
        is_counted: Booleans, shape `(n,)`: one row for each index.
        is_excluded: Boolean scalar: whether the variable is not clipped.
            `None`: it is.
    """
    is_given = ops.cast(is_counted, "float32")
    if is_excluded is not None:
        is_given = is_given * ops.cast(ops.logical_not(is_excluded), "float32")
    in_row = ops.cast(above, "float32")
    for _ in row_shape:
        in_row = ops.sum(in_row, axis=-1)
    return Counts(
        ops.sum(in_row * is_given), ops.sum(is_given) * math.prod(row_shape)
    )


def rate_of(parts: Sequence[Counts]) -> Tensor:
    """The rate of a step, float32; 0 where the clipping is given nothing.

    Args:
        parts: What was found, of all variables with a gradient.
    """
    above: Tensor = ops.zeros((), "float32")
    given: Tensor | float = 0.0
    for part in parts:
        above = above + part.above
        given = given + part.given
    if isinstance(given, float):
        return above / max(given, 1.0)
    # Operators do not copy their numbers to a GPU, which would wait for it.
    return above / (given + ops.cast(given == 0.0, "float32"))


def decide(
    state: Tensor,
    rate: Tensor,
    threshold: Tensor,
    max_skipped: Tensor,
    is_update: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Whether a step is left out, and the state of the gate after it.

    Args:
        state: Integers in the order of `STATE`.
        rate: From `rate_of`.
        threshold: Scalar in (0, 1).
        max_skipped: Scalar >= 1: how many steps in a row are left out.
        is_update: Boolean scalar: whether this step changes the weights.
            `None`: it does. A micro-batch of gradient accumulation that does
            not never arms the gate: the mean is not complete, and its rate
            lower than that of the update.

    Returns:
        A boolean scalar, true for a step to be left out, and the next state.
    """
    is_armed, in_row, total = state[0], state[1], state[2]
    is_spike = rate > threshold
    is_left_out = ops.logical_and(
        ops.logical_and(is_spike, is_armed > 0),
        ops.cast(in_row, max_skipped.dtype) < max_skipped,
    )
    left_out = ops.cast(is_left_out, "int32")
    calm = ops.cast(ops.logical_not(is_spike), "int32")
    armed = calm
    if is_update is not None:
        armed = calm * ops.maximum(is_armed, ops.cast(is_update, "int32"))
    return is_left_out, ops.stack(
        [
            left_out * is_armed + (1 - left_out) * armed,
            left_out * (in_row + 1),
            total + left_out,
        ]
    )


def tolerance(clip_multiplier: float, beta_2: float) -> float:
    """The share of spiky steps that the rule absorbs without the gate.

    A spike lets `u` grow by the multiplier, any other step lets it fall by
    `beta_2`. They balance at the share `p` with

        p * ln(clip_multiplier) = (1 - p) * -ln(beta_2)

    Args:
        clip_multiplier: Number >= 1.
        beta_2: Number in [0, 1).

    Returns:
        A number in (0, 1]; 1 where spikes let nothing grow, or nothing stays.
    """
    growth = math.log(clip_multiplier)
    if growth == 0 or beta_2 == 0:
        return 1.0
    decay = -math.log(beta_2)
    return decay / (growth + decay)
