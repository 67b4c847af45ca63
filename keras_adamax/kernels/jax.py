"""JAX: BCOO gradients, donated buffers, selection in place of branches."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.core import Tracer
from jax.experimental import sparse as jax_sparse

from keras_adamax.kernels import (
    Changes,
    Step,
    _jax_compilations,
    _jax_compiled,
    _selection,
    _xla_form,
)
from keras_adamax.update_rule import Hyperparameters, sum_repeated_rows

Tensor = Any

CHOICES = ("auto", "compiled", "fused", "reference")


def update_dense(step: Step) -> Sequence[int]:
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
        compiled=on_one_cpu and _jax_compiled.serves(step.kernel, tensors[1]),
    )
    *new_state, counts = _update(
        tensors,
        step.hyperparameters(step.learning_rate, step.dtype),
        _value(step.exclusions),
        _value(step.clip_counts),
        _selection.is_allowed(),
        settings=settings,
    )
    for variables, values in zip(state, new_state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    if step.clip_counts is not None:
        step.clip_counts.assign(counts)
    return ()


class _Settings(NamedTuple):
    """What is known when a step is traced.

    Attributes:
        indices: As of `Step`.
        clips: Whether gradients are clipped.
        in_slabs: Whether elements are counted in slabs (CPU).
        compiled: Whether the compiled library updates.
    """

    indices: tuple[int, ...]
    clips: bool
    in_slabs: bool
    compiled: bool


_Updated = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor | None]


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
) -> _Updated:
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
) -> _Updated:
    """The library's update; its derivatives are those of XLA's form."""
    weights, momentums, norms, clipped = _jax_compiled.update(
        tensors,
        hyperparameters,
        exclusions,
        is_allowed,
        settings.indices,
        settings.clips,
    )
    counts = None
    if rows is not None:
        counts = _xla_form.next_counts(
            rows,
            clipped,
            [w.shape for w in weights],
            settings.indices,
            exclusions,
        )
    return weights, momentums, norms, counts


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
) -> _Updated:
    """XLA's form."""
    indices, clips, in_slabs, _ = settings
    bounds: list[_xla_form.Bounds | None] = [None] * len(indices)
    if clips:
        dtype = keras.backend.standardize_dtype(tensors[3][0].dtype)
        bounds = list(
            _xla_form.bounds(hyperparameters, exclusions, indices, dtype)
        )
    new: list[tuple[Tensor, Tensor, Tensor]] = []
    clipped: list[list[Tensor]] = []
    shapes = [w.shape for w in tensors[1]]
    sizes = [math.prod(shape) for shape in shapes]
    for start, end in _xla_form.groups(sizes, on_cpu=_is_on_cpu()):
        if new:
            hyperparameters = _xla_form.after(
                new[-1], clipped[-1] if clipped else (), hyperparameters
            )
        for i in range(start, end):
            g, w, m, u = (values[i] for values in tensors)
            new.append(_xla_form.update(g, w, m, u, hyperparameters, bounds[i]))
            if rows is not None:
                norm = new[-1][2]
                clipped.append(_clipped_parts(g, norm, in_slabs=in_slabs))
    counts = None
    if rows is not None:
        counts = _xla_form.next_counts(
            rows,
            _xla_form.totals(clipped, max(sizes)),
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
    return weights, momentums, norms, counts


# Traced once for each shape, and not for each variable.
_clipped_parts = jax.jit(
    _xla_form.clipped_parts, static_argnames="in_slabs", inline=True
)


def no_gradient() -> contextlib.AbstractContextManager:
    """JAX differentiates functions: there is nothing to turn off."""
    return contextlib.nullcontext()


def outside_of_graph() -> contextlib.AbstractContextManager:
    """JAX traces no assignments: there is nothing to leave."""
    return contextlib.nullcontext()


def shared_compilations(given: Any = None) -> contextlib.AbstractContextManager:
    """Processes find what others compiled in a folder of this block."""
    return _jax_compilations.shared(given)


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The variable's value on the host.

    Raises:
        RuntimeError: If `fit` holds the value, and not the variable.
    """
    try:
        value = variable.value
    except TypeError:
        # `fit` leaves it without a value and without an initializer.
        value = None
    # A tracer has no buffer that could be deleted.
    if value is None or getattr(value, "is_deleted", bool)():
        raise RuntimeError(
            "The state of this optimizer is inside a running `fit`. In a "
            "callback, reach the optimizer as `self.model.optimizer`: Keras "
            "then brings its state up to date first."
        )
    return keras.ops.convert_to_numpy(value)


def is_sparse(gradient: Any) -> bool:
    """Whether `gradient` holds some rows only."""
    return isinstance(gradient, jax_sparse.BCOO)


def rows(gradient: jax_sparse.BCOO) -> tuple[Tensor, Tensor]:
    """Indices, shape `(n,)`, and values, shape `(n, ...)`.

    BCOO pads with indices past the end: their values are made 0.
    """
    if gradient.n_batch != 0 or gradient.n_sparse != 1:
        raise ValueError(
            "A sparse gradient must hold whole rows: a BCOO array with "
            "n_batch=0 and n_sparse=1. Received: "
            f"n_batch={gradient.n_batch}, n_sparse={gradient.n_sparse}, "
            f"shape={gradient.shape}. Make it with `BCOO.fromdense(x, "
            "n_dense=x.ndim - 1)` or `BCOO((values, indices[:, None]), ...)`."
        )
    indices = gradient.indices[:, 0]
    is_padding = (indices >= gradient.shape[0]).reshape(
        (-1,) + (1,) * (gradient.data.ndim - 1)
    )
    return indices, jnp.where(is_padding, 0.0, gradient.data)


def summed_rows(gradient: jax_sparse.BCOO) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, summed values, and which rows to count, shape `(n,)`."""
    indices, values = rows(gradient)
    values, is_first = sum_repeated_rows(indices, values)
    return indices, values, is_first & (indices < gradient.shape[0])


def with_values(gradient: jax_sparse.BCOO, values: Tensor) -> jax_sparse.BCOO:
    """The same rows with other values."""
    return jax_sparse.BCOO((values, gradient.indices), shape=gradient.shape)


def to_dense(gradient: jax_sparse.BCOO, shape: Sequence[int]) -> Tensor:
    """The gradient as a dense array of `shape`."""
    del shape
    return gradient.todense()


def take_rows(variable: Any, indices: Tensor) -> Tensor:
    """Some rows of a variable; an index past the end is BCOO's padding."""
    return jnp.take(variable.value, indices, axis=0, mode="clip")


def assign_rows(variable: Any, indices: Tensor, values: Tensor) -> None:
    """Writes some rows of a variable (in place where it is donated).

    Indices may repeat when their values are the same.
    """
    value = variable.value
    variable.assign(
        value.at[indices].set(values.astype(value.dtype), mode="drop")
    )


def update_rows(step: Step) -> Sequence[int]:
    """No fused update takes rows: gives all positions."""
    return range(len(step.gradients))


def is_replicated() -> bool:
    """Whether each replica must be updated by itself: never."""
    return False


def is_finite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """Whether all elements of all gradients are finite."""
    tensors = [g.data if is_sparse(g) else g for g in gradients]
    on_one_cpu = _is_on_one_cpu()
    if on_one_cpu and _jax_compiled.serves(kernel, tensors):
        return _jax_compiled.are_finite(tensors)
    return _are_finite(tensors, on_one_cpu)


@functools.partial(jax.jit, static_argnames="in_slabs", inline=True)
def _are_finite(tensors: list[Tensor], in_slabs: bool) -> Tensor:
    return _xla_form.are_finite(tensors, in_slabs)


def can_sample(variable: Any) -> bool:
    """Whether some elements of a variable can be had without all of it."""
    del variable
    # A part of what is spread over devices would gather it.
    return jax.device_count() == 1


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """The gradients: JAX has no replicas that see only their own."""
    return list(gradients)


def constant(values: tuple[float, ...], dtype: str, other: Tensor) -> Tensor:
    """A vector of numbers, where `other` is."""
    del other
    return jnp.asarray(values, dtype)


def count_above(
    gradients: Sequence[Tensor],
    are_samples: bool,
    norms: Sequence[keras.Variable],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
    kernel: str,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32.

    Args:
        gradients: Of any float dtype.
        are_samples: Whether they are what `spikes.sample_of` gave, and not
            whole.
        norms: Of the whole variables.
        strides: Of the samples.
        clip_multiplier: Scalar in the dtype of the norms.
        clip_epsilon: Scalar in the dtype of the norms.
        kernel: The chosen kernel.
    """
    values = list(map(_value, norms))
    on_one_cpu = _is_on_one_cpu()
    if on_one_cpu and _jax_compiled.serves(kernel, [*gradients, *values]):
        return _jax_compiled.count_above(
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
    return _xla_form.count_above(
        gradients,
        are_samples,
        norms,
        strides,
        clip_multiplier,
        clip_epsilon,
        in_slabs,
    )


def value_if(
    condition: Tensor, function: Callable[[], Tensor], other: Tensor
) -> Tensor:
    """`function()` where the condition holds, else `other`.

    Args:
        condition: Boolean scalar.
        function: Makes a tensor like `other`.
        other: The tensor otherwise.
    """
    # XLA fuses it, and a branch makes a GPU wait for the host.
    return jnp.where(condition, function(), other)


def apply_if(
    is_applied: Tensor,
    apply: Callable[[list, list], None],
    gradients: list,
    variables: list,
    find_changes: Callable[[], Changes],
) -> None:
    """Calls `apply(gradients, variables)`, or changes nothing.

    Args:
        is_applied: Boolean scalar: whether it is called.
        apply: The update.
        gradients: For `apply`.
        variables: For `apply`.
        find_changes: Tells what `apply` may change.
    """
    if not isinstance(is_applied, Tracer):
        if is_applied:
            apply(gradients, variables)
        return
    changes = find_changes()
    if changes.small is not None and _library_updates(changes):
        # A branch costs XLA a quarter of a step of 160 variables.
        before = [v.value for v in changes.small]
        with _selection.allow(is_applied):
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
    return _is_on_one_cpu() and _jax_compiled.serves(
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
    apply: Callable[[list, list], None],
    gradients: list,
    variables: list,
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


def measure(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    previous: Sequence[Tensor],
    current: Sequence[Tensor],
    step: Tensor,
) -> Tensor:
    """`pack([function(p, c), ...], step)`, over pairs of values, fused."""
    # Blocks of a value that is spread over devices would gather all of it.
    is_spread = any(not x.sharding.is_fully_replicated for x in current)
    return _measure(
        function, pack, not is_spread, list(previous), list(current), step
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    in_blocks: bool,
    previous: list[Tensor],
    current: list[Tensor],
    step: Tensor,
) -> Tensor:
    parts: list[Tensor] = []
    event = step
    for values in zip(previous, current, strict=True):
        # One after another, so that XLA reuses what little memory each needs.
        parts.append(function(*after(event, *values), in_blocks=in_blocks))
        event = parts[-1]
    return pack(parts, step)


def overwrite(kept: list[Tensor], values: Sequence[Tensor]) -> None:
    """Makes `kept` a copy of `values`, in the memory that it has."""
    kept.clear()  # frees it
    kept.extend(_copies(list(values)))


@jax.jit
def _copies(values: list[Tensor]) -> list[Tensor]:
    return [jnp.copy(value) for value in values]


def after(event: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The values, made known only when `event` has been computed."""
    return jax.lax.optimization_barrier((*values, event))[:-1]


def count_integers(values: Tensor, length: int) -> Tensor:
    """How often each of `0, ..., length - 1` occurs."""
    return jnp.bincount(values, length=length)


def place_like(value: Tensor, other: Tensor) -> Tensor:
    """`value` on the devices of `other`."""
    return jax.device_put(value, other.sharding)
