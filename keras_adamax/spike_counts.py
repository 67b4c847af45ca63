"""How many elements of a step's gradients exceed their bounds.

What the spike gate asks before anything is written. The gradients come as the
clipping is going to be given them.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from keras import ops

from keras_adamax import spikes
from keras_adamax.spikes import Counts

Tensor = Any


class Given(NamedTuple):
    """The gradients of a step.

    Attributes:
        gradients: Dense tensors and sparse rows.
        are_samples: Whether the dense ones are what `spikes.sample_of` gave.
        indices: Which of the optimizer's variables they are of.
        strides: Of their samples.
    """

    gradients: Sequence[Any]
    are_samples: bool
    indices: Sequence[int]
    strides: Sequence[int]


class Bounds(NamedTuple):
    """What bounds are made of.

    Attributes:
        norms: Of all the optimizer's variables, before the step.
        dtypes: Of the norms.
        scalars: Gives `clip_multiplier` and `clip_epsilon` in a dtype.
        are_excluded: Booleans: which of all variables are not clipped. `None`:
            all are.
    """

    norms: Sequence[Any]
    dtypes: Sequence[Any]
    scalars: Callable[[str], tuple[Tensor, Tensor]]
    are_excluded: Tensor | None


def count_above(
    given: Given, bounds: Bounds, backend: ModuleType, kernel: str
) -> tuple[list[Counts], list[int]]:
    """What exceeds its bound.

    Args:
        given: The gradients.
        bounds: Their bounds.
        backend: Of `kernels.load()`.
        kernel: The chosen kernel.

    Returns:
        What was found, and the indices of the variables in that order.
    """
    counts: list[Counts] = []
    order: list[int] = []
    by_dtype: dict[str, list[int]] = {}
    for position, (gradient, i) in enumerate(
        zip(given.gradients, given.indices, strict=True)
    ):
        if backend.is_sparse(gradient):
            counts.append(_count_rows(gradient, i, bounds, backend))
            order.append(i)
        else:
            by_dtype.setdefault(bounds.dtypes[i], []).append(position)
    for dtype, positions in by_dtype.items():
        indices = [given.indices[k] for k in positions]
        strides = [given.strides[k] for k in positions]
        norms = [bounds.norms[i] for i in indices]
        found = backend.count_above(
            [given.gradients[k] for k in positions],
            given.are_samples,
            norms,
            strides,
            *bounds.scalars(dtype),
            kernel,
        )
        are_excluded = bounds.are_excluded
        if are_excluded is not None:
            where = backend.constant(tuple(indices), "int32", are_excluded)
            are_excluded = ops.take(are_excluded, where)
        counts.append(
            spikes.counts_of(
                found,
                [norm.shape for norm in norms],
                strides,
                backend.constant,
                are_excluded,
            )
        )
        order += indices
    return counts, order


def _count_rows(
    gradient: Any, index: int, bounds: Bounds, backend: ModuleType
) -> Counts:
    norm = bounds.norms[index]
    rows, values, is_counted = backend.summed_rows(gradient)
    above = spikes.are_above(
        values,
        backend.take_rows(norm, rows),
        *bounds.scalars(bounds.dtypes[index]),
    )
    return spikes.counts_of_rows(
        above,
        tuple(norm.shape[1:]),
        is_counted,
        None if bounds.are_excluded is None else bounds.are_excluded[index],
    )
