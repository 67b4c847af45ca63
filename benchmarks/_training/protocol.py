"""How the methods are compared. Fixed before the first run.

1. Every method gets the same runs: each learning rate of one grid, with each
   of five seeds. A seed fixes the initial weights, the batches and which steps
   are spoilt, the same for every method.
2. No learning rate is scheduled, no weight decays, and no other number of a
   method is tuned: each has its authors' defaults. Those of Keras are given
   once without clipping and four times with, ours four times.
3. Validation data, which nobody trains on, chooses the learning rate: the one
   with the smallest median over seeds of the loss. A loss is looked at 20
   times in a run, and what is taken is the mean of the last five looks: one
   step more or less, and a spike in the last steps, would otherwise move it by
   more than the methods differ. A loss that is not finite counts as infinite.
4. Test data, which nothing is chosen by, is reported: the median over seeds at
   that learning rate, with a 95 % interval of bootstrapped medians.
5. A run has diverged if its last validation loss is not finite, or above that
   of its initial weights.
6. The steps to a target are those after which the validation loss, at a look,
   is at or below the problem's target for the first time.
7. Validation and test data are never spoilt.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from _training.optimizer import Optimizer
from _training.tasks import Conditions, Problem


class Plan(NamedTuple):
    """Which runs every method makes in every case.

    Attributes:
        learning_rates: The grid.
        seeds: Of weights, batches and spoilt steps.
        looks: How often the losses are computed in a run.
        last_looks: How many of them, at the end, are averaged.
        share_of_steps: Of the problem's steps; below 1 to see that all runs.
    """

    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    looks: int = 20
    last_looks: int = 5
    share_of_steps: float = 1.0


QUICK = Plan(
    learning_rates=(1e-3, 1e-2),
    seeds=(0, 1),
    looks=2,
    last_looks=1,
    share_of_steps=0.02,
)


def make_runs(
    problem: Problem, optimizer: Optimizer, plan: Plan
) -> Callable[[Conditions], dict[str, Any]]:
    """Compiles all runs of a method on a problem.

    Returns:
        A function of a case's conditions. It gives, by learning rate and
        seed: "validation" and "test", the means of the last looks,
        "has_diverged", "looks_to_target" (`None` where it is not reached);
        and, means over seeds at each learning rate, "left_out_spoilt" and
        "left_out_good", shares of the spoilt and of the other steps. "curves"
        has the median validation loss over seeds, by learning rate and look;
        "seconds" is what all runs took.
    """
    steps = max(plan.looks, round(problem.steps * plan.share_of_steps))
    steps_between = steps // plan.looks

    def train(learning_rate, seed, conditions):
        init_key, data_key = jax.random.split(jax.random.key(seed))
        weights = problem.init(init_key)
        initial = problem.validation(weights)

        def one_step(carry, step):
            weights, state = carry
            gradients, is_spoilt = problem.gradients(
                weights, data_key, step, conditions
            )
            weights, state, is_left_out = optimizer.step(
                gradients, state, weights, learning_rate
            )
            return (weights, state), (is_spoilt, is_left_out)

        def one_look(carry, look):
            at = look * steps_between + jnp.arange(steps_between)
            carry, marks = jax.lax.scan(one_step, carry, at)
            looks = problem.validation(carry[0]), problem.test(carry[0])
            return carry, (*looks, marks)

        _, (losses, test, (is_spoilt, is_left_out)) = jax.lax.scan(
            one_look,
            (weights, optimizer.init(weights)),
            jnp.arange(plan.looks),
        )

        def share(of):
            return jnp.sum(is_left_out & of) / jnp.maximum(1, jnp.sum(of))

        return {
            "initial": initial,
            "losses": losses,
            "test": test,
            "left_out_spoilt": share(is_spoilt),
            "left_out_good": share(~is_spoilt),
        }

    over_seeds = jax.vmap(train, in_axes=(None, 0, None))

    # One learning rate at a time: the weights of five runs fit a cache.
    @jax.jit
    def over_all(learning_rates, seeds, conditions):
        return jax.lax.map(
            lambda rate: over_seeds(rate, seeds, conditions), learning_rates
        )

    rates = jnp.asarray(plan.learning_rates, "float32")
    seeds = jnp.asarray(plan.seeds, "int32")

    def as_arrays(conditions):
        return Conditions(*(jnp.float32(x) for x in conditions))

    compiled = over_all.lower(rates, seeds, as_arrays(Conditions())).compile()

    def mean_of_last(losses):
        return losses[..., -plan.last_looks :].mean(axis=-1)

    def run(conditions: Conditions) -> dict[str, Any]:
        began = time.perf_counter()
        found = jax.block_until_ready(
            compiled(rates, seeds, as_arrays(conditions))
        )
        seconds = time.perf_counter() - began
        found = {name: np.asarray(x, np.float64) for name, x in found.items()}
        losses = found["losses"]
        last = losses[..., -1]
        is_there = losses <= problem.target
        looks = np.where(
            is_there.any(axis=-1), is_there.argmax(axis=-1) + 1.0, np.inf
        )
        # NaN is above every loss here.
        ordered = np.where(np.isnan(losses), np.inf, losses)
        return {
            "validation": _numbers(mean_of_last(losses)),
            "test": _numbers(mean_of_last(found["test"])),
            "has_diverged": (~(last <= found["initial"])).tolist(),
            "looks_to_target": _numbers(looks),
            "curves": _numbers(np.median(ordered, axis=1)),
            "left_out_spoilt": _numbers(found["left_out_spoilt"].mean(axis=1)),
            "left_out_good": _numbers(found["left_out_good"].mean(axis=1)),
            "steps": steps_between * plan.looks,
            "seconds": round(seconds, 2),
        }

    return run


def _numbers(values: np.ndarray) -> Any:
    """Lists of numbers with four digits; JSON has no infinity: `None`."""

    def shorten(x):
        if isinstance(x, list):
            return [shorten(y) for y in x]
        return float(f"{x:.4g}") if np.isfinite(x) else None

    return shorten(values.tolist())
