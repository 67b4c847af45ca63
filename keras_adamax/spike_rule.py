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

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_adamax import exact_totals, update_rule

Tensor = Any
# Makes a vector of numbers of a dtype, where another tensor is.
Constant = Callable[[tuple[float, ...], str, Tensor], Tensor]

# Of a model with more elements than `ALL`, a sample is looked at: of each
# variable every eighth run, but `FEWEST` elements at least where it has them,
# and of a very large one `SAMPLE`. So a step's sample has `SAMPLE` elements at
# least. The standard error of its rate is below 0.15 % where elements exceed
# their bounds by themselves, and below 0.6 % where all of a run do or none.
ALL = 2**20
SAMPLE = 2**17
FEWEST = 2**13
# Elements that are looked at side by side: a cache line of float32. Single
# elements at a stride would cost as much, a cache line each.
RUN = 16
# The variable of the gate holds these, in this order.
STATE = ("is_armed", "skips_in_row", "spike_steps")
# Spikes that are kept, and variables that are named of each.
KEPT = 16
WORST = 5
# Of a kept spike: three integers of two digits each, its rate, the indices of
# the variables and their rates.
_INTEGERS = 3 * exact_totals.DIGITS
ROW_LENGTH = _INTEGERS + 1 + 2 * WORST


@dataclasses.dataclass(frozen=True)
class Spike:
    """A call of `apply` that the spike gate left out.

    Attributes:
        number: Which of the optimizer's spikes it is, from 1 on: the value of
            `spike_steps()` after it.
        call: Which call of `apply` it is, from 1 on, those that were skipped
            or left out included. Of a model that is trained with `fit` it is
            the number of the batch, through all epochs.
        step: Updates applied before it.
        rate: The fraction of all elements that exceeded their bound.
        variables: Path to that fraction for the variables of which it was
            largest: five at most, in descending order.
    """

    number: int
    call: int
    step: int
    rate: float
    variables: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class SpikeStatistics:
    """What the spike gate has done until a moment.

    Attributes:
        spike_steps: Spikes so far.
        calls: Calls of `apply` so far.
        step: Updates applied so far.
        spikes: The last spikes, in order: 16 at most.
    """

    spike_steps: int
    calls: int
    step: int
    spikes: tuple[Spike, ...]


class Counts(NamedTuple):
    """What was found in some of the variables.

    Attributes:
        above: How many elements exceed their bound, a float32 vector with an
            element for each variable. Of a sample, this is the estimate for
            the whole variable.
        given: How many elements the clipping is given: as many numbers, or
            such a vector.
    """

    above: Tensor
    given: Tensor | tuple[float, ...]


def stride_of(shape: Sequence[int], total: int | None = None) -> int:
    """Every which run of a variable is looked at, in row-major order.

    A run is 16 elements that stand side by side: so many come from memory at
    a time. The stride has no divisor in common with any dimension. The sample
    then visits all positions of every axis alike: a stride of 256 runs in a
    matrix of 4096 columns would see 16 columns alone.

    Args:
        shape: Of the variable.
        total: Elements of all variables. `None`: it is alone.

    Returns:
        A number of runs; 1 for all of the variable, which need not be a whole
        number of runs then.
    """
    size = math.prod(shape)
    if (size if total is None else total) <= ALL:
        return 1
    stride = max(min(ALL // SAMPLE, size // FEWEST), size // SAMPLE, 1)
    while math.gcd(stride, size) > 1:
        stride -= 1
    return stride


def sample_of(x: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """The elements of each `stride`-th run of `x`; all of `x` for 1.

    Args:
        x: Tensor of `shape`. TensorFlow may not know the shape of a gradient.
        shape: That of the variable.
        stride: From `stride_of`.
    """
    if stride == 1:
        return x
    size = math.prod(shape)
    whole = ops.reshape(x, (-1,))
    if size % RUN:
        whole = whole[: size - size % RUN]
    return ops.reshape(ops.reshape(whole, (-1, RUN))[::stride], (-1,))


def samples(
    tensors: Sequence[Any], norms: Sequence[Any], strides: Sequence[int]
) -> list[Tensor]:
    """`sample_of` each tensor; each norm has the shape of its variable."""
    return [
        sample_of(tensor, norm.shape, stride)
        for tensor, norm, stride in zip(tensors, norms, strides, strict=True)
    ]


def sample_size(shape: Sequence[int], stride: int) -> int:
    """How many elements `sample_of` a tensor of `shape` has."""
    size = math.prod(shape)
    return size if stride == 1 else -(-(size // RUN) // stride) * RUN


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
    constant: Constant,
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
    sizes = tuple(float(math.prod(shape)) for shape in shapes)
    above = ops.cast(found, "float32")
    if any(stride > 1 for stride in strides):
        weights = [
            size / sample_size(shape, stride) if stride > 1 else 1.0
            for size, shape, stride in zip(sizes, shapes, strides, strict=True)
        ]
        above = above * constant(tuple(weights), "float32", found)
    if are_excluded is None:
        return Counts(above, sizes)
    is_given = ops.cast(ops.logical_not(are_excluded), "float32")
    return Counts(
        above * is_given, constant(sizes, "float32", found) * is_given
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
        ops.reshape(ops.sum(in_row * is_given), (1,)),
        ops.reshape(ops.sum(is_given), (1,)) * math.prod(row_shape),
    )


def rate_of(parts: Sequence[Counts]) -> Tensor:
    """The rate of a step, float32; 0 where the clipping is given nothing.

    Args:
        parts: What was found, of all variables with a gradient.
    """
    above: Tensor = ops.zeros((), "float32")
    given: Tensor | float = 0.0
    for part in parts:
        above = above + ops.sum(part.above)
        given = given + (
            sum(part.given)
            if isinstance(part.given, tuple)
            else ops.sum(part.given)
        )
    if isinstance(given, float):
        return above / max(given, 1.0)
    # Operators do not copy their numbers to a GPU, which would wait for it.
    return above / (given + ops.cast(given == 0.0, "float32"))


def rates_of(parts: Sequence[Counts], constant: Constant) -> Tensor:
    """The rate of each variable, float32; 0 where it is given nothing.

    Args:
        parts: What was found, of one variable at least.
        constant: As for `counts_of`.
    """
    rates = []
    for above, given in parts:
        if isinstance(given, tuple):
            sizes = tuple(max(number, 1.0) for number in given)
            rates.append(above / constant(sizes, "float32", above))
        else:
            rates.append(above / (given + ops.cast(given == 0.0, "float32")))
    return rates[0] if len(rates) == 1 else ops.concatenate(rates)


def row_of(
    integers: Sequence[Tensor],
    rate: Tensor,
    rates: Tensor,
    indices: Sequence[int],
    constant: Constant,
) -> Tensor:
    """A spike, as the optimizer keeps it.

    Args:
        integers: Its number, its call and its step, scalars.
        rate: Its rate.
        rates: Those of the variables, from `rates_of`.
        indices: Which variables of the optimizer they are.
        constant: As for `counts_of`.

    Returns:
        float32, shape `(ROW_LENGTH,)`.
    """
    worst = ops.argsort(-rates)[:WORST]
    of_worst = [
        ops.take(constant(tuple(indices), "float32", rates), worst),
        ops.take(rates, worst),
    ]
    missing = WORST - len(indices)
    if missing > 0:
        of_worst = [ops.pad(values, [[0, missing]]) for values in of_worst]
    return ops.concatenate(
        [_digits(integers), ops.reshape(rate, (1,)), *of_worst]
    )


def _digits(integers: Sequence[Tensor]) -> Tensor:
    return ops.reshape(exact_totals.digits(ops.stack(list(integers))), (-1,))


def keep(
    kept: Tensor, row: Tensor, number: Tensor, constant: Constant
) -> Tensor:
    """The last spikes, after one more.

    Args:
        kept: Those before, shape `(KEPT, ROW_LENGTH)`.
        row: The new one, from `row_of`.
        number: Its number, an integer scalar.
        constant: As for `counts_of`.
    """
    places = constant(tuple(range(KEPT)), "int32", kept)
    is_here = places == (number - 1) % KEPT
    return ops.where(ops.expand_dims(is_here, 1), row, kept)


def present_row(integers: Sequence[Tensor]) -> Tensor:
    """The present state, in the form of a kept spike.

    Args:
        integers: Spikes and calls so far, and updates applied.
    """
    return ops.pad(_digits(integers), [[0, ROW_LENGTH - _INTEGERS]])


def statistics_of(rows: np.ndarray, paths: Sequence[str]) -> SpikeStatistics:
    """Reads what was brought to the host.

    Args:
        rows: The kept spikes, and below them the `present_row`.
        paths: Of the optimizer's variables.
    """
    total, calls, updates = _integers(rows[-1])
    spikes = []
    for row in rows[:-1]:
        number, call, step = _integers(row)
        if number == 0:
            continue
        rate, *found = row[_INTEGERS:].tolist()
        worst = zip(found[:WORST], found[WORST:], strict=True)
        variables = {
            paths[int(i)]: own
            for i, own in worst
            # None exceeded its bound, or there are fewer variables; or paths
            # are not known before the optimizer is built.
            if own > 0 and int(i) < len(paths)
        }
        spikes.append(Spike(number, call, step, rate, variables))
    spikes.sort(key=lambda spike: spike.number)
    return SpikeStatistics(total, calls, updates, tuple(spikes))


def _integers(row: np.ndarray) -> list[int]:
    pairs = row[:_INTEGERS].reshape(-1, exact_totals.DIGITS)
    base = exact_totals.LIMB_BASE
    return [int(low) + int(high) * base for low, high in pairs]


def renumbered(kept: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Kept spikes for variables that are in another order.

    Args:
        kept: Shape `(KEPT, ROW_LENGTH)`.
        order: For each variable, its index in `kept`.
    """
    start = _INTEGERS + 1
    places = np.argsort(order)
    kept = kept.copy()
    kept[:, start : start + WORST] = places[
        kept[:, start : start + WORST].astype(int)
    ]
    return kept


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
