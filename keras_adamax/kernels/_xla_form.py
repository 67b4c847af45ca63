"""The update rule in the form that XLA compiles best: TensorFlow and JAX.

What it computes is `update_rule.update`; what differs is the order. With

    u' = max(beta_2 * u, min(|g|, bound)),   g' = clip(g, -u', u')

the old `u` is not needed once the new one is written, so XLA updates the state
in place, where the specification's order makes it copy `u`. The form is exact,
not approximate: `clip_multiplier >= 1 > beta_2`, so `u'` is the bound itself
wherever `|g|` exceeds it, and an element was clipped if and only if
`|g| > u'`.

On a CPU, XLA writes the input of a reduction to memory, in full size, and
reduces it in one thread. `count` adds up slabs elementwise first, which stays
in one parallel loop, until little is left to reduce.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_adamax import statistics
from keras_adamax.update_rule import FLOAT32_MAX, Hyperparameters

Tensor = Any

# Below this many elements a plain reduction costs less than slabs.
_SMALL = 2**13


def update(
    g: Tensor,
    w: Tensor,
    m: Tensor,
    u: Tensor,
    hyperparameters: Hyperparameters,
    is_excluded: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new `w`, `m` and `u`; arguments as of `update_rule.update`."""
    weight_dtype = keras.backend.standardize_dtype(w.dtype)
    dtype = keras.backend.standardize_dtype(m.dtype)
    h = hyperparameters
    g = ops.cast(g, dtype)
    magnitude = ops.abs(g)
    if is_excluded is not None:
        # Scalars: an excluded variable has an infinite bound.
        infinity = ops.cast(math.inf, dtype)
        growth = ops.where(is_excluded, infinity, h.clip_epsilon)
        limit = ops.where(is_excluded, infinity, ops.cast(FLOAT32_MAX, dtype))
        bound = h.clip_multiplier * u + growth
        # Comparisons cost less than XLA's minimum, which watches for NaN. The
        # order of the arguments passes a NaN of `g` on, as that does.
        bound = ops.where(bound < limit, bound, limit)
        magnitude = ops.where(bound < magnitude, bound, magnitude)
    u = ops.maximum(h.beta_2 * u, magnitude)
    if is_excluded is not None:
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


def count_clipped(g: Tensor, u: Tensor, in_slabs: bool) -> Tensor:
    """How many elements of `g` were clipped, given the `u` after the step."""
    g = ops.cast(g, u.dtype)
    return count(lambda g, u: ops.abs(g) > u, [g, u], in_slabs)


def count(
    predicate: Callable[..., Tensor], tensors: Sequence[Tensor], in_slabs: bool
) -> Tensor:
    """In how many elements `predicate` is true, as an int32 scalar.

    Args:
        predicate: Elementwise function of `tensors` that gives booleans.
        tensors: Tensors of one shape, which is known.
        in_slabs: Whether slabs are added up first (CPU).
    """
    size = math.prod(tensors[0].shape)
    if not in_slabs or size < _SMALL:
        return ops.sum(ops.cast(predicate(*tensors), "int32"))
    tensors = [ops.reshape(tensor, (-1,)) for tensor in tensors]
    slabs, rests = zip(*(_slabs(tensor, 4) for tensor in tensors), strict=True)
    total = _sum(
        [ops.cast(predicate(*x), "int8") for x in zip(*slabs, strict=True)]
    )
    rest = [predicate(*rests)] if rests[0].shape[0] else []
    # At most 4 * 16, which an int8 holds; then an int32 goes on.
    for dtype in ("int8", "int32"):
        parts, remainder = _slabs(total, 16)
        total = _sum([ops.cast(part, dtype) for part in parts])
        rest += [remainder] if remainder.shape[0] else []
    return _sum([ops.sum(ops.cast(x, "int32")) for x in (total, *rest)])


def are_finite(tensors: Sequence[Tensor], in_slabs: bool) -> Tensor:
    """Whether all elements of all tensors are finite, as a boolean scalar."""
    numbers = [
        count(lambda x: ops.logical_not(ops.isfinite(x)), [x], in_slabs)
        for x in tensors
    ]
    return ops.all(ops.equal(ops.stack(numbers), 0))


def _slabs(x: Tensor, number: int) -> tuple[list[Tensor], Tensor]:
    """`number` equal parts of a vector, and what is left over."""
    length = x.shape[0] // number
    parts = [x[i * length : (i + 1) * length] for i in range(number)]
    return parts, x[number * length :]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def next_counts(
    rows: Tensor,
    clipped: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    indices: Sequence[int],
    exclusions: Tensor,
) -> Tensor:
    """All rows of the statistics after a step.

    Args:
        rows: float32 tensor of shape `(n, statistics.ROW_LENGTH)`.
        clipped: For each updated variable, how many elements were clipped.
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
    updated = statistics.add_to_rows(
        _rows(rows, indices), ops.stack(list(clipped)), counted
    )
    if len(indices) == rows.shape[0]:
        order = sorted(range(len(indices)), key=indices.__getitem__)
        return _rows(updated, order)
    return ops.scatter_update(rows, [[index] for index in indices], updated)


def _rows(x: Tensor, indices: Sequence[int]) -> Tensor:
    if list(indices) == list(range(x.shape[0])):
        return x
    return ops.take(x, list(indices), axis=0)
