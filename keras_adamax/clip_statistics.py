"""How often `AdamaxClipped` clipped: snapshots, rates, and what holds them."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_adamax import exact_totals, snapshots
from keras_adamax.backends import Backend

Tensor = Any

# Numbers that float32 holds exactly.
_ORIGIN_NUMBERS = 2**23
# Of more resets the oldest are forgotten.
_ORIGINS_KEPT = 100


@dataclass(frozen=True)
class ClipStatistics:
    """Totals since the optimizer was built: a moment to measure from.

    Get one from `AdamaxClipped.clip_statistics()` and give it to
    `clip_rates(since=...)` or `clip_rate(since=...)`.

    Attributes:
        clipped: Variable path to the number of gradient elements clipped.
        counted: Variable path to the number of gradient elements that the
            clipping was given.
    """

    clipped: Mapping[str, int]
    counted: Mapping[str, int]

    def since(self, earlier: "ClipStatistics") -> "ClipStatistics":
        """The elements clipped and counted after `earlier`.

        Raises:
            TypeError: If `earlier` is no `ClipStatistics`.
            ValueError: If it is of other variables, or later than this one.
        """
        return snapshots.difference(
            self, earlier, "since", "what `clip_statistics()` returned, or None"
        )

    def is_after(self, earlier: "ClipStatistics") -> bool:
        """Whether no total is smaller than in `earlier`.

        Args:
            earlier: A snapshot of the same variables.
        """
        return snapshots.is_after(self, earlier)

    def rates(self) -> dict[str, float]:
        """The clipped fraction of each variable; NaN where none counted."""
        return {
            path: self.clipped[path] / counted if counted else math.nan
            for path, counted in self.counted.items()
        }

    def rate(self) -> float:
        """The clipped fraction of all elements; NaN where none counted."""
        counted = sum(self.counted.values())
        return sum(self.clipped.values()) / counted if counted else math.nan


class ClipCounts:
    """The totals of an optimizer, and the moment that its rates count from.

    The state must say which moment is its own, because a state may be set
    variable by variable, without a call of the optimizer. A variable of its
    own would change the number of variables, and Keras drops older states
    then. So the numbers in `exclusions` say it, of which only the sign was
    used: `1 + number` is above 0, and `-number` is not.

    Args:
        rows: Variable of shape `(n, ROW_LENGTH)`, a row of `exact_totals` for
            each of the optimizer's variables.
        exclusions: Variable of shape `(n,)`, > 0 where a variable is not
            clipped.
        paths: Of the variables.
        backend: The running one.
    """

    def __init__(
        self,
        rows: Any,
        exclusions: Any,
        paths: Sequence[str],
        backend: Backend,
    ):
        self.rows = rows
        self.exclusions = exclusions
        self._paths = tuple(paths)
        self._to_numpy = backend.to_numpy
        self._origins: dict[int, ClipStatistics] = {}

    def statistics(self, rows: np.ndarray | None = None) -> ClipStatistics:
        """The totals, or what `rows` of them say."""
        if rows is None:
            rows = self._to_numpy(self.rows)
        return statistics_of(rows, self._paths)

    def are_excluded(self) -> np.ndarray:
        """1 for each variable that is not clipped, 0 for the others."""
        return (self._to_numpy(self.exclusions) > 0).astype("float32")

    @property
    def origin(self) -> ClipStatistics | None:
        """Where rates count from; `None` for the beginning."""
        first = float(self._to_numpy(self.exclusions)[0])
        return self._origins.get(int(first - 1 if first > 0 else -first))

    @origin.setter
    def origin(self, origin: ClipStatistics | None) -> None:
        number = 0
        if origin is not None:
            # The same for the same origin, so that copies have equal states.
            totals = [
                (origin.clipped[path], origin.counted[path])
                for path in self._paths
            ]
            number = 1 + zlib.crc32(repr(totals).encode()) % _ORIGIN_NUMBERS
            self._origins.pop(number, None)
            self._origins[number] = origin
            while len(self._origins) > _ORIGINS_KEPT:
                del self._origins[next(iter(self._origins))]
        self.exclusions.assign(
            np.where(self.are_excluded() > 0, 1.0 + number, 0.0 - number)
        )

    def row_after(
        self,
        index: int,
        clipped: Tensor,
        is_counted: Tensor | None,
        is_excluded: Tensor,
        shape: Sequence[int],
    ) -> Tensor:
        """All rows after one variable was clipped.

        Args:
            index: Which variable it is.
            clipped: Booleans: which elements of its gradient were clipped.
            is_counted: Booleans: which rows of a sparse gradient stand for all
                with their index. `None`: the gradient is dense.
            is_excluded: Boolean scalar: whether it is not clipped at all.
            shape: Of the variable.
        """
        if is_counted is None:
            counted = exact_totals.digits([math.prod(shape)])
        else:
            clipped = ops.logical_and(
                clipped,
                ops.reshape(is_counted, (-1,) + (1,) * (len(shape) - 1)),
            )
            counted = exact_totals.count(is_counted, math.prod(shape[1:]))
        counted = ops.where(is_excluded, ops.zeros_like(counted), counted)
        rows = ops.convert_to_tensor(self.rows)
        row = exact_totals.add_to_rows(
            rows[index : index + 1], exact_totals.count(clipped), counted
        )
        return ops.slice_update(rows, (index, 0), row)


def statistics_of(rows: Any, paths: Sequence[str]) -> ClipStatistics:
    """A snapshot from rows of `exact_totals`, one for each path."""
    totals = exact_totals.totals_from_rows(rows)
    return ClipStatistics(
        clipped={p: t[0] for p, t in zip(paths, totals, strict=True)},
        counted={p: t[1] for p, t in zip(paths, totals, strict=True)},
    )
