"""How far weights moved: reductions that run where the weights are.

A weight is worked through in blocks, so that the difference of two copies
never exists as a whole. Norms are taken of values scaled by the largest one:
a change of 1e-30 has a norm, and one of 1e30 does not overflow.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_adamax import backends
from keras_adamax.callbacks import _devices, _optimizers
from keras_adamax.update_rule import compute_dtype

Tensor = Any

BINS = 32
BLOCK = 2**18
# Counting keeps an index an element.
COUNTING_BLOCK = 2**14
# Of an int32, in which XLA counts.
LARGEST_INDEX = 2**31 - 1
# The step is packed with the floats: two limbs that float32 holds exactly.
STEP_BASE = 2**20


class WeightChange(NamedTuple):
    """One variable's change over a window.

    Attributes:
        change_norm: L2 norm of the change.
        weight_norm: L2 norm of the weights at the end of the window.
        largest_change: Largest absolute change of an element.
        counts: Elements by change, in `BINS` equal bins between
            `-largest_change` and `largest_change`; `None` where not asked for.
    """

    change_norm: float
    weight_norm: float
    largest_change: float
    counts: np.ndarray | None


class WeightChanges:
    """Measures how far variables move from one call to the next.

    Holds one copy of the variables' values, in their own dtypes.

    Args:
        variables: The variables.
        with_counts: Whether changes are counted in bins as well.
    """

    def __init__(self, variables: Sequence[Any], with_counts: bool):
        self.variables = list(variables)
        self._function = _measure_and_count if with_counts else _measure_plainly
        self._with_counts = with_counts
        self._device = _devices.load()
        with backends.load().no_gradient():
            self._previous = [ops.copy(v) for v in self.variables]

    def measure(self, step: Tensor) -> Tensor:
        """Starts measuring the changes since the last call or construction.

        Args:
            step: Integer tensor, a scalar: to the host in the same transfer.

        Returns:
            What `read` needs, on the device. Nobody waits for it here.
        """
        return self._device.measure_and_keep(
            self._function,
            pack,
            self._previous,
            [_optimizers.value_of(v) for v in self.variables],
            step,
        )

    def read(self, measured: Tensor) -> tuple[int, list[WeightChange]]:
        """Waits for what `measure` has started.

        Args:
            measured: What it returned.

        Returns:
            The step, and one `WeightChange` for each variable.
        """
        values = ops.convert_to_numpy(measured).astype("float64")
        width = 4 + (BINS if self._with_counts else 0)
        rows = values[:-2].reshape(len(self.variables), width)
        changes = []
        for row in rows:
            largest, squares, largest_weight, weight_squares = row[:4]
            changes.append(
                WeightChange(
                    change_norm=_norm(largest, squares),
                    weight_norm=_norm(largest_weight, weight_squares),
                    largest_change=float(largest),
                    counts=row[4:] if self._with_counts else None,
                )
            )
        return unpack_step(values[-2:]), changes

    def get_previous(self) -> list[np.ndarray]:
        """The copy on the host, to save it (float32 for half precision)."""
        return [
            ops.convert_to_numpy(
                ops.cast(
                    value,
                    compute_dtype(keras.backend.standardize_dtype(value.dtype)),
                )
            )
            for value in self._previous
        ]

    def set_previous(self, arrays: Sequence[np.ndarray]) -> None:
        """Puts back what `get_previous` gave."""
        for i, (array, value) in enumerate(
            zip(arrays, self._previous, strict=True)
        ):
            restored = ops.cast(ops.convert_to_tensor(array), value.dtype)
            self._previous[i] = self._device.place_like(restored, value)


def _norm(largest: float, squares: float) -> float:
    if math.isinf(largest) and not math.isnan(squares):
        return math.inf
    return float(largest * math.sqrt(squares)) if largest else float(squares)


def pack(parts: Sequence[Tensor], step: Tensor) -> Tensor:
    """One vector of these vectors, and of the step, an integer scalar."""
    dtype = "float32"
    if any(
        keras.backend.standardize_dtype(p.dtype) == "float64" for p in parts
    ):
        dtype = "float64"
    limbs = [ops.floor_divide(step, STEP_BASE), ops.mod(step, STEP_BASE)]
    parts = [*parts, ops.stack([ops.cast(limb, dtype) for limb in limbs])]
    return ops.concatenate([ops.cast(part, dtype) for part in parts])


def unpack_step(limbs: np.ndarray) -> int:
    """The step, from the last two elements of what `pack` gave."""
    high, low = limbs
    return int(high) * STEP_BASE + int(low)


def _measure(
    previous: Tensor, current: Tensor, in_blocks: bool, bins: int
) -> Tensor:
    dtype = compute_dtype(keras.backend.standardize_dtype(current.dtype))
    if 0 in current.shape:
        return ops.zeros((4 + bins,), dtype)

    def change(p: Tensor, c: Tensor) -> Tensor:
        return ops.subtract(ops.cast(c, dtype), ops.cast(p, dtype))

    def fold(
        function: Callable,
        combine: Callable,
        after: Tensor,
        initial: Tensor,
        block: int = BLOCK,
    ) -> Tensor:
        # XLA computes equal expressions once and would keep the change for
        # the next reduction; values that come after the last one are others.
        old, new = _devices.load().after(after, previous, current)
        return _fold(
            function, combine, old, new, initial, block if in_blocks else None
        )

    zero = ops.zeros((), dtype)
    largest = fold(
        lambda p, c: ops.max(ops.absolute(change(p, c))),
        ops.maximum,
        zero,
        zero,
    )
    largest_weight = fold(
        lambda p, c: ops.max(ops.absolute(ops.cast(c, dtype))),
        ops.maximum,
        largest,
        zero,
    )
    scale = _divisor(largest)
    weight_scale = _divisor(largest_weight)
    squares = fold(
        lambda p, c: ops.sum(ops.square(ops.divide(change(p, c), scale))),
        ops.add,
        largest_weight,
        zero,
    )
    weight_squares = fold(
        lambda p, c: ops.sum(
            ops.square(ops.divide(ops.cast(c, dtype), weight_scale))
        ),
        ops.add,
        squares,
        zero,
    )
    measures = ops.stack([largest, squares, largest_weight, weight_squares])
    if not bins:
        return measures

    def count(p: Tensor, c: Tensor) -> Tensor:
        # From [-1, 1] to 0 ... bins - 1. NaN has no bin; it goes to the middle.
        position = ops.multiply(
            ops.add(ops.divide(change(p, c), scale), 1.0), bins / 2
        )
        position = ops.where(
            ops.isnan(position), ops.full_like(position, bins / 2), position
        )
        index = ops.cast(ops.clip(ops.floor(position), 0, bins - 1), "int32")
        return _devices.load().count_integers(ops.reshape(index, (-1,)), bins)

    # A bin of int32 may overflow where a variable has more than it can count.
    is_large = math.prod(current.shape) > LARGEST_INDEX
    none = ops.zeros((bins,), dtype if is_large else "int32")
    counts = fold(count, ops.add, weight_squares, none, COUNTING_BLOCK)
    return ops.concatenate([measures, ops.cast(counts, dtype)])


def _divisor(largest: Tensor) -> Tensor:
    usable = ops.logical_and(ops.greater(largest, 0.0), ops.isfinite(largest))
    return ops.where(usable, largest, ops.ones_like(largest))


def _fold(
    function: Callable[[Tensor, Tensor], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
    previous: Tensor,
    current: Tensor,
    initial: Tensor,
    block: int | None,
) -> Tensor:
    """`function` of each block, combined; of all at once without `block`."""
    size = math.prod(current.shape)
    if block is None or size <= block:
        return function(previous, current)
    flat = [ops.reshape(previous, (-1,)), ops.reshape(current, (-1,))]
    blocks = size // block
    if size <= LARGEST_INDEX:

        def part(x: Tensor, i: Tensor) -> Tensor:
            return ops.slice(x, (ops.multiply(i, block),), (block,))

        whole = flat
    else:
        # Positions are int32, those of rows are small enough. It may take a
        # copy, which smaller variables are spared.
        def part(x: Tensor, i: Tensor) -> Tensor:
            row = ops.slice(x, (i, ops.zeros_like(i)), (1, block))
            return ops.reshape(row, (block,))

        whole = [
            ops.reshape(x[: blocks * block], (blocks, block)) for x in flat
        ]

    def body(i: Tensor, total: Tensor) -> Tensor:
        return combine(total, function(*(part(x, i) for x in whole)))

    total = ops.fori_loop(0, blocks, body, initial)
    if size % block:
        total = combine(total, function(*(x[blocks * block :] for x in flat)))
    return total


# Functions that stay the same objects, so that they are compiled once.
_measure_plainly = functools.partial(_measure, bins=0)
_measure_and_count = functools.partial(_measure, bins=BINS)
