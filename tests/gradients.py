"""Gradients in the form that each backend has for them."""

import keras
import numpy as np


def sparse(indices, values, num_rows):
    """Rows of a gradient: `tf.IndexedSlices`, `BCOO` or sparse COO."""
    backend = keras.backend.backend()
    shape = (num_rows, *np.shape(values)[1:])
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.IndexedSlices(
            tf.constant(values), tf.constant(indices), tf.constant(shape)
        )
    if backend == "jax":
        import jax.numpy as jnp
        from jax.experimental import sparse as jax_sparse

        # Padded, as JAX pads, to one of a few sizes: it compiles for each.
        size = next(s for s in (1, num_rows, 2 * num_rows) if len(indices) <= s)
        missing = size - len(indices)
        indices = np.pad(indices, (0, missing), constant_values=num_rows)
        values = np.concatenate([values, np.ones((missing, *shape[1:]), "f")])
        return jax_sparse.BCOO(
            (jnp.asarray(values), jnp.asarray(indices)[:, None]), shape=shape
        )
    import torch

    return torch.sparse_coo_tensor(
        torch.tensor(np.asarray(indices, "int64"))[None],
        torch.tensor(values),
        shape,
        check_invariants=True,
    )


def to_backend(gradient, variable):
    """An array, a pair (indices, values) or None, for an optimizer."""
    if gradient is None:
        return None
    if isinstance(gradient, tuple):
        return sparse(*gradient, variable.shape[0])
    return keras.ops.convert_to_tensor(gradient, dtype=variable.dtype)


def apply(optimizer, gradients, variables):
    """One eager step."""
    optimizer.apply(
        [to_backend(g, v) for g, v in zip(gradients, variables, strict=True)],
        variables,
    )


def stepper(optimizer, variables):
    """A function of gradients that makes a step: `apply`, compiled on JAX.

    JAX without compilation takes a second for what compiled takes a
    millisecond; eager steps have tests of their own.
    """
    if keras.backend.backend() != "jax":
        return lambda gradients: apply(optimizer, gradients, variables)
    import jax

    optimizer.build(variables)
    compiled = jax.jit(optimizer.stateless_apply)

    def step(gradients):
        new_values, new_state = compiled(
            [v.value for v in optimizer.variables],
            [
                to_backend(g, v)
                for g, v in zip(gradients, variables, strict=True)
            ],
            [v.value for v in variables],
        )
        for variable, value in zip(variables, new_values, strict=True):
            variable.assign(value)
        for variable, value in zip(optimizer.variables, new_state, strict=True):
            variable.assign(value)

    return step


def numpy(variable):
    """A variable's value, in float64."""
    return keras.ops.convert_to_numpy(variable).astype("float64")
