"""TensorFlow: `tf.IndexedSlices` and distribution strategies."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_adamax.update_rule import sum_repeated_rows

Tensor = Any


class RowGradient(tf.IndexedSlices):
    """`tf.IndexedSlices` that Keras can divide by a loss scale."""

    def __truediv__(self, divisor: Tensor) -> "RowGradient":
        return RowGradient(
            self.values / tf.cast(divisor, self.values.dtype),
            self.indices,
            self.dense_shape,
        )


def resource(variable: Any) -> Any:
    """TensorFlow's variable, which Keras's optimizers take as well."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def resources(variables: Sequence[Any]) -> list[Any]:
    """TensorFlow's variable of each."""
    return [resource(variable) for variable in variables]


def no_gradient() -> contextlib.AbstractContextManager:
    """A tape does not follow assignments: there is nothing to turn off."""
    return contextlib.nullcontext()


def outside_of_graph() -> contextlib.AbstractContextManager:
    """Where an assignment is made now, and not a part of a graph."""
    return tf.init_scope()


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The variable's value on the host."""
    return keras.ops.convert_to_numpy(variable)


def is_sparse(gradient: Any) -> bool:
    """Whether `gradient` holds some rows only."""
    return isinstance(gradient, tf.IndexedSlices)


def rows(gradient: tf.IndexedSlices) -> tuple[Tensor, Tensor]:
    """Indices, shape `(n,)`, and values, shape `(n, ...)`."""
    return gradient.indices, gradient.values


def summed_rows(gradient: tf.IndexedSlices) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, summed values, and which rows to count, shape `(n,)`."""
    values, is_first = sum_repeated_rows(gradient.indices, gradient.values)
    return gradient.indices, values, is_first


def with_values(gradient: tf.IndexedSlices, values: Tensor) -> RowGradient:
    """The same rows with other values."""
    return RowGradient(values, gradient.indices, gradient.dense_shape)


def to_dense(gradient: tf.IndexedSlices, shape: Sequence[int]) -> Tensor:
    """The gradient as a dense tensor of `shape`."""
    return tf.math.unsorted_segment_sum(
        gradient.values, gradient.indices, shape[0]
    )


def take_rows(variable: Any, indices: Tensor) -> Tensor:
    """Some rows of a variable, read without reading the others."""
    return tf.gather(resource(variable), indices)


def assign_rows(variable: Any, indices: Tensor, values: Tensor) -> None:
    """Writes some rows of a variable in place.

    Indices may repeat when their values are the same.
    """
    variable = resource(variable)
    values = tf.cast(values, variable.dtype)
    variable.scatter_update(tf.IndexedSlices(values, indices))


def is_replicated() -> bool:
    """Whether each replica must be updated by itself: under a strategy."""
    return tf.distribute.has_strategy()


def can_sample(variable: Any) -> bool:
    """Whether some elements of a variable can be had without all of it."""
    del variable
    return True


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """The sums that Keras is going to take.

    Of sparse gradients they are the rows of all replicas, which the update
    sums by index.
    """
    if not gradients or not is_one_of_many_replicas():
        return list(gradients)
    return tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, list(gradients)
    )


def constant(values: tuple[float, ...], dtype: str, other: Tensor) -> Tensor:
    """A vector of numbers, where `other` is."""
    del other
    return tf.constant(values, dtype)


def call_untraced(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function: there is no `torch.compile` here."""
    return function(*arguments)


def value_if(
    condition: Tensor, function: Callable[[], Tensor], other: Tensor
) -> Tensor:
    """`function()` where the condition holds, else `other`."""
    return tf.cond(condition, function, lambda: other)


def is_one_of_many_replicas() -> bool:
    """Whether this is code of a replica that sees its own gradients only."""
    return (
        tf.distribute.has_strategy()
        and tf.distribute.get_replica_context() is not None
        and tf.distribute.get_strategy().num_replicas_in_sync > 1
    )
