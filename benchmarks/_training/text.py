"""Characters of Python's own library, the next one to be guessed.

The library differs a little between releases of Python, which the header of
the results names.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from _training.tasks import (
    SPOILT_GRADIENTS,
    Problem,
    cross_entropy,
    dense_kernel,
    recurrent_kernel,
)

TRAIN = ("argparse", "shutil", "tarfile", "typing", "pathlib", "subprocess")
VALIDATION = ("zipfile", "textwrap")
TEST = ("configparser", "fractions")
LETTERS = "\n" + "".join(map(chr, range(32, 127)))
LOOK_SIZE = 64
STEPS = 600


def _letters(modules: tuple[str, ...]) -> np.ndarray:
    """The sources of modules as numbers; what is no letter is a blank."""
    numbers = {letter: i for i, letter in enumerate(LETTERS)}
    text = ""
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec and spec.origin
        text += Path(spec.origin).read_text("utf-8")
    return np.array([numbers.get(c, numbers[" "]) for c in text], "int32")


def _windows(modules: tuple[str, ...], length: int) -> jax.Array:
    """Evenly spaced pieces of text: (LOOK_SIZE, length + 1)."""
    letters = _letters(modules)
    starts = np.linspace(0, len(letters) - length - 1, LOOK_SIZE, dtype="int64")
    return jnp.asarray(letters[starts[:, None] + np.arange(length + 1)])


def _make(name, target, length, batch_size, init, logits):
    letters = jnp.asarray(_letters(TRAIN))
    validation, test = _windows(VALIDATION, length), _windows(TEST, length)

    def batch(key, is_spoilt, conditions):
        starts_key, letters_key = jax.random.split(key)
        starts = jax.random.randint(
            starts_key, (batch_size,), 0, len(letters) - length
        )
        pieces = letters[starts[:, None] + jnp.arange(length + 1)]
        random = jax.random.randint(
            letters_key, (batch_size, length), 0, len(LETTERS)
        )
        return pieces[:, :-1], jnp.where(is_spoilt, random, pieces[:, 1:])

    def loss(weights, batch):
        x, following = batch
        return cross_entropy(logits(weights, x), following)

    def loss_of(pieces):
        return lambda weights: loss(weights, (pieces[:, :-1], pieces[:, 1:]))

    return Problem(
        name=name,
        cases=SPOILT_GRADIENTS,
        steps=STEPS,
        target=target,
        init=init,
        batch=batch,
        loss=loss,
        validation=loss_of(validation),
        test=loss_of(test),
        spoils_gradient=True,
    )


def recurrent() -> Problem:
    """A plain recurrent network, which has no gates to tame its gradients."""
    units, length, batch_size = 64, 48, 16

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "embeddings": dense_kernel(keys[0], len(LETTERS), units),
            "recurrent_kernel": recurrent_kernel(keys[1], units),
            "recurrent_bias": jnp.zeros(units),
            "kernel": dense_kernel(keys[2], units, len(LETTERS)),
            "bias": jnp.zeros(len(LETTERS)),
        }

    def logits(weights, x):
        given = weights["embeddings"][x.T] + weights["recurrent_bias"]

        def step(h, given):
            h = jnp.tanh(given + h @ weights["recurrent_kernel"])
            return h, h

        start = jnp.zeros((x.shape[0], units))
        states = jax.lax.scan(step, start, given)[1].swapaxes(0, 1)
        return states @ weights["kernel"] + weights["bias"]

    return _make("characters_rnn", 2.5, length, batch_size, init, logits)


def transformer() -> Problem:
    """Two layers of a decoder, normalized before each part."""
    width, heads, layers, length, batch_size = 32, 2, 2, 32, 8

    def init(key):
        keys = iter(jax.random.split(key, 3 + 4 * layers))
        kernel = dense_kernel
        return {
            "embeddings": kernel(next(keys), len(LETTERS), width),
            "positions": kernel(next(keys), length, width),
            "layers": [
                {
                    "query_key_value": kernel(next(keys), width, 3 * width),
                    "attended": kernel(next(keys), width, width),
                    "inner": kernel(next(keys), width, 4 * width),
                    "inner_bias": jnp.zeros(4 * width),
                    "outer": kernel(next(keys), 4 * width, width),
                    "outer_bias": jnp.zeros(width),
                    "scales": jnp.ones((2, width)),
                }
                for _ in range(layers)
            ],
            "scale": jnp.ones(width),
            "kernel": kernel(next(keys), width, len(LETTERS)),
            "bias": jnp.zeros(len(LETTERS)),
        }

    def normalized(x, scale):
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return scale * x / jnp.sqrt(mean_square + 1e-6)

    is_past = jnp.tril(jnp.ones((length, length), bool))

    def attend(x, layer):
        # (batch, length, 3, heads, width of a head)
        q, k, v = jnp.moveaxis(
            (x @ layer["query_key_value"]).reshape(
                *x.shape[:2], 3, heads, width // heads
            ),
            2,
            0,
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
        shares = jax.nn.softmax(jnp.where(is_past, scores, -1e9))
        found = jnp.einsum("bhqk,bkhd->bqhd", shares, v)
        return found.reshape(x.shape) @ layer["attended"]

    def logits(weights, x):
        h = weights["embeddings"][x] + weights["positions"]
        for layer in weights["layers"]:
            h += attend(normalized(h, layer["scales"][0]), layer)
            inner = jax.nn.relu(
                normalized(h, layer["scales"][1]) @ layer["inner"]
                + layer["inner_bias"]
            )
            h += inner @ layer["outer"] + layer["outer_bias"]
        h = normalized(h, weights["scale"])
        return h @ weights["kernel"] + weights["bias"]

    return _make(
        "characters_transformer", 2.5, length, batch_size, init, logits
    )
