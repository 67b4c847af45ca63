"""JAX: C++ on one CPU, else what XLA makes; selection, not branches."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax.core import Tracer

from keras_adamax.backends.jax import is_sparse
from keras_adamax.backends.step import Changes, Step, Sums, Updated
from keras_adamax.native import jax as native_jax
from keras_adamax.update_rule import Hyperparameters
from keras_adamax.updates import selection, xla

Tensor = Any

CHOICES = ("auto", "compiled", "fused", "reference")


def update_dense(step: Step) -> Updated:
    """Updates all variables of `step`.

    On a CPU by a compiled library, where there is one and JAX has one device;
    else in the form that XLA does best.
    """
    state = (step.weights, step.momentums, step.norms)
    tensors = [
        list(map(_value, variables)) for variables in (step.gradients, *state)
    ]
    on_one_cpu = _is_on_one_cpu()
    settings = _Settings(
        indices=step.indices,
        clips=step.clip_gradients,
        in_slabs=on_one_cpu,
        compiled=on_one_cpu and native_jax.serves(step.kernel, tensors[1]),
        measures=step.measures,
    )
    *new_state, counts, sums = _update(
        tensors,
        step.hyperparameters(step.learning_rate, step.dtype),
        _value(step.exclusions),
        _value(step.clip_counts),
        selection.is_allowed(),
        settings=settings,
    )
    for variables, values in zip(state, new_state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    if step.clip_counts is not None:
        step.clip_counts.assign(counts)
    return Updated((), () if sums is None else [Sums(step.indices, sums)])


class _Settings(NamedTuple):
    """What is known when a step is traced.

    Attributes:
        indices: As of `Step`.
        clips: Whether gradients are clipped.
        in_slabs: Whether elements are counted in slabs (CPU).
        compiled: Whether the compiled library updates.
        measures: Whether sums are asked for.
    """

    indices: tuple[int, ...]
    clips: bool
    in_slabs: bool
    compiled: bool
    measures: bool


# Weights, momentums, norms; rows of `clip_counts`; sums.
_Values = tuple[
    list[Tensor], list[Tensor], list[Tensor], Tensor | None, Tensor | None
]


def _is_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _is_on_one_cpu() -> bool:
    # Slabs, and calls of the library, would gather what is spread over devices.
    return _is_on_cpu() and jax.device_count() == 1


def _value(x: Any) -> Any:
    return x.value if isinstance(x, keras.Variable) else x


# Compiled by itself where the step is not, and a part of it where it is.
@functools.partial(jax.jit, static_argnames="settings", inline=True)
def _update(
    tensors: Sequence[Sequence[Tensor]],
    hyperparameters: Hyperparameters,
    exclusions: Tensor | None,
    rows: Tensor | None,
    is_allowed: Tensor | None,
    settings: _Settings,
) -> _Values:
    update = _update_compiled if settings.compiled else _update_fused
    return update(
        settings, tensors, hyperparameters, exclusions, rows, is_allowed
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _update_compiled(
    settings: _Settings,
    tensors: Sequence[Sequence[Tensor]],
    hyperparameters: Hyperparameters,
    exclusions: Tensor | None,
    rows: Tensor | None,
    is_allowed: Tensor | None,
) -> _Values:
    """The library's update; its derivatives are those of XLA's form."""
    weights, momentums, norms, clipped, sums = native_jax.update(
        tensors,
        hyperparameters,
        exclusions,
        is_allowed,
        settings.indices,
        settings.clips,
        settings.measures,
    )
    counts = None
    if rows is not None:
        counts = xla.next_counts(
            rows,
            clipped,
            [w.shape for w in weights],
            settings.indices,
            exclusions,
        )
    return weights, momentums, norms, counts, sums


@_update_compiled.defjvp
def _differentiate(settings: _Settings, primals: Any, tangents: Any) -> Any:
    return jax.jvp(
        functools.partial(_update_fused, settings), primals, tangents
    )


def _update_fused(
    settings: _Settings,
    tensors: Sequence[Sequence[Tensor]],
    hyperparameters: Hyperparameters,
    exclusions: Tensor | None,
    rows: Tensor | None,
    is_allowed: Tensor | None,
) -> _Values:
    """XLA's form."""
    indices, clips, in_slabs, _, measures = settings
    bounds: list[xla.Bounds | None] = [None] * len(indices)
    if clips:
        dtype = keras.backend.standardize_dtype(tensors[3][0].dtype)
        bounds = list(xla.bounds(hyperparameters, exclusions, indices, dtype))
    new: list[tuple[Tensor, Tensor, Tensor]] = []
    sums: list[Any] = []
    clipped: list[list[Tensor]] = []
    shapes = [w.shape for w in tensors[1]]
    sizes = [math.prod(shape) for shape in shapes]
    for start, end in xla.groups(sizes, on_cpu=_is_on_cpu()):
        if new:
            hyperparameters = xla.after(
                new[-1], clipped[-1] if clipped else (), hyperparameters
            )
        for i in range(start, end):
            g, w, m, u = (values[i] for values in tensors)
            values, its = xla.update(
                g, w, m, u, hyperparameters, bounds[i], measures
            )
            new.append(values)
            sums.append(its)
            if rows is not None:
                norm = new[-1][2]
                clipped.append(_clipped_parts(g, norm, in_slabs=in_slabs))
    counts = None
    if rows is not None:
        counts = xla.next_counts(
            rows,
            xla.totals(clipped, max(sizes)),
            shapes,
            indices,
            exclusions,
        )
    if is_allowed is not None:
        new = jax.tree.map(
            lambda value, old: jnp.where(is_allowed, value, old),
            new,
            list(zip(*tensors[1:], strict=True)),
        )
    weights, momentums, norms = map(list, zip(*new, strict=True))
    return (
        weights,
        momentums,
        norms,
        counts,
        jnp.concatenate(sums) if measures else None,
    )


# Traced once for each shape, and not for each variable.
_clipped_parts = jax.jit(
    xla.clipped_parts, static_argnames="in_slabs", inline=True
)


def update_rows(step: Step) -> Updated:
    """No fused update takes rows: gives all positions."""
    return Updated(range(len(step.gradients)))


def is_finite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """Whether all elements of all gradients are finite."""
    tensors = [g.data if is_sparse(g) else g for g in gradients]
    on_one_cpu = _is_on_one_cpu()
    if on_one_cpu and native_jax.serves(kernel, tensors):
        return jnp.all(native_jax.count_nonfinite(tensors) == 0)
    return _are_finite(tensors, on_one_cpu)


def count_nonfinite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """How many elements of each gradient are NaN or infinite."""
    tensors = [g.data if is_sparse(g) else g for g in gradients]
    on_one_cpu = _is_on_one_cpu()
    if on_one_cpu and native_jax.serves(kernel, tensors):
        return native_jax.count_nonfinite(tensors)
    return _count_nonfinite(tensors, on_one_cpu)


@functools.partial(jax.jit, static_argnames="in_slabs", inline=True)
def _count_nonfinite(tensors: list[Tensor], in_slabs: bool) -> Tensor:
    return xla.count_nonfinite(tensors, in_slabs)


@functools.partial(jax.jit, static_argnames="in_slabs", inline=True)
def _are_finite(tensors: list[Tensor], in_slabs: bool) -> Tensor:
    return xla.are_finite(tensors, in_slabs)


def count_above(
    gradients: Sequence[Tensor],
    are_samples: bool,
    norms: Sequence[keras.Variable],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
    kernel: str,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32."""
    values = list(map(_value, norms))
    on_one_cpu = _is_on_one_cpu()
    if on_one_cpu and native_jax.serves(kernel, [*gradients, *values]):
        return native_jax.count_above(
            gradients, values, strides, clip_multiplier, clip_epsilon
        )
    return _count_above(
        list(gradients),
        values,
        clip_multiplier,
        clip_epsilon,
        are_samples=are_samples,
        strides=tuple(strides),
        in_slabs=on_one_cpu,
    )


@functools.partial(
    jax.jit, static_argnames=("are_samples", "strides", "in_slabs"), inline=True
)
def _count_above(
    gradients: list[Tensor],
    norms: list[Tensor],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
    are_samples: bool,
    strides: tuple[int, ...],
    in_slabs: bool,
) -> Tensor:
    return xla.count_above(
        gradients,
        are_samples,
        norms,
        strides,
        clip_multiplier,
        clip_epsilon,
        in_slabs,
    )


def apply_if(
    is_applied: Tensor,
    apply: Callable[[list, list | None], None],
    gradients: list,
    variables: list | None,
    find_changes: Callable[[], Changes],
) -> None:
    """Calls `apply(gradients, variables)`, or changes nothing."""
    if not isinstance(is_applied, Tracer):
        if is_applied:
            apply(gradients, variables)
        return
    changes = find_changes()
    if changes.small is not None and _library_updates(changes):
        # A branch costs XLA a quarter of a step of 160 variables.
        before = [v.value for v in changes.small]
        with selection.allow(is_applied):
            apply(gradients, variables)
        _select(is_applied, changes.small, before)
    elif _is_on_cpu():
        # In place, where a selection keeps a copy of all that it may restore.
        _branch(is_applied, apply, gradients, variables, changes.all)
    else:
        # A branch makes a GPU wait for the host.
        before = [v.value for v in changes.all]
        apply(gradients, variables)
        _select(is_applied, changes.all, before)


def _library_updates(changes: Changes) -> bool:
    return _is_on_one_cpu() and native_jax.serves(
        changes.kernel, [v.value for v in changes.weights]
    )


def _select(
    is_applied: Tensor, variables: Sequence[Any], before: Sequence[Tensor]
) -> None:
    for variable, old in zip(variables, before, strict=True):
        value = variable.value
        if value is not old:
            variable.assign(jnp.where(is_applied, value, old))


def _branch(
    is_applied: Tensor,
    apply: Callable[[list, list | None], None],
    gradients: list,
    variables: list | None,
    changed: Sequence[Any],
) -> None:
    def assign(values: Sequence[Tensor]) -> None:
        for variable, value in zip(changed, values, strict=True):
            variable.assign(value)

    def updated(values: list[Tensor], gradients: list) -> list[Tensor]:
        assign(values)
        apply(gradients, variables)
        return [v.value for v in changed]

    def unchanged(values: list[Tensor], gradients: list) -> list[Tensor]:
        del gradients
        return values

    before = [v.value for v in changed]
    assign(jax.lax.cond(is_applied, updated, unchanged, before, gradients))
