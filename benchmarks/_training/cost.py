"""How long a step of each method takes, without the gradients.

In pure JAX and compiled, as it is trained here: what the arithmetic costs.
`optimizer_step.py` has the cost of the real optimizer in Keras.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from _harness.timing import compare, interleave

from _training.optimizer import Optimizer

SHAPES = ((1024, 1024), (1024,), (256, 1024), (256,))
STEPS = 10
BASELINE = "Adam"


def measure(methods: Mapping[str, Optimizer], rounds: int) -> dict[str, Any]:
    """Times of all methods, and their ratios to Adam's.

    Args:
        methods: Which to time, with Adam among them.
        rounds: How often each is timed, in another order each time.
    """
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    gradients = [
        jax.random.normal(k, s) for k, s in zip(keys, SHAPES, strict=True)
    ]
    weights = [jnp.ones(s) for s in SHAPES]

    def make_sampler(method):
        @jax.jit
        def steps(weights, gradients):
            def one(carry, _):
                found = method.step(gradients, *carry[::-1], 1e-3)
                return (found.weights, found.state), None

            start = (weights, method.init(weights))
            return jax.lax.scan(one, start, length=STEPS)[0]

        jax.block_until_ready(steps(weights, gradients))

        def sample():
            began = time.perf_counter()
            jax.block_until_ready(steps(weights, gradients))
            return (time.perf_counter() - began) / STEPS

        return sample

    samplers = {name: make_sampler(m) for name, m in methods.items()}
    found = compare(interleave(samplers, rounds), BASELINE)
    return {
        name: {
            "median_seconds": x["median_seconds"],
            "ratio": x["ratio"],
            "ratio_of_fastest": x["ratio_of_fastest"],
        }
        for name, x in found.items()
    }
