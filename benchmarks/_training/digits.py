"""scikit-learn's digits, and a perceptron with two hidden layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _training.tasks import (
    CLEAN,
    Conditions,
    Problem,
    cross_entropy,
    dense_kernel,
    spoilt_cases,
)

WIDTHS = (64, 128, 128, 10)
BATCH_SIZE = 32
STEPS = 1000
TARGET = 0.1
SHARES = (0.001, 0.01, 0.05, 0.1, 0.3)
FACTORS = (30.0, 1000.0)

CASES = {
    CLEAN: Conditions(),
    **spoilt_cases(SHARES, FACTORS[:1]),
    "gradient x100 in mid-run": Conditions(change=100.0),
    "gradient /100 in mid-run": Conditions(change=0.01),
    "20 % wrong labels": Conditions(label_noise=0.2),
    **spoilt_cases(SHARES, FACTORS[1:]),
}


def _load() -> dict[str, tuple[Any, Any]]:
    """Images and labels: 897 to train, 300 to choose, 600 to report."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [897, 1197])
    return {
        name: (
            jnp.asarray(images[part] / 16.0, "float32"),
            jnp.asarray(labels[part], "int32"),
        )
        for name, part in zip(
            ("train", "validation", "test"), parts, strict=True
        )
    }


def _init(key):
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return [
        {"kernel": dense_kernel(k, n, m), "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, WIDTHS, WIDTHS[1:], strict=False)
    ]


def _loss(weights, batch):
    x, labels = batch
    *hidden, last = weights
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return cross_entropy(x @ last["kernel"] + last["bias"], labels)


def problem() -> Problem:
    """The digits with all that the pilot did to them."""
    data = _load()
    images, labels = data["train"]
    generator = np.random.default_rng(1)
    # An image is mislabelled in every case whose share is above its number.
    numbers = jnp.asarray(generator.random(len(labels)), "float32")
    mislabelled = jnp.asarray(generator.integers(0, 10, len(labels)), "int32")

    def batch(key, is_spoilt, conditions):
        rows_key, labels_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (BATCH_SIZE,), 0, len(images))
        chosen = jnp.where(
            numbers[rows] < conditions.label_noise,
            mislabelled[rows],
            labels[rows],
        )
        random = jax.random.randint(labels_key, (BATCH_SIZE,), 0, 10)
        factor = jnp.where(is_spoilt, conditions.spoilt_factor, 1.0)
        return factor * images[rows], jnp.where(is_spoilt, random, chosen)

    return Problem(
        name="digits",
        cases=CASES,
        steps=STEPS,
        target=TARGET,
        init=_init,
        batch=batch,
        loss=_loss,
        validation=lambda weights: _loss(weights, data["validation"]),
        test=lambda weights: _loss(weights, data["test"]),
    )
