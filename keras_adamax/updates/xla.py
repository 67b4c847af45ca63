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

from keras_adamax import exact_totals, spike_rule, update_rule
from keras_adamax.backends import variable_groups
from keras_adamax.update_rule import FLOAT32_MAX, Hyperparameters

Tensor = Any

# What is left of a variable to reduce: about so many elements.
_FEW = 2**8
# Slabs that one kernel adds up: more of them are more streams than a CPU
# foresees, fewer leave more memory to write.
_SLABS = 8
_SLABS_OF_SUMS = 16
# A variable of this size is worth a loop, which leaves less still.
_LARGE = 2**20
# What no int32 counts, and JAX has no index for in a loop.
_TOO_LARGE = 2**31
_SLABS_OF_LARGE = 64
_SLABS_A_TURN = 4
# What a uint8 holds.
_LARGEST_SUM = 255
# Elements of a cache line, of the smallest dtype: slabs that begin elsewhere
# take twice the time.
_ALIGNMENT = 64
# Elements whose gradient, weight and state the caches of a core hold.
_CACHED = 2**16


class Bounds(NamedTuple):
    """What bounds the gradients of a variable, beside its own past: scalars.

    Attributes:
        growth: `clip_epsilon`; infinite for an excluded variable.
        limit: How large a bound may be; infinite for an excluded variable.
    """

    growth: Tensor
    limit: Tensor


def bounds(
    hyperparameters: Hyperparameters,
    exclusions: Tensor | None,
    indices: Sequence[int],
    dtype: str,
) -> list[Bounds]:
    """`Bounds` of the variables with `indices`.

    Args:
        hyperparameters: The scalars of the step.
        exclusions: Shape `(n,)`, > 0 where a variable is not clipped; `None`
            where all are clipped. XLA compiles the same kernel once for all
            variables of a shape, if no variable's own scalar is in it.
        indices: Which of the `n` variables to take.
        dtype: Dtype of the state.
    """
    growth = hyperparameters.clip_epsilon
    limit = ops.cast(FLOAT32_MAX, dtype)
    if exclusions is None:
        return [Bounds(growth, limit)] * len(indices)
    is_excluded = exclusions > 0.0
    infinity = ops.cast(math.inf, dtype)
    growths = ops.where(is_excluded, infinity, growth)
    limits = ops.where(is_excluded, infinity, limit)
    return [Bounds(growths[i], limits[i]) for i in indices]


def update(
    g: Tensor,
    w: Tensor,
    m: Tensor,
    u: Tensor,
    hyperparameters: Hyperparameters,
    bounds: Bounds | None,
    measures: bool,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """The new `w`, `m` and `u`, and the sums, if it `measures`.

    Arguments as of `update_rule.update`; `bounds` is `None` where nothing is
    clipped.
    """
    weight_dtype = keras.backend.standardize_dtype(w.dtype)
    dtype = keras.backend.standardize_dtype(m.dtype)
    h = hyperparameters
    given = g = ops.cast(g, dtype)
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
    sums = update_rule.sums_of(given, g, change, m) if measures else None
    w = ops.cast(ops.cast(w, dtype) - change, weight_dtype)
    return (w, m, u), sums


def clipped_parts(g: Tensor, u: Tensor, in_slabs: bool) -> list[Tensor]:
    """`parts` of the elements of `g` that were clipped.

    Args:
        g: Gradient, before clipping.
        u: Infinity norm after the step.
        in_slabs: As for `parts`.
    """

    def is_clipped(g: Tensor, u: Tensor) -> Tensor:
        # A slab is cast, for XLA would keep all of a gradient that was.
        return ops.abs(ops.cast(g, u.dtype)) > u

    return parts(is_clipped, [g, u], in_slabs)


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
        return exact_totals.sums(ops.cast(predicate(*tensors), "int32"), 1)
    tensors = [ops.reshape(tensor, (-1,)) for tensor in tensors]
    size = tensors[0].shape[0]
    if size <= _FEW:
        return [ops.cast(predicate(*tensors), "int32")]
    in_a_loop = _LARGE <= size < _TOO_LARGE
    number = _SLABS_OF_LARGE if in_a_loop else _SLABS
    length = size // number
    if length > _ALIGNMENT:
        length -= length % _ALIGNMENT
    add = _add_slabs_in_a_loop if in_a_loop else _add_slabs
    found = _added_up(add(predicate, tensors, number, length), number)
    if number * length < size:
        rests = [tensor[number * length :] for tensor in tensors]
        found += parts(predicate, rests, in_slabs)
    return found


def _add_slabs(
    predicate: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    number: int,
    length: int,
) -> Tensor:
    """How many of the slabs' elements at a place have `predicate`."""
    return _sum(
        [
            ops.cast(predicate(*slabs), "uint8")
            for slabs in zip(
                *(_slabs(x, number, length) for x in tensors), strict=True
            )
        ]
    )


def _add_slabs_in_a_loop(
    predicate: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    number: int,
    length: int,
) -> Tensor:
    """`_add_slabs` of so many that one kernel would have too many streams."""

    def add(turn: Tensor, total: Tensor) -> Tensor:
        for i in range(_SLABS_A_TURN):
            start = (turn * _SLABS_A_TURN + i) * length
            slabs = [ops.slice(x, (start,), (length,)) for x in tensors]
            total = total + ops.cast(predicate(*slabs), "uint8")
        return total

    return ops.fori_loop(
        0, number // _SLABS_A_TURN, add, ops.zeros((length,), "uint8")
    )


def _added_up(total: Tensor, largest: int) -> list[Tensor]:
    """Short int32 vectors with the same sum as `total`, uint8.

    Args:
        total: A vector.
        largest: How large its elements may be.
    """
    left: list[Tensor] = []
    while total.shape[0] > _FEW:
        length = total.shape[0] // _SLABS_OF_SUMS
        largest *= _SLABS_OF_SUMS
        dtype = "uint8" if largest <= _LARGEST_SUM else "int32"
        if _SLABS_OF_SUMS * length < total.shape[0]:
            left.append(total[_SLABS_OF_SUMS * length :])
        slabs = _slabs(total, _SLABS_OF_SUMS, length)
        total = _sum([ops.cast(slab, dtype) for slab in slabs])
    return [ops.cast(x, "int32") for x in (total, *left)]


def totals(parts_of_all: Sequence[Sequence[Tensor]], most: int = 0) -> Tensor:
    """The sum of each entry's `parts`.

    Args:
        parts_of_all: Entries.
        most: How large a sum may be.

    Returns:
        An int32 vector; `exact_totals.digits` if that cannot hold `most`.
    """
    lengths = [sum(x.shape[0] for x in parts) for parts in parts_of_all]
    width = max(*lengths, 1)
    row_after_row: list[Tensor] = []
    for parts_of_one, length in zip(parts_of_all, lengths, strict=True):
        row_after_row += parts_of_one
        if length < width:
            row_after_row.append(ops.zeros((width - length,), "int32"))
    rows = ops.reshape(ops.concatenate(row_after_row), (-1, width))
    if most >= _TOO_LARGE:
        return exact_totals.digits_of_sums(rows)
    return ops.sum(rows, axis=1)


def count_nonfinite(tensors: Sequence[Tensor], in_slabs: bool) -> Tensor:
    """How many elements of each tensor are NaN or infinite."""
    most = max((math.prod(x.shape) for x in tensors), default=0)
    return totals([parts(_is_not_finite, [x], in_slabs) for x in tensors], most)


def _is_not_finite(x: Tensor) -> Tensor:
    return ops.logical_not(ops.isfinite(x))


def are_finite(tensors: Sequence[Tensor], in_slabs: bool) -> Tensor:
    """Whether all elements of all tensors are finite, as a boolean scalar."""
    of_size: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        of_size.setdefault(math.prod(tensor.shape), []).append(tensor)
    found: list[list[Tensor]] = []
    for same in of_size.values():
        # Tensors of a size are slabs to each other: fewer kernels to compile.
        rest = same
        while in_slabs and len(rest) >= _SLABS:
            slabs, rest = rest[:_LARGEST_SUM], rest[_LARGEST_SUM:]
            total = _sum(
                [
                    ops.cast(_is_not_finite(ops.reshape(x, (-1,))), "uint8")
                    for x in slabs
                ]
            )
            found.append(_added_up(total, len(slabs)))
        found += [parts(_is_not_finite, [x], in_slabs) for x in rest]
    # One entry may be of many tensors.
    most = sum(size * len(same) for size, same in of_size.items())
    return ops.all(ops.equal(totals(found, most), 0))


def count_above(
    gradients: Sequence[Tensor],
    are_samples: bool,
    norms: Sequence[Tensor],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
    in_slabs: bool,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32.

    Args:
        gradients: Of any float dtype.
        are_samples: Whether they are what `spike_rule.sample_of` gave, and not
            whole.
        norms: Of the whole variables, before the step.
        strides: Of the samples.
        clip_multiplier: Scalar.
        clip_epsilon: Scalar.
        in_slabs: As for `parts`.
    """

    def are_above(g: Tensor, u: Tensor) -> Tensor:
        return spike_rule.are_above(g, u, clip_multiplier, clip_epsilon)

    if not are_samples:
        gradients = spike_rule.samples(gradients, norms, strides)
    return totals(
        [
            parts(are_above, pair, in_slabs)
            for pair in zip(
                gradients,
                spike_rule.samples(norms, norms, strides),
                strict=True,
            )
        ]
    )


def _slabs(x: Tensor, number: int, length: int) -> list[Tensor]:
    if number * length < x.shape[0]:
        x = x[: number * length]
    return ops.split(x, number)


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
    limit = _CACHED if on_cpu else sum(sizes) + 1
    return variable_groups.groups(sizes, limit)


def after(
    values: tuple[Tensor, Tensor, Tensor],
    parts: Sequence[Tensor],
    hyperparameters: Hyperparameters,
) -> Hyperparameters:
    """The scalars, but not before a variable's new values are known.

    XLA's barriers do not outlive its passes; what only looks like a condition
    does. A norm is never negative.

    Args:
        values: Weight, momentum and norm of the variable.
        parts: Its `clipped_parts`; empty where they are not counted.
        hyperparameters: The scalars of the step.
    """
    weight, _, norm = (ops.reshape(x, (-1,))[:1] for x in values)
    if weight.shape[0] == 0:
        return hyperparameters
    never = ops.logical_and(norm < 0.0, weight > 0.0)
    if parts:
        never = ops.logical_and(never, parts[0][:1] < 0)
    never = never[0]
    learning_rate, beta_1, beta_2, *others = hyperparameters
    beta_2 = ops.where(never, 0.0 * beta_2, beta_2)
    return Hyperparameters(learning_rate, beta_1, beta_2, *others)


def next_counts(
    rows: Tensor,
    clipped: Tensor,
    shapes: Sequence[Sequence[int]],
    indices: Sequence[int],
    exclusions: Tensor | None,
) -> Tensor:
    """All rows of the statistics after a step.

    Args:
        rows: float32 tensor of shape `(n, exact_totals.ROW_LENGTH)`.
        clipped: How many elements of each updated variable were clipped:
            integers, or their `exact_totals.digits`.
        shapes: The shape of each updated variable.
        indices: Which rows are theirs.
        exclusions: As for `bounds`.
    """
    sizes = [math.prod(shape) for shape in shapes]
    counted = exact_totals.digits(sizes)
    if exclusions is not None:
        is_excluded = ops.expand_dims(_rows(exclusions, indices) > 0.0, 1)
        counted = ops.where(is_excluded, 0.0, counted)
    updated = exact_totals.add_to_rows(_rows(rows, indices), clipped, counted)
    if len(indices) == rows.shape[0]:
        order = sorted(range(len(indices)), key=indices.__getitem__)
        return _rows(updated, order)
    return ops.scatter_update(rows, [[index] for index in indices], updated)


def _rows(x: Tensor, indices: Sequence[int]) -> Tensor:
    if list(indices) == list(range(x.shape[0])):
        return x
    return ops.take(x, list(indices), axis=0)
