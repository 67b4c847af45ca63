"""`AdamaxClipped` as pure functions, over the library's own.

`tests/test_training_benchmark.py` ties them to the real optimizer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from _training.optimizer import Array, Optimizer, Step
from keras_adamax import TargetClipRate, spike_rule, update_rule

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-8
CLIP_MULTIPLIER = 1.2
CLIP_EPSILON = 1e-4


def paper_beta_2(step: Array) -> Array:
    """The schedule of Freivalds & Liepins' own code."""
    return 1.0 - jnp.maximum(0.0005, 0.01 * 0.5 ** (step / 2000.0))


class SpikeGate(NamedTuple):
    """The arguments of `AdamaxClipped` for its gate, by their names there."""

    spike_threshold: float
    max_skipped_spikes: int = 5


def adamax_clipped(
    beta_2: float | Callable[[Array], Array] = BETA_2,
    gate: SpikeGate | None = None,
    target: TargetClipRate | None = None,
) -> Optimizer:
    """The optimizer of this project, with its defaults.

    Args:
        beta_2: A number, or a function of the number of steps applied so far.
        gate: Leaves steps out; `None` for none.
        target: Steers the multiplier; `None` for a constant one.
    """

    def init(weights):
        state: dict[str, Any] = {
            "step": jnp.int32(0),
            "m": jax.tree.map(jnp.zeros_like, weights),
            "u": jax.tree.map(jnp.zeros_like, weights),
        }
        if gate:
            state["gate"] = jnp.zeros(len(spike_rule.STATE), "int32")
        if target:
            state["excess"] = jnp.float32(CLIP_MULTIPLIER - 1.0)
        return state

    def step(gradients, state, weights, learning_rate):
        multiplier = jnp.float32(CLIP_MULTIPLIER)
        if target:
            multiplier = 1.0 + state["excess"]
        rate_of_decay = beta_2(state["step"]) if callable(beta_2) else beta_2
        hyperparameters = update_rule.Hyperparameters(
            learning_rate=learning_rate,
            beta_1=jnp.float32(BETA_1),
            beta_2=jnp.float32(rate_of_decay),
            epsilon=jnp.float32(EPSILON),
            clip_multiplier=multiplier,
            clip_epsilon=jnp.float32(CLIP_EPSILON),
            bias_correction=None,
        )
        leaves, structure = jax.tree.flatten(weights)
        results = [
            update_rule.update(g, w, m, u, hyperparameters, jnp.bool_(False))
            for g, w, m, u in zip(
                jax.tree.leaves(gradients),
                leaves,
                jax.tree.leaves(state["m"]),
                jax.tree.leaves(state["u"]),
                strict=True,
            )
        ]
        new_w, new_m, new_u, clipped, _ = (
            list(column) for column in zip(*results, strict=True)
        )
        next_state = {
            "step": state["step"] + 1,
            "m": jax.tree.unflatten(structure, new_m),
            "u": jax.tree.unflatten(structure, new_u),
        }
        count = sum(jnp.sum(x) for x in clipped).astype("float32")
        size = jnp.float32(sum(w.size for w in leaves))
        if target:
            next_state["excess"] = target.next_excess(
                state["excess"], count, size, state["step"]
            )
        new_weights = jax.tree.unflatten(structure, new_w)
        if not gate:
            return Step(new_weights, next_state, jnp.bool_(False))
        is_left_out, gate_state = spike_rule.decide(
            state["gate"],
            spike_rule.rate_of([spike_rule.Counts(count, size)]),
            jnp.float32(gate.spike_threshold),
            jnp.float32(gate.max_skipped_spikes),
        )

        def keep(old, new):
            return jnp.where(is_left_out, old, new)

        kept = jax.tree.map(keep, {k: state[k] for k in next_state}, next_state)
        return Step(
            jax.tree.map(keep, weights, new_weights),
            kept | {"gate": gate_state},
            is_left_out,
        )

    return Optimizer(init, step)
