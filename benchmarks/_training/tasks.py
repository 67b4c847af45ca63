"""What is trained: a problem is a model with data, a case what goes wrong.

Nothing is downloaded. Everything random comes from JAX keys, so that every
method sees the same weights, the same batches and the same spoilt steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from _training.optimizer import Array, Tree

Batch = Any


class Conditions(NamedTuple):
    """What goes wrong; numbers, so that one program serves all cases.

    Attributes:
        spoilt_share: Of the steps, from 0 to 1.
        spoilt_factor: What multiplies inputs or gradient in a spoilt step.
        change: What multiplies all gradients from the middle of a run on.
        label_noise: Share of the training data whose labels are wrong.
    """

    spoilt_share: float | Array = 0.0
    spoilt_factor: float | Array = 1.0
    change: float | Array = 1.0
    label_noise: float | Array = 0.0


CLEAN = "clean"


def spoilt_cases(
    shares: tuple[float, ...], factors: tuple[float, ...]
) -> dict[str, Conditions]:
    """A case for each share with each factor, by the names of tables."""
    return {
        f"{100 * share:g} % x{factor:g}": Conditions(share, factor)
        for factor in factors
        for share in shares
    }


# Few batches far out, and many less far.
SPOILT_GRADIENTS = {
    CLEAN: Conditions(),
    **spoilt_cases((0.03,), (100.0,)),
    **spoilt_cases((0.15,), (30.0,)),
}


@dataclass(frozen=True)
class Problem:
    """A model, its data, and the cases in which it is trained.

    Attributes:
        name: For tables and files.
        cases: Conditions by name; the first is `CLEAN`.
        steps: How many each run makes.
        target: A validation loss; how soon it is reached is reported.
        init: Makes the weights from a key.
        batch: Makes a batch from a key, from whether it is spoilt, and from
            the conditions.
        loss: Of weights on a batch.
        validation: The loss that chooses the learning rate.
        test: The loss that is reported.
        spoils_gradient: Whether a spoilt step's gradient is multiplied, as
            if it came from a loss of another scale; otherwise `batch` spoils
            the inputs.
        noise: Adds noise to a gradient; `None` for none.
    """

    name: str
    cases: dict[str, Conditions]
    steps: int
    target: float
    init: Callable[[Array], Tree]
    batch: Callable[[Array, Array, Conditions], Batch]
    loss: Callable[[Tree, Batch], Array]
    validation: Callable[[Tree], Array]
    test: Callable[[Tree], Array]
    spoils_gradient: bool = False
    noise: Callable[[Array, Tree], Tree] | None = None

    def gradients(
        self, weights: Tree, key: Array, step: Array, conditions: Conditions
    ) -> tuple[Tree, Array]:
        """The gradients of a step, and whether it is spoilt."""
        spoilt_key, batch_key, noise_key = jax.random.split(
            jax.random.fold_in(key, step), 3
        )
        is_spoilt = jax.random.bernoulli(spoilt_key, conditions.spoilt_share)
        batch = self.batch(batch_key, is_spoilt, conditions)
        gradients = jax.grad(self.loss)(weights, batch)
        if self.noise:
            gradients = self.noise(noise_key, gradients)
        scale = jnp.where(2 * step >= self.steps, conditions.change, 1.0)
        if self.spoils_gradient:
            scale = jnp.where(
                is_spoilt, scale * conditions.spoilt_factor, scale
            )
        return jax.tree.map(lambda g: scale * g, gradients), is_spoilt


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean over all labels, in nats."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def dense_kernel(key: Array, inputs: int, outputs: int) -> Array:
    """Glorot's uniform initializer, Keras's default."""
    limit = (6.0 / (inputs + outputs)) ** 0.5
    return jax.random.uniform(
        key, (inputs, outputs), minval=-limit, maxval=limit
    )


def recurrent_kernel(key: Array, units: int) -> Array:
    """An orthogonal matrix, Keras's default for recurrent layers."""
    return jax.nn.initializers.orthogonal()(key, (units, units))
