"""Other forms of the spike gate, beside the one that the optimizer has.

Each is a rule for what happens to a step, given which fraction of each
variable's elements exceeds its bound. The forms differ in nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from _training import ours
from _training.optimizer import Array, Optimizer, Step
from keras_adamax import spike_rule, update_rule

MAX_SKIPPED = 5
# Of the usual rate: how much of it a step keeps, and where it begins.
DECAY = 0.99
FIRST_RATE = 0.05
MOST = 0.9


class Decision(NamedTuple):
    """What happens to a step.

    Attributes:
        is_left_out: Booleans: which variables do not change.
        factor: What multiplies the clipped gradient of each variable.
        state: Of the form, after the step.
    """

    is_left_out: Array
    factor: Array
    state: Any


class Form(NamedTuple):
    """A rule.

    Attributes:
        init: Makes its state from the number of variables.
        decide: Takes the state, and of each variable the rate and the size.
    """

    init: Callable[[int], Any]
    decide: Callable[[Any, Array, Array], Decision]


def _start(number: int) -> Array:
    return jnp.zeros(len(spike_rule.STATE), "int32")


def _decide(state: Array, rate: Array, threshold: Any, most: int) -> Any:
    return spike_rule.decide(
        state, rate, jnp.asarray(threshold, "float32"), jnp.float32(most)
    )


def _mean(rates: Array, sizes: Array) -> Array:
    return jnp.sum(rates * sizes) / jnp.sum(sizes)


def whole_step(threshold: float, most: int = MAX_SKIPPED) -> Form:
    """The optimizer's: a step is left out by the rate of all its elements."""

    def decide(state, rates, sizes):
        spike, state = _decide(state, _mean(rates, sizes), threshold, most)
        return Decision(
            jnp.full(rates.shape, spike), jnp.ones_like(rates), state
        )

    return Form(_start, decide)


def per_variable(threshold: float, most: int = MAX_SKIPPED) -> Form:
    """Every variable has a gate of its own and is left out alone."""

    def init(number):
        return jnp.zeros((number, len(spike_rule.STATE)), "int32")

    def decide(state, rates, sizes):
        spike, state = jax.vmap(lambda s, r: _decide(s, r, threshold, most))(
            state, rates
        )
        return Decision(spike, jnp.ones_like(rates), state)

    return Form(init, decide)


def scaled(threshold: float, power: float, most: int = MAX_SKIPPED) -> Form:
    """A spike is not left out: its clipped gradient is made smaller.

    Args:
        threshold: Rate above which a step is a spike.
        power: The factor is `(threshold / rate) ** power`.
        most: How many steps in a row are made smaller.
    """

    def decide(state, rates, sizes):
        rate = _mean(rates, sizes)
        spike, state = _decide(state, rate, threshold, most)
        factor = jnp.where(spike, (threshold / rate) ** power, 1.0)
        return Decision(
            jnp.zeros(rates.shape, bool), jnp.full(rates.shape, factor), state
        )

    return Form(_start, decide)


def usual_rate(times: float, least: float, most: int = MAX_SKIPPED) -> Form:
    """The threshold follows the rate of the steps that are no spikes.

    Args:
        times: The threshold over the mean of these rates.
        least: The smallest threshold.
        most: How many steps in a row are left out.
    """

    def init(number):
        return _start(number), jnp.float32(FIRST_RATE)

    def decide(state, rates, sizes):
        gate, usual = state
        rate = _mean(rates, sizes)
        threshold = jnp.clip(times * usual, least, MOST)
        spike, gate = _decide(gate, rate, threshold, most)
        usual = jnp.where(
            rate <= threshold, DECAY * usual + (1.0 - DECAY) * rate, usual
        )
        return Decision(
            jnp.full(rates.shape, spike), jnp.ones_like(rates), (gate, usual)
        )

    return Form(init, decide)


def adamax_clipped(
    form: Form,
    beta_2: float | Callable[[Array], Array] = ours.BETA_2,
    clip_multiplier: float = ours.CLIP_MULTIPLIER,
) -> Optimizer:
    """`AdamaxClipped` with a gate of this form.

    Args:
        form: The rule.
        beta_2: A number, or a function of the number of steps applied so far.
        clip_multiplier: Growth of the bound.
    """

    def init(weights):
        return {
            "step": jnp.int32(0),
            "m": jax.tree.map(jnp.zeros_like, weights),
            "u": jax.tree.map(jnp.zeros_like, weights),
            "gate": form.init(len(jax.tree.leaves(weights))),
        }

    def step(gradients, state, weights, learning_rate):
        hyperparameters = update_rule.Hyperparameters(
            learning_rate=learning_rate,
            beta_1=jnp.float32(ours.BETA_1),
            beta_2=jnp.float32(
                beta_2(state["step"]) if callable(beta_2) else beta_2
            ),
            epsilon=jnp.float32(ours.EPSILON),
            clip_multiplier=jnp.float32(clip_multiplier),
            clip_epsilon=jnp.float32(ours.CLIP_EPSILON),
            bias_correction=None,
        )
        leaves, structure = jax.tree.flatten(weights)
        old = [
            leaves,
            jax.tree.leaves(state["m"]),
            jax.tree.leaves(state["u"]),
        ]
        gs = jax.tree.leaves(gradients)
        bounds = [
            update_rule.clip_bound(
                u,
                hyperparameters.clip_multiplier,
                hyperparameters.clip_epsilon,
            )
            for u in old[2]
        ]
        decision = form.decide(
            state["gate"],
            jnp.stack(
                [
                    jnp.mean(update_rule.is_clipped(g, bound))
                    for g, bound in zip(gs, bounds, strict=True)
                ]
            ),
            jnp.array([w.size for w in leaves], "float32"),
        )
        new = []
        for i, (g, bound, *values) in enumerate(
            zip(gs, bounds, *old, strict=True)
        ):
            g = decision.factor[i] * jnp.clip(g, -bound, bound)
            *updated, _, _ = update_rule.update(
                g, *values, hyperparameters, jnp.bool_(False)
            )
            new.append(
                [
                    jnp.where(decision.is_left_out[i], before, after)
                    for before, after in zip(values, updated, strict=True)
                ]
            )
        weights, m, u = (
            jax.tree.unflatten(structure, column)
            for column in zip(*new, strict=True)
        )
        is_left_out = jnp.all(decision.is_left_out)
        return Step(
            weights,
            {
                "step": state["step"] + jnp.where(is_left_out, 0, 1),
                "m": m,
                "u": u,
                "gate": decision.state,
            },
            is_left_out,
        )

    return Optimizer(init, step)


_DELIVERED = whole_step(0.2)
# No rate is above 1.
_NO_GATE = whole_step(1.0)
DELIVERED = "delivered: whole step, 0.2, 5 in a row"

# One thing at a time is another than in the delivered form.
FORMS: dict[str, Optimizer] = {
    DELIVERED: adamax_clipped(_DELIVERED),
    "threshold 0.1": adamax_clipped(whole_step(0.1)),
    "threshold 0.3": adamax_clipped(whole_step(0.3)),
    "threshold 0.5": adamax_clipped(whole_step(0.5)),
    "2 in a row": adamax_clipped(whole_step(0.2, 2)),
    "10 in a row": adamax_clipped(whole_step(0.2, 10)),
    "beta_2 0.99": adamax_clipped(_DELIVERED, beta_2=0.99),
    "paper's beta_2": adamax_clipped(_DELIVERED, beta_2=ours.paper_beta_2),
    "multiplier 1.5": adamax_clipped(_DELIVERED, clip_multiplier=1.5),
    "multiplier 2": adamax_clipped(_DELIVERED, clip_multiplier=2.0),
    "per variable": adamax_clipped(per_variable(0.2)),
    "scaled by threshold / rate": adamax_clipped(scaled(0.2, 1.0)),
    "scaled by its square": adamax_clipped(scaled(0.2, 2.0)),
    "4 times the usual rate": adamax_clipped(usual_rate(4.0, 0.1)),
    "8 times the usual rate": adamax_clipped(usual_rate(8.0, 0.1)),
    # What the rule alone can do, by its two settings.
    **{
        f"no gate, multiplier {multiplier:g}, beta_2 {beta_2:g}": (
            adamax_clipped(_NO_GATE, beta_2, multiplier)
        )
        for multiplier, beta_2 in (
            (1.05, 0.999),
            (1.2, 0.99),
            (1.05, 0.99),
            (1.5, 0.99),
            (1.2, 0.9),
        )
    },
}
