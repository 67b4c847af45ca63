"""JAX: BCOO gradients and donated buffers."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.experimental import sparse as jax_sparse

from keras_adamax.update_rule import sum_repeated_rows

Tensor = Any


def no_gradient() -> contextlib.AbstractContextManager:
    """JAX differentiates functions: there is nothing to turn off."""
    return contextlib.nullcontext()


def outside_of_graph() -> contextlib.AbstractContextManager:
    """JAX traces no assignments: there is nothing to leave."""
    return contextlib.nullcontext()


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The variable's value on the host.

    Raises:
        RuntimeError: If `fit`, or a step that donates its buffers, has the
            value, and not the variable.
    """
    try:
        value = variable.value
    except TypeError:
        # `fit` leaves it without a value and without an initializer.
        value = None
    # A tracer has no buffer that could be deleted.
    if value is None or getattr(value, "is_deleted", bool)():
        raise RuntimeError(
            "The state of this optimizer is not in its variables: a step has "
            "taken their values over. In a callback of `fit`, reach the "
            "optimizer as `self.model.optimizer`: Keras then brings its state "
            "up to date first. In a training loop of your own that donates "
            "buffers, write the new values back first, with "
            "`variable.assign(value)`."
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


def is_replicated() -> bool:
    """Whether each replica must be updated by itself: never."""
    return False


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


def call_untraced(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function: there is no `torch.compile` here."""
    return function(*arguments)


def value_if(
    condition: Tensor, function: Callable[[], Tensor], other: Tensor
) -> Tensor:
    """`function()` where the condition holds, else `other`."""
    # XLA fuses it, and a branch makes a GPU wait for the host.
    return jnp.where(condition, function(), other)
