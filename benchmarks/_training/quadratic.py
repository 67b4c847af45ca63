"""A quadratic whose gradients have noise with heavy tails.

Chezhegov et al. 2024 (2406.04443), section 4: `x^2 / 2` with noise of the
density `3/4 * (1 + |x|)^-2.5`, whose variance is infinite. Checked against
Andron00e/Clipped-AdaGrad-and-Adam,
`Quadratic problem/heavy_tailed_convergence_demo.ipynb`. Differs: a hundred
coordinates at once, in four tensors. The first two tensors choose the learning
rate and the last two are reported: their noise is independent.
"""

import jax
import jax.numpy as jnp

from _training.tasks import CLEAN, Conditions, Problem

TENSORS, SIZE = 4, 25


def heavy_tailed(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Samples, from the inverse of `P(|x| > a) = (1 + a)^-1.5`."""
    size_key, sign_key = jax.random.split(key)
    tiny = jnp.finfo("float32").tiny
    uniform = jax.random.uniform(size_key, shape, minval=tiny)
    sign = jnp.where(jax.random.bernoulli(sign_key, 0.5, shape), 1.0, -1.0)
    return sign * (uniform ** (-2.0 / 3.0) - 1.0)


def _noise(key, gradients):
    keys = jax.random.split(key, len(gradients))
    return [
        g + heavy_tailed(k, g.shape)
        for k, g in zip(keys, gradients, strict=True)
    ]


def _mean_loss(weights):
    return jnp.mean(jnp.square(jnp.stack(weights))) / 2.0


def problem() -> Problem:
    """The quadratic; nothing of it is ever spoilt beside its noise."""
    return Problem(
        name="quadratic",
        cases={CLEAN: Conditions()},
        steps=2000,
        target=0.01,
        init=lambda key: [jnp.ones(SIZE)] * TENSORS,
        batch=lambda key, is_spoilt, conditions: None,
        loss=lambda weights, batch: sum(
            jnp.sum(jnp.square(w)) / 2.0 for w in weights
        ),
        validation=lambda weights: _mean_loss(weights[: TENSORS // 2]),
        test=lambda weights: _mean_loss(weights[TENSORS // 2 :]),
        noise=_noise,
    )
