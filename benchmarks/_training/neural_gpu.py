"""A small Neural GPU that multiplies binary numbers of five digits.

A diagonal convolutional gated unit as of `examples/neural_gpu.py` (1702.08727,
section 3), without its dropout and noise. Of all pairs of numbers, 128 are
kept for validation and 128 for the test.
"""

import jax
import jax.numpy as jnp
import numpy as np

from _training.tasks import (
    SPOILT_GRADIENTS,
    Problem,
    cross_entropy,
    dense_kernel,
)

DIGITS = 5
# Two numbers, the lowest digit first, with a sign between them.
LENGTH = 2 * DIGITS + 1
ZERO, TIMES = 0, 2
SYMBOLS, CLASSES = 3, 2
MAPS = 18
BATCH_SIZE = 8
LOOK_SIZE = 128
STEPS = 400
TARGET = 0.4
SATURATION_LIMIT, SATURATION_WEIGHT = 0.9, 1e-3


def _pairs() -> tuple[np.ndarray, np.ndarray]:
    """All pairs of numbers and their products, in a random order."""
    numbers = 2**DIGITS
    pairs = np.random.default_rng(0).permutation(numbers**2)
    first, second = pairs // numbers, pairs % numbers

    def digits(number, count):
        return (number[:, None] >> np.arange(count)) & 1

    sign = np.full((numbers**2, 1), TIMES)
    x = np.concatenate(
        [digits(first, DIGITS), sign, digits(second, DIGITS)], axis=1
    )
    return x.astype("int32"), digits(first * second, LENGTH).astype("int32")


def _init(key):
    def convolution(key):
        # Glorot's, of a kernel that is three wide.
        limit = (6.0 / (3 * 2 * MAPS)) ** 0.5
        return jax.random.uniform(
            key, (3, MAPS, MAPS), minval=-limit, maxval=limit
        )

    keys = jax.random.split(key, 5)
    return {
        "embeddings": dense_kernel(keys[0], SYMBOLS, MAPS),
        "embedding_bias": jnp.zeros(MAPS),
        "reset": convolution(keys[1]),
        "reset_bias": jnp.full(MAPS, 0.5),
        "gate": convolution(keys[2]),
        "gate_bias": jnp.full(MAPS, 0.7),
        "candidate": convolution(keys[3]),
        "candidate_bias": jnp.zeros(MAPS),
        "kernel": dense_kernel(keys[4], MAPS, CLASSES),
        "bias": jnp.zeros(CLASSES),
    }


def _run(weights, tokens):
    """Logits of each place, and the cost of saturated units."""

    def flat(name):
        return weights[name].reshape(3 * MAPS, MAPS)

    def around(state):
        """Each place's left neighbour, itself and its right neighbour."""
        padded = jnp.pad(state, ((0, 0), (1, 1), (0, 0)))
        return padded[:, :-2], state, padded[:, 2:]

    def saturation(x):
        return jnp.sum(jax.nn.relu(jnp.abs(x) - SATURATION_LIMIT))

    kernel = jnp.concatenate([flat("reset"), flat("gate")], axis=1)
    bias = jnp.concatenate([weights["reset_bias"], weights["gate_bias"]])
    third = MAPS // 3

    def step(carry, _):
        state, cost = carry
        left, _, right = around(state)
        shifted = jnp.concatenate(
            [
                state[..., :third],
                left[..., third : 2 * third],
                right[..., 2 * third :],
            ],
            axis=-1,
        )
        x = jnp.concatenate([left, state, right], axis=-1) @ kernel + bias
        reset, gate = jnp.split(jnp.clip(0.5 * x + 0.5, 0, 1), 2, axis=-1)
        y = jnp.concatenate(around(reset * state), axis=-1)
        y = y @ flat("candidate") + weights["candidate_bias"]
        state = gate * shifted + (1.0 - gate) * jnp.clip(y, -1.0, 1.0)
        return (state, cost + saturation(x) + saturation(y)), None

    x = weights["embeddings"][tokens] + weights["embedding_bias"]
    start = jnp.clip(x, -1.0, 1.0), LENGTH * saturation(x)
    (state, cost), _ = jax.lax.scan(step, start, length=LENGTH)
    logits = state @ weights["kernel"] + weights["bias"]
    return logits, cost / (LENGTH**2 * len(tokens))


def problem() -> Problem:
    """Products of pairs of numbers that were not trained."""
    x, y = (jnp.asarray(part) for part in _pairs())
    train_x, train_y = x[2 * LOOK_SIZE :], y[2 * LOOK_SIZE :]

    def batch(key, is_spoilt, conditions):
        index_key, digits_key = jax.random.split(key)
        index = jax.random.randint(index_key, (BATCH_SIZE,), 0, len(train_x))
        random = jax.random.randint(
            digits_key, (BATCH_SIZE, LENGTH), 0, CLASSES
        )
        return train_x[index], jnp.where(is_spoilt, random, train_y[index])

    def loss(weights, batch):
        tokens, digits = batch
        logits, cost = _run(weights, tokens)
        return cross_entropy(logits, digits) + SATURATION_WEIGHT * cost

    def loss_of(part):
        def found(weights):
            logits, _ = _run(weights, x[part])
            return cross_entropy(logits, y[part])

        return found

    return Problem(
        name="neural_gpu",
        cases=SPOILT_GRADIENTS,
        steps=STEPS,
        target=TARGET,
        init=_init,
        batch=batch,
        loss=loss,
        validation=loss_of(slice(0, LOOK_SIZE)),
        test=loss_of(slice(LOOK_SIZE, 2 * LOOK_SIZE)),
        spoils_gradient=True,
    )
