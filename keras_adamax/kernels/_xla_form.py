"""The update rule in the form that XLA compiles best: TensorFlow and JAX.

What it computes is `update_rule.update`; what differs is the order. With

    u' = max(beta_2 * u, min(|g|, bound)),   g' = clip(g, -u', u')

the old `u` is not needed once the new one is written, so XLA updates the state
in place, where the specification's order makes it copy `u`. The form is exact,
not approximate: `clip_multiplier >= 1 > beta_2`, so `u'` is the bound itself
wherever `|g|` exceeds it, and an element was clipped if and only if
`|g| > u'`.

On a CPU, XLA writes the input of a reduction to memory, in full size, and
reduces it in one thread. So slabs are added up elementwise first, which stays
in one parallel loop, until little is left of each variable; what is left of
all of them is reduced together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_adamax import statistics
from keras_adamax.update_rule import FLOAT32_MAX, Hyperparameters

Tensor = Any

# What is left of a variable to reduce: about so many elements.
_FEW = 2**8
# Slabs of the first level: more of them are more streams than a CPU foresees,
# fewer leave more memory to write.
_FIRST = 4
# Elements whose gradient, weight and state the caches of a core hold.
_CACHED = 2**16


class Bounds(NamedTuple):
    """What bounds the gradients of each variable: vectors, for all at once.

    Attributes:
        growth: `clip_epsilon`; infinite for an excluded variable.
        limit: How large a bound may be; infinite for an excluded variable.
    """

    growth: Tensor
    limit: Tensor


def bounds(
    hyperparameters: Hyperparameters, exclusions: Tensor, dtype: str
) -> Bounds:
    """`Bounds` from the exclusions, > 0 where a variable is not clipped."""
    is_excluded = exclusions > 0.0
    infinity = ops.cast(math.inf, dtype)
    return Bounds(
        ops.where(is_excluded, infinity, hyperparameters.clip_epsilon),
        ops.where(is_excluded, infinity, ops.cast(FLOAT32_MAX, dtype)),
    )


def update(
    g: Tensor,
    w: Tensor,
    m: Tensor,
    u: Tensor,
    hyperparameters: Hyperparameters,
    bounds: Bounds | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new `w`, `m` and `u`; arguments as of `update_rule.update`.

    `bounds` holds scalars here; it is `None` where nothing is clipped.
    """
    weight_dtype = keras.backend.standardize_dtype(w.dtype)
    dtype = keras.backend.standardize_dtype(m.dtype)
    h = hyperparameters
    g = ops.cast(g, dtype)
    magnitude = ops.abs(g)
    if bounds is not None:
        bound = h.clip_multiplier * u + bounds.growth
        # Comparisons cost less than XLA's minimum, which watches for NaN. The
        # order of the arguments passes a NaN of `g` on, as that does.
        bound = ops.where(bound < bounds.limit, bound, bounds.limit)
        magnitude = ops.where(bound < magnitude, bound, magnitude)
    u = ops.maximum(h.beta_2 * u, magnitude)
    if bounds is not None:
        g = ops.where(u < g, u, g)
        g = ops.where(-u > g, -u, g)
    m = h.beta_1 * m + (1.0 - h.beta_1) * g
    denominator = u + h.epsilon
    # Where it is 0 nothing moves, and a NaN of `m` goes on.
    denominator = ops.where(
        denominator == 0.0, ops.cast(math.inf, dtype), denominator
    )
    if h.bias_correction is not None:
        denominator = h.bias_correction * denominator
    change = h.learning_rate * m / denominator
    return ops.cast(ops.cast(w, dtype) - change, weight_dtype), m, u


def clipped_parts(g: Tensor, u: Tensor, in_slabs: bool) -> list[Tensor]:
    """`parts` of the elements of `g` that were clipped.

    Args:
        g: Gradient, before clipping.
        u: Infinity norm after the step.
        in_slabs: As for `parts`.
    """
    g = ops.cast(g, u.dtype)
    return parts(lambda g, u: ops.abs(g) > u, [g, u], in_slabs)


def parts(
    predicate: Callable[..., Tensor], tensors: Sequence[Tensor], in_slabs: bool
) -> list[Tensor]:
    """int32 vectors that add up to the number of elements with `predicate`.

    Args:
        predicate: Elementwise function of `tensors` that gives booleans.
        tensors: Tensors of one shape, which is known.
        in_slabs: Whether slabs are added up (CPU), or all is reduced at once.
    """
    if not in_slabs:
        total = ops.sum(ops.cast(predicate(*tensors), "int32"))
        return [ops.reshape(total, (1,))]
    tensors = [ops.reshape(tensor, (-1,)) for tensor in tensors]
    if tensors[0].shape[0] <= _FEW:
        return [ops.cast(predicate(*tensors), "int32")]
    slabs, rests = zip(*(_slabs(x, _FIRST) for x in tensors), strict=True)
    total = _sum(
        [ops.cast(predicate(*x), "int8") for x in zip(*slabs, strict=True)]
    )
    left = [predicate(*rests)] if rests[0].shape[0] else []
    # An int8 holds what two levels give.
    dtype = "int8"
    while total.shape[0] > _FEW:
        slabs, rest = _slabs(total, 16)
        total = _sum([ops.cast(slab, dtype) for slab in slabs])
        left += [rest] if rest.shape[0] else []
        dtype = "int32"
    return [ops.cast(x, "int32") for x in (total, *left)]


def totals(parts_of_all: Sequence[Sequence[Tensor]]) -> Tensor:
    """The sum of each entry's `parts`, as an int32 vector."""
    lengths = [sum(x.shape[0] for x in parts) for parts in parts_of_all]
    width = max(*lengths, 1)
    row_after_row: list[Tensor] = []
    for parts_of_one, length in zip(parts_of_all, lengths, strict=True):
        row_after_row += parts_of_one
        if length < width:
            row_after_row.append(ops.zeros((width - length,), "int32"))
    rows = ops.reshape(ops.concatenate(row_after_row), (-1, width))
    return ops.sum(rows, axis=1)


def are_finite(tensors: Sequence[Tensor], in_slabs: bool) -> Tensor:
    """Whether all elements of all tensors are finite, as a boolean scalar."""

    def is_not_finite(x: Tensor) -> Tensor:
        return ops.logical_not(ops.isfinite(x))

    numbers = totals([parts(is_not_finite, [x], in_slabs) for x in tensors])
    return ops.all(ops.equal(numbers, 0))


def _slabs(x: Tensor, number: int) -> tuple[list[Tensor], Tensor]:
    """`number` equal parts of a vector, and what is left over."""
    length = x.shape[0] // number
    slabs = [x[i * length : (i + 1) * length] for i in range(number)]
    return slabs, x[number * length :]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def groups(sizes: Sequence[int], on_cpu: bool) -> list[tuple[int, int]]:
    """Ranges of neighbouring variables that a CPU's cache holds together.

    XLA takes the first kernel of all variables, then the second of all, and
    each finds that the caches have forgotten what it needs. So a group waits
    for the one before.
    """
    ends = [0]
    total = 0
    for i, size in enumerate(sizes):
        total += size
        if on_cpu and total >= _CACHED or i == len(sizes) - 1:
            ends.append(i + 1)
            total = 0
    return list(zip(ends[:-1], ends[1:], strict=True))


def after(
    values: tuple[Tensor, Tensor, Tensor], hyperparameters: Hyperparameters
) -> Hyperparameters:
    """The scalars, but not before a variable's new values are known.

    XLA's barriers do not outlive its passes; what only looks like a condition
    does. A norm is never negative.
    """
    weight, _, norm = (ops.reshape(x, (-1,))[:1] for x in values)
    if weight.shape[0] == 0:
        return hyperparameters
    never = ops.logical_and(norm < 0.0, weight > 0.0)[0]
    learning_rate, beta_1, beta_2, *others = hyperparameters
    beta_2 = ops.where(never, 0.0 * beta_2, beta_2)
    return Hyperparameters(learning_rate, beta_1, beta_2, *others)


def next_counts(
    rows: Tensor,
    clipped: Tensor,
    shapes: Sequence[Sequence[int]],
    indices: Sequence[int],
    exclusions: Tensor,
) -> Tensor:
    """All rows of the statistics after a step.

    Args:
        rows: float32 tensor of shape `(n, statistics.ROW_LENGTH)`.
        clipped: How many elements of each updated variable were clipped.
        shapes: The shape of each updated variable.
        indices: Which rows are theirs.
        exclusions: Shape `(n,)`, > 0 where a variable is not clipped.
    """
    sizes = [math.prod(shape) for shape in shapes]
    counted = ops.where(
        _rows(exclusions, indices) > 0.0,
        0,
        ops.convert_to_tensor(sizes, dtype="int32"),
    )
    updated = statistics.add_to_rows(_rows(rows, indices), clipped, counted)
    if len(indices) == rows.shape[0]:
        order = sorted(range(len(indices)), key=indices.__getitem__)
        return _rows(updated, order)
    return ops.scatter_update(rows, [[index] for index in indices], updated)


def _rows(x: Tensor, indices: Sequence[int]) -> Tensor:
    if list(indices) == list(range(x.shape[0])):
        return x
    return ops.take(x, list(indices), axis=0)
