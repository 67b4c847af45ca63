"""The adding problem and the copy task, with a gated recurrent unit.

Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016 (1511.06464), section 4.
Their lengths are such that Adam without clipping learns them.
"""

import jax
import jax.numpy as jnp

from _training.tasks import (
    CLEAN,
    Conditions,
    Problem,
    cross_entropy,
    dense_kernel,
    recurrent_kernel,
)

UNITS = 32
BATCH_SIZE = 32
LOOK_SIZE = 256
STEPS = 1000

ADDING_LENGTH = 30
ADDING_TARGET = 0.01

SYMBOLS, COPIED, DELAY = 8, 5, 10
BLANK, GO = SYMBOLS, SYMBOLS + 1
COPY_TARGET = 0.5


def gru_weights(key: jax.Array, inputs: int) -> dict[str, jax.Array]:
    """Weights of a gated recurrent unit, initialized as Keras's."""
    keys = jax.random.split(key, 4)
    return {
        "kernel": dense_kernel(keys[0], inputs, 3 * UNITS),
        "recurrent_kernel": jnp.concatenate(
            [recurrent_kernel(k, UNITS) for k in keys[1:]], axis=1
        ),
        "bias": jnp.zeros(3 * UNITS),
    }


def gru(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """States of a gated recurrent unit: (length, batch, units)."""
    given = x @ weights["kernel"] + weights["bias"]

    def step(h, given):
        own = h @ weights["recurrent_kernel"]
        update, reset = jnp.split(
            jax.nn.sigmoid(given + own)[:, : 2 * UNITS], 2, axis=1
        )
        candidate = jnp.tanh(
            given[:, 2 * UNITS :] + reset * own[:, 2 * UNITS :]
        )
        h = update * h + (1.0 - update) * candidate
        return h, h

    start = jnp.zeros((x.shape[1], UNITS))
    return jax.lax.scan(step, start, given)[1]


def _init(inputs, outputs):
    def init(key):
        gru_key, dense_key = jax.random.split(key)
        return {
            "gru": gru_weights(gru_key, inputs),
            "kernel": dense_kernel(dense_key, UNITS, outputs),
            "bias": jnp.zeros(outputs),
        }

    return init


def _make(name, target, init, sample, loss):
    """A problem whose batches are sampled afresh."""
    validation = sample(jax.random.key(101), LOOK_SIZE)
    test = sample(jax.random.key(102), LOOK_SIZE)
    return Problem(
        name=name,
        cases={CLEAN: Conditions()},
        steps=STEPS,
        target=target,
        init=init,
        batch=lambda key, is_spoilt, conditions: sample(key, BATCH_SIZE),
        loss=loss,
        validation=lambda weights: loss(weights, validation),
        test=lambda weights: loss(weights, test),
    )


def adding() -> Problem:
    """The sum of two marked numbers of a sequence; the loss is squared."""

    def sample(key, size):
        numbers_key, first_key, second_key = jax.random.split(key, 3)
        half = ADDING_LENGTH // 2
        numbers = jax.random.uniform(numbers_key, (size, ADDING_LENGTH))
        first = jax.random.randint(first_key, (size,), 0, half)
        second = jax.random.randint(second_key, (size,), half, ADDING_LENGTH)
        marks = jax.nn.one_hot(first, ADDING_LENGTH) + jax.nn.one_hot(
            second, ADDING_LENGTH
        )
        x = jnp.stack([numbers, marks], axis=-1)
        return x.swapaxes(0, 1), jnp.sum(numbers * marks, axis=1)

    def loss(weights, batch):
        x, sums = batch
        last = gru(weights["gru"], x)[-1]
        found = last @ weights["kernel"] + weights["bias"]
        return jnp.mean(jnp.square(found[:, 0] - sums))

    return _make("adding", ADDING_TARGET, _init(2, 1), sample, loss)


def copy() -> Problem:
    """Some symbols, to be repeated after a delay."""

    def sample(key, size):
        symbols = jax.random.randint(key, (COPIED, size), 0, SYMBOLS)
        blanks = jnp.full((DELAY, size), BLANK)
        asked = jnp.full((COPIED, size), BLANK).at[0].set(GO)
        x = jnp.concatenate([symbols, blanks, asked])
        return jax.nn.one_hot(x, SYMBOLS + 2), symbols

    def loss(weights, batch):
        x, symbols = batch
        states = gru(weights["gru"], x)[-COPIED:]
        return cross_entropy(
            states @ weights["kernel"] + weights["bias"], symbols
        )

    return _make("copy", COPY_TARGET, _init(SYMBOLS + 2, SYMBOLS), sample, loss)
