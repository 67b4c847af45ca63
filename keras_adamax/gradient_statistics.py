"""How large gradients were: snapshots, and the totals that hold them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_adamax import exact_totals, snapshots
from keras_adamax.backends import Backend
from keras_adamax.backends.step import Sums

Tensor = Any

# What a step adds to: the first four of `update_rule.SUMS`, and 1.
_TOTALS = ("gradients", "clipped_gradients", "updates", "momentums", "steps")
# A total is an integer in units of 2**-100, in limbs of base 2**20.
_UNIT_BITS = 100
_LIMBS = 12
_LIMB_BITS = 20
_BASE = 2.0**_LIMB_BITS
_PART = 1.0 / _BASE
# With it, room is left for 2**40 steps.
_LARGEST_SQUARE = 2.0**100
# How many units of a limb there are in 1, and numbers that are too large to
# have bits left for it: a float32 has 24.
_UNITS_OF_ONE = [2.0 ** (_UNIT_BITS - _LIMB_BITS * k) for k in range(_LIMBS)]
_TOO_LARGE = [
    min(2.0 ** (_LIMB_BITS + 24) / n, 2.0**127) for n in _UNITS_OF_ONE
]
# Limbs of the steps and of the elements, then digits of the first call.
_NONFINITE_LENGTH = exact_totals.ROW_LENGTH + exact_totals.DIGITS


@dataclass(frozen=True)
class GradientStatistics:
    """Totals since the optimizer was built: a moment to measure from.

    Get one from `AdamaxClipped.gradient_statistics()`, and what happened
    between two of them from `since`. A norm of a variable is the square root of
    the sum of the squares of its elements. Where there were several steps, it
    is the root mean square over them.

    The totals are exact sums of the float32 that each step gives: one gradient
    that is larger by many orders of magnitude takes nothing from the norms
    after it. A step in which a gradient had a NaN or an infinity is left out
    for that variable. A norm above 1e15 counts as 1.1e15, one below 1e-15 as 0.

    Attributes:
        steps: Variable path to the number of updates that were measured.
        gradients: Variable path to the sum of the squares of the gradient, as
            the clipping was given it: an integer, in units of `2**-100`.
        clipped_gradients: The same after the clipping.
        updates: The same of what was subtracted from the weight, without
            weight decay.
        momentums: The same of the first moment.

    Example:
        >>> import keras, keras_adamax
        >>> optimizer = keras_adamax.AdamaxClipped(
        ...     clip_epsilon=3.0, track_gradient_norms=True
        ... )
        >>> weight = keras.Variable([1.0, 1.0], name="weight")
        >>> optimizer.apply([keras.ops.convert_to_tensor([3.0, 4.0])], [weight])
        >>> statistics = optimizer.gradient_statistics()
        >>> statistics.gradient_norms()
        {'weight': 5.0}
        >>> round(statistics.clipped_shares()["weight"], 2)
        0.28
    """

    steps: Mapping[str, int]
    gradients: Mapping[str, int]
    clipped_gradients: Mapping[str, int]
    updates: Mapping[str, int]
    momentums: Mapping[str, int]

    def since(self, earlier: "GradientStatistics") -> "GradientStatistics":
        """What was added after `earlier`.

        Raises:
            TypeError: If `earlier` is no `GradientStatistics`.
            ValueError: If it is of other variables, or later than this one.
        """
        return snapshots.difference(
            self, earlier, "earlier", "what `gradient_statistics()` returned"
        )

    def gradient_norms(self) -> dict[str, float]:
        """Of the gradient of each variable, before the clipping.

        NaN where no step was measured.
        """
        return self._norms(self.gradients)

    def clipped_shares(self) -> dict[str, float]:
        """Which fraction of the squared norms the clipping took away.

        NaN where no step was measured, or all gradients were 0.
        """
        return {
            path: max(square - self.clipped_gradients[path], 0) / square
            if square
            else math.nan
            for path, square in self.gradients.items()
        }

    def update_norms(self) -> dict[str, float]:
        """Of what a step subtracted from each variable, without weight decay.

        NaN where no step was measured.
        """
        return self._norms(self.updates)

    def momentum_norms(self) -> dict[str, float]:
        """Of the first moment of each variable.

        NaN where no step was measured.
        """
        return self._norms(self.momentums)

    def gradient_norm(self) -> float:
        """Of all gradients together, before the clipping.

        NaN where no step was measured.
        """
        steps = max(self.steps.values(), default=0)
        return _root_mean(sum(self.gradients.values()), steps)

    def _norms(self, squares: Mapping[str, int]) -> dict[str, float]:
        return {
            path: _root_mean(squares[path], steps)
            for path, steps in self.steps.items()
        }


def _root_mean(square: int, steps: int) -> float:
    return math.sqrt(square / (steps << _UNIT_BITS)) if steps else math.nan


class NonfiniteGradient(NamedTuple):
    """What an optimizer knows of a variable's NaNs and infinities.

    `AdamaxClipped.nonfinite_gradients()` gives one for each variable whose
    gradient has had any.

    Attributes:
        steps: In how many steps its gradient had one.
        elements: How many elements of them there were.
        first_call: Number of the first such call of `apply`, from 1 on.

    Example:
        >>> import keras, keras_adamax
        >>> optimizer = keras_adamax.AdamaxClipped(
        ...     skip_nonfinite=True, track_gradient_norms=True
        ... )
        >>> weight = keras.Variable([1.0, 1.0], name="weight")
        >>> for value in (0.5, float("nan"), 0.5):
        ...     gradient = keras.ops.convert_to_tensor([0.5, value])
        ...     optimizer.apply([gradient], [weight])
        >>> optimizer.nonfinite_gradients()
        {'weight': NonfiniteGradient(steps=1, elements=1, first_call=2)}
    """

    steps: int
    elements: int
    first_call: int


class GradientTotals:
    """The totals of an optimizer, in two variables of its own.

    A total is kept in float32 limbs, as those of `exact_totals`: one float32
    would stop growing after some million steps, and after one large gradient
    at once. Here a carry goes one limb further in a step, so that a limb may be
    a little larger than its base.

    Args:
        add_variable: The optimizer's.
        paths: Of the variables.
        backend: The running one.

    Attributes:
        rows: Variable of shape `(n, 5, 12)`: of each of the optimizer's
            variables the limbs of its totals.
        nonfinite: Likewise, of shape `(n, 8)`.
    """

    def __init__(
        self,
        add_variable: Callable[..., Any],
        paths: Sequence[str],
        backend: Backend,
    ):
        count = len(paths)
        self.rows = add_variable(
            shape=(count, len(_TOTALS), _LIMBS),
            dtype="float32",
            name="gradient_totals",
        )
        self.nonfinite = add_variable(
            shape=(count, _NONFINITE_LENGTH),
            dtype="float32",
            name="nonfinite_gradients",
        )
        self._paths = tuple(paths)
        self._backend = backend

    def rows_after(self, sums: Sums) -> Tensor:
        """`rows` after a step with these sums."""
        rows = ops.convert_to_tensor(self.rows)
        # Operators, where there is one: on torch a call of Keras's takes ten
        # times as long.
        squares = sums.values[:, :4]
        # False for a NaN, not for the infinity of a square that overflows.
        is_measured = ops.all(squares >= 0.0, axis=1) & (
            sums.values[:, 4] == 0.0
        )
        squares = ops.where(
            squares <= _LARGEST_SQUARE, squares, _LARGEST_SQUARE
        )
        added = ops.concatenate(
            [squares, ops.ones_like(squares[:, :1])], axis=1
        )[:, :, None]
        units_of_one, too_large = (
            self._backend.constant(tuple(numbers), "float32", added)
            for numbers in (_UNITS_OF_ONE, _TOO_LARGE)
        )
        has_bits = is_measured[:, None, None] & (added < too_large)
        units = ops.where(has_bits, added, 0.0) * units_of_one
        # All of this is exact, whatever the order of operations.
        digits = ops.floor(units) - _BASE * ops.floor(units * _PART)
        limbs = self._take(rows, sums.indices) + digits
        carry = ops.floor(limbs * _PART)
        nothing = 0.0 * carry[:, :, :1]
        given = ops.concatenate([nothing, carry[:, :, :-1]], axis=2)
        return self._put(rows, sums.indices, limbs - _BASE * carry + given)

    def nonfinite_after(
        self, indices: Sequence[int], elements: Tensor, call: Tensor
    ) -> Tensor:
        """`nonfinite` after a step.

        Args:
            indices: Of the optimizer's variables.
            elements: How many of the gradient of each were not finite:
                integers, or their `exact_totals.digits`.
            call: Number of the call of `apply`, integer.
        """
        rows = ops.convert_to_tensor(self.nonfinite)
        its = self._take(rows, indices)
        limbs = its[:, : exact_totals.ROW_LENGTH]
        first = its[:, exact_totals.ROW_LENGTH :]
        digits = exact_totals.digits(elements)
        is_found = ops.any(digits > 0.0, axis=1)
        now = exact_totals.digits(ops.reshape(ops.cast(call, "int32"), (1,)))
        is_first = ops.logical_and(
            is_found, ops.logical_not(ops.any(first > 0.0, axis=1))
        )
        limbs = exact_totals.add_to_rows(
            limbs, ops.cast(is_found, "int32"), digits
        )
        first = ops.where(ops.expand_dims(is_first, 1), now, first)
        return self._put(rows, indices, ops.concatenate([limbs, first], axis=1))

    def statistics(self, rows: np.ndarray | None = None) -> GradientStatistics:
        """The totals, or what a value of `rows` says."""
        if rows is None:
            rows = self._backend.to_numpy(self.rows)
        return statistics_of(rows, self._paths)

    def nonfinite_gradients(
        self, rows: np.ndarray | None = None
    ) -> dict[str, NonfiniteGradient]:
        """The variables that had one, or what a value of `nonfinite` says."""
        if rows is None:
            rows = self._backend.to_numpy(self.nonfinite)
        rows = np.asarray(rows)
        length = exact_totals.ROW_LENGTH
        totals = exact_totals.totals_from_rows(rows[:, :length])
        return {
            path: NonfiniteGradient(
                steps,
                elements,
                int(first[0]) + exact_totals.LIMB_BASE * int(first[1]),
            )
            for path, (steps, elements), first in zip(
                self._paths, totals, rows[:, length:], strict=True
            )
            if steps
        }

    def _take(self, rows: Tensor, indices: Sequence[int]) -> Tensor:
        if tuple(indices) == tuple(range(len(self._paths))):
            return rows
        return ops.take(rows, self._numbers(indices, rows), axis=0)

    def _put(
        self, rows: Tensor, indices: Sequence[int], values: Tensor
    ) -> Tensor:
        if tuple(indices) == tuple(range(len(self._paths))):
            return values
        where = self._numbers(indices, rows)
        return ops.scatter_update(rows, ops.expand_dims(where, 1), values)

    def _numbers(self, indices: Sequence[int], rows: Tensor) -> Tensor:
        return self._backend.constant(tuple(indices), "int32", rows)


def statistics_of(rows: Any, paths: Sequence[str]) -> GradientStatistics:
    """A snapshot from rows of totals, one for each path."""
    limbs = np.asarray(rows).astype(np.int64)
    # As many as an int64 holds, with room for a carry.
    together = 3
    limbs = limbs.reshape(len(paths), len(_TOTALS), -1, together)
    parts = (limbs << (_LIMB_BITS * np.arange(together))).sum(axis=3)
    bits = _LIMB_BITS * together
    totals = [
        [sum(part << (bits * i) for i, part in enumerate(its)) for its in row]
        for row in parts.tolist()
    ]
    columns = dict(zip(_TOTALS, zip(*totals, strict=True), strict=True))
    steps = [total >> _UNIT_BITS for total in columns.pop("steps")]
    return GradientStatistics(
        steps=dict(zip(paths, steps, strict=True)),
        **{
            name: dict(zip(paths, its, strict=True))
            for name, its in columns.items()
        },
    )
