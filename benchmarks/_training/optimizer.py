"""What a method is here: pure functions in JAX, so that runs can be vmapped."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Tree = Any
Array = Any


class Step(NamedTuple):
    """What one step gives.

    Attributes:
        weights: After the step.
        state: Of the optimizer, after the step.
        is_left_out: Boolean scalar, whether the step changed nothing.
    """

    weights: Tree
    state: Tree
    is_left_out: Array


class Optimizer(NamedTuple):
    """A method of the comparison.

    Attributes:
        init: Makes the state for some weights.
        step: Takes the gradients, the state, the weights and the learning
            rate.
    """

    init: Callable[[Tree], Tree]
    step: Callable[[Tree, Tree, Tree, Array], Step]


def from_optax(
    transformation: optax.GradientTransformation,
) -> Optimizer:
    """A method of what optax calls a transformation.

    Args:
        transformation: Without learning rate, so that it can be traced.
    """

    def step(gradients, state, weights, learning_rate):
        directions, state = transformation.update(gradients, state, weights)
        weights = jax.tree.map(
            lambda w, d: w - learning_rate * d, weights, directions
        )
        return Step(weights, state, jnp.bool_(False))

    return Optimizer(transformation.init, step)


def norm(x: Array) -> Array:
    """Euclidean norm of one tensor."""
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def total_norm(tree: Tree) -> Array:
    """Euclidean norm of all tensors together."""
    return jnp.sqrt(
        sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
    )


def scaled(tree: Tree, factor: Array) -> Tree:
    """Every tensor times a scalar."""
    return jax.tree.map(lambda leaf: factor * leaf, tree)
