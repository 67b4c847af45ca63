"""Runs of methods of `benchmarks/_training`, step by step; on JAX alone."""

import numpy as np
import pytest

from tests.benchmark_runs import importable
from tests.support import BACKEND

if BACKEND != "jax":
    pytest.skip("the benchmark trains on JAX", allow_module_level=True)
pytest.importorskip("optax")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

with importable():
    from _training import gate_forms, methods, ours, report  # noqa: F401
    from _training.problems import PROBLEMS  # noqa: F401
    from _training.protocol import QUICK  # noqa: F401
    from _training.store import Store  # noqa: F401

SHAPES = ((3, 4), (4,), (6,))
LEARNING_RATE = 0.01


def some_gradients(steps, seed=0):
    """Gradients of which every eleventh is a thousand times as large."""
    generator = np.random.default_rng(seed)
    return [
        [
            (1000 if step % 11 == 10 else 1)
            * generator.normal(size=shape).astype("float32")
            for shape in SHAPES
        ]
        for step in range(steps)
    ]


def some_weights():
    generator = np.random.default_rng(99)
    return [generator.normal(size=s).astype("float32") for s in SHAPES]


def run(method, gradients, learning_rate=LEARNING_RATE):
    """The weights after all steps, and which steps were left out."""
    step = jax.jit(method.step)
    weights = [jnp.asarray(w) for w in some_weights()]
    state = method.init(weights)
    left_out = []
    for g in gradients:
        weights, state, is_left_out = step(g, state, weights, learning_rate)
        left_out.append(bool(is_left_out))
    return weights, left_out


def assert_near(found, expected, tolerance):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
