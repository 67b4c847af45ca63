"""How many elements of a step's gradients exceed their bounds.

What the spike gate asks before anything is written. The gradients come as the
clipping is going to be given them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import ops

from keras_adamax import backends, spike_rule, updates
from keras_adamax.spike_rule import Counts

Tensor = Any


class Given(NamedTuple):
    """The gradients of a step.

    Attributes:
        gradients: Dense tensors and sparse rows.
        are_samples: Whether the dense ones are what
            `spike_rule.sample_of` gave.
        indices: Which of the optimizer's variables they are of.
        strides: Of their samples.
    """

    gradients: Sequence[Any]
    are_samples: bool
    indices: Sequence[int]
    strides: Sequence[int]


class Treatment(NamedTuple):
    """What Keras does to gradients before it gives them to the update.

    Attributes:
        loss_scale_factor: They are divided by it.
        gradient_accumulation_steps: Calls of which the mean is taken.
        accumulated: The sums so far, of all the optimizer's variables.
        clip: Keras's clipping.
        is_elementwise: Whether a sample can be clipped alone. A norm is one of
            all elements.
        is_needed: Whether any of it changes a gradient.
    """

    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    accumulated: Sequence[Any]
    clip: Callable[[Sequence[Any]], list[Any]]
    is_elementwise: bool
    is_needed: bool


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


def treat(
    gradients: Sequence[Any],
    indices: Sequence[int],
    shapes: Sequence[Sequence[int]],
    strides: Sequence[int],
    treatment: Treatment,
) -> Given:
    """The gradients as the clipping is going to be given them.

    Args:
        gradients: Dense tensors and sparse rows.
        indices: Which of the optimizer's variables they are of.
        shapes: Of these.
        strides: Of their samples.
        treatment: What Keras does before.
    """
    backend = backends.load()

    def sampled(tensors: Sequence[Any]) -> list[Any]:
        return [
            x
            if backend.is_sparse(x)
            else spike_rule.sample_of(ops.convert_to_tensor(x), shape, stride)
            for x, shape, stride in zip(tensors, shapes, strides, strict=True)
        ]

    given = list(gradients)
    are_samples = treatment.is_elementwise and treatment.is_needed
    if are_samples:
        given = sampled(given)
    if treatment.loss_scale_factor is not None:
        given = [g / treatment.loss_scale_factor for g in given]
    if treatment.gradient_accumulation_steps:
        accumulated = [treatment.accumulated[i] for i in indices]
        if are_samples:
            accumulated = sampled(accumulated)
        given = [
            (g + a) / treatment.gradient_accumulation_steps
            for g, a in zip(given, accumulated, strict=True)
        ]
    given = treatment.clip(given)
    if backend.is_replicated() and not are_samples:
        given = sampled(given)
        are_samples = True
    return Given(
        backend.sum_over_replicas(given), are_samples, indices, strides
    )


def count_above(
    given: Given, bounds: Bounds, kernel: str
) -> tuple[list[Counts], list[int]]:
    """What exceeds its bound.

    Args:
        given: The gradients.
        bounds: Their bounds.
        kernel: The chosen kernel.

    Returns:
        What was found, and the indices of the variables in that order.
    """
    backend = backends.load()
    counts: list[Counts] = []
    order: list[int] = []
    by_dtype: dict[str, list[int]] = {}
    for position, (gradient, i) in enumerate(
        zip(given.gradients, given.indices, strict=True)
    ):
        if backend.is_sparse(gradient):
            counts.append(_count_rows(gradient, i, bounds))
            order.append(i)
        else:
            by_dtype.setdefault(bounds.dtypes[i], []).append(position)
    for dtype, positions in by_dtype.items():
        indices = [given.indices[k] for k in positions]
        strides = [given.strides[k] for k in positions]
        norms = [bounds.norms[i] for i in indices]
        found = updates.load().count_above(
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
            spike_rule.counts_of(
                found,
                [norm.shape for norm in norms],
                strides,
                backend.constant,
                are_excluded,
            )
        )
        order += indices
    return counts, order


def _count_rows(gradient: Any, index: int, bounds: Bounds) -> Counts:
    backend = backends.load()
    norm = bounds.norms[index]
    rows, values, is_counted = backend.summed_rows(gradient)
    above = spike_rule.are_above(
        values,
        backend.take_rows(norm, rows),
        *bounds.scalars(bounds.dtypes[index]),
    )
    return spike_rule.counts_of_rows(
        above,
        tuple(norm.shape[1:]),
        is_counted,
        None if bounds.are_excluded is None else bounds.are_excluded[index],
    )
