"""Exact totals of clipped and counted gradient elements.

A total is kept in three float32 limbs of base 2**20, lowest first. Every
operation on them is exact in float32, so that a count is right after any
number of steps, where one float32 sum would stop growing at 2**24 and a
compensated one depends on a compiler that keeps its operations in order.

What one step adds is kept in two digits of the same base, because JAX has no
integers above 2**31 - 1 and a variable may have more elements.
"""

import math
from typing import Any

import numpy as np
from keras import ops

Tensor = Any

LIMB_BASE = 2**20
LIMBS = 3
# Clipped elements, then counted elements.
ROW_LENGTH = 2 * LIMBS
# Of what one step adds: the second holds all that is above the first.
DIGITS = 2
_LARGEST_INT32 = 2**31 - 1
# A sum of so many numbers below LIMB_BASE is an int32.
_MOST_PARTS = 2**31 // LIMB_BASE


def add_to_rows(rows: Tensor, clipped: Tensor, counted: Tensor) -> Tensor:
    """Rows of limbs after one more step.

    Args:
        rows: float32 tensor of shape `(n, ROW_LENGTH)`.
        clipped: Elements clipped in this step: integers, shape `(n,)`, or
            their `digits`, shape `(n, DIGITS)`.
        counted: Elements given to the clipping, likewise.

    Returns:
        The new rows.
    """
    counts = ops.stack([digits(clipped), digits(counted)], axis=1)
    limbs = ops.reshape(rows, (-1, 2, LIMBS))
    lowest, carry = _split(limbs[:, :, 0] + counts[:, :, 0])
    middle, overflow = _split(limbs[:, :, 1] + carry + counts[:, :, 1])
    limbs = ops.stack([lowest, middle, limbs[:, :, 2] + overflow], axis=2)
    return ops.reshape(limbs, (-1, ROW_LENGTH))


def step_totals(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """What one step clipped and counted, over all variables.

    Args:
        before: Rows of limbs before the step, shape `(n, ROW_LENGTH)`.
        after: Rows after it.

    Returns:
        Two float32 scalars: exact where they are below 2**24, rounded where
        they are not.
    """
    limbs = ops.reshape(after - before, (-1, 2, LIMBS))
    lowest, middle, highest = (limbs[:, :, i] for i in range(LIMBS))
    base = float(LIMB_BASE)
    totals = ops.sum(lowest + base * (middle + base * highest), axis=0)
    return totals[0], totals[1]


def digits(counts: Tensor) -> Tensor:
    """Integers below 2**43 in two float32 digits, lowest first.

    Args:
        counts: Integers, shape `(n,)`; what has two axes is returned as it is.
            Python's and NumPy's are exact where the backend has none so large.

    Returns:
        float32, shape `(n, DIGITS)`.
    """
    if not ops.is_tensor(counts):
        counts = np.asarray(counts)
        if counts.ndim == 1:
            pair = [counts % LIMB_BASE, counts // LIMB_BASE]
            counts = np.stack(pair, axis=1).astype("float32")
        return ops.convert_to_tensor(counts)
    if len(counts.shape) == 2:
        return counts
    pair = [counts % LIMB_BASE, counts // LIMB_BASE]
    return ops.cast(ops.stack(pair, axis=1), "float32")


def sums(counts: Tensor, largest: int) -> list[Tensor]:
    """int32 vectors of one element that add up to the sum of `counts`.

    There is one, unless the sum might be more than an int32 holds. Axes are
    summed before anything is cut in pieces, so that what is spread over
    devices stays there.

    Args:
        counts: int32 tensor of a known shape.
        largest: How large its elements may be.
    """
    if largest * math.prod(counts.shape) <= _LARGEST_INT32:
        return [ops.reshape(ops.sum(counts), (1,))]
    length = counts.shape[-1]
    if largest * length <= _LARGEST_INT32:
        return sums(ops.sum(counts, axis=-1), largest * length)
    piece = _LARGEST_INT32 // largest
    return [
        total
        for start in range(0, length, piece)
        for total in sums(counts[..., start : start + piece], largest)
    ]


def digits_of_sums(parts: Tensor) -> Tensor:
    """The `digits` of the sum of each row, whatever it is.

    Args:
        parts: int32 >= 0, shape `(n, k)` with `k` below 2**11.
    """
    assert parts.shape[1] < _MOST_PARTS
    lowest = ops.sum(parts % LIMB_BASE, axis=1)
    rest = ops.sum(parts // LIMB_BASE, axis=1) + lowest // LIMB_BASE
    return ops.cast(ops.stack([lowest % LIMB_BASE, rest], axis=1), "float32")


def count(mask: Tensor, times: int = 1) -> Tensor:
    """The `digits` of the number of elements that are true.

    Args:
        mask: Booleans.
        times: How often each of them counts.

    Returns:
        float32, shape `(1, DIGITS)`.
    """
    if None in mask.shape:
        # Only TensorFlow has unknown shapes, and it has int64.
        total = ops.sum(ops.cast(mask, "int64")) * times
        return digits(ops.expand_dims(total, 0))
    counts = ops.cast(mask, "int32")
    most = 2**30
    weights = [most] * (times // most) + [times % most]
    parts = [
        part for weight in weights for part in sums(counts * weight, weight)
    ]
    return digits_of_sums(ops.expand_dims(ops.concatenate(parts), 0))


def _split(total: Tensor) -> tuple[Tensor, Tensor]:
    """What stays in a limb, and what is carried to the next."""
    carry = ops.floor(total / float(LIMB_BASE))
    return total - carry * float(LIMB_BASE), carry


def totals_from_rows(rows: np.ndarray) -> list[tuple[int, int]]:
    """Clipped and counted totals as exact integers, a pair a variable."""
    return [
        (_total_from_limbs(row[:LIMBS]), _total_from_limbs(row[LIMBS:]))
        for row in np.asarray(rows)
    ]


def _total_from_limbs(limbs: np.ndarray) -> int:
    return sum(int(limb) * LIMB_BASE**i for i, limb in enumerate(limbs))


def rows_from_totals(totals: list[tuple[int, int]]) -> np.ndarray:
    """The inverse of `totals_from_rows`."""
    rows = [
        [
            *_limbs_from_total(clipped),
            *_limbs_from_total(counted),
        ]
        for clipped, counted in totals
    ]
    return np.asarray(rows, dtype="float32").reshape(-1, ROW_LENGTH)


def _limbs_from_total(total: int) -> list[int]:
    return [
        total % LIMB_BASE,
        total // LIMB_BASE % LIMB_BASE,
        total // LIMB_BASE**2,
    ]
