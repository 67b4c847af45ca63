"""The peers: what optax has, and what it lacks in a few lines each.

Each was compared, line by line, with the published code that its docstring
names. Where code and paper differ, the code is followed. Weight decay is 0
throughout, and betas are 0.9 and 0.999 where the paper does not depend on
others, so that the methods differ in how they meet large gradients alone.
Clippers that leave the optimizer open work on Adam.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from _training.optimizer import (
    Array,
    Optimizer,
    from_optax,
    norm,
    scaled,
    total_norm,
)

BETA_1 = 0.9
BETA_2 = 0.999
# Keras's.
EPSILON = 1e-7

Transformation = optax.GradientTransformation


def adam() -> Transformation:
    """Kingma & Ba 2014 (1412.6980), algorithm 1; optax's."""
    return optax.scale_by_adam(BETA_1, BETA_2, EPSILON)


def adamax() -> Transformation:
    """Kingma & Ba 2014 (1412.6980), section 7.1; optax's."""
    return optax.scale_by_adamax(BETA_1, BETA_2, EPSILON)


def rmsprop() -> Transformation:
    """Tieleman & Hinton 2012; optax's, with the decay of Keras's, 0.9."""
    return optax.scale_by_rms(0.9, EPSILON)


def clip_by_norm(limit: float) -> Transformation:
    """Keras's `clipnorm`: every variable alone is held to a norm.

    Checked against keras-team/keras, `keras/src/optimizers/
    base_optimizer.py`, `_clip_by_norm`.
    """

    def clip(g):
        return g * limit / jnp.maximum(norm(g), limit)

    return optax.stateless(lambda gradients, _: jax.tree.map(clip, gradients))


def before(
    clipper: Transformation, transformation: Transformation
) -> Optimizer:
    """An optimizer that gets clipped gradients."""
    return from_optax(optax.chain(clipper, transformation))


def ada_gc(
    ratio: float = 1.04, beta: float = 0.99, warm_up_steps: int = 100
) -> Transformation:
    """AdaGC (2502.11034), algorithm 1: a norm's own past limits each tensor.

    Checked against lishuai-97/AdaGC, `megatron-gpt2.patch`, class `AdaGC` of
    `megatron/optimizer/clip_grads.py`, whose defaults these are. In the
    warm-up, `global_clipnorm` 1, and each tensor keeps its smallest norm.
    """

    def init(weights):
        return {
            "step": jnp.int32(0),
            "norms": jax.tree.map(lambda w: jnp.float32(jnp.inf), weights),
        }

    def update(gradients, state, weights=None):
        step = state["step"] + 1
        is_warming_up = step <= warm_up_steps
        global_factor = jnp.minimum(1.0, 1.0 / (total_norm(gradients) + 1e-6))

        def factor(g, past):
            limit = ratio * past
            size = norm(g)
            own = jnp.where(size > limit, limit / (size + 1e-6), 1.0)
            return jnp.where(is_warming_up, global_factor, own)

        def next_norm(g, past):
            limit = ratio * past
            smallest = jnp.minimum(past, global_factor * norm(g))
            # `past` is infinite in the first step alone.
            mean = beta * past + (1.0 - beta) * jnp.minimum(norm(g), limit)
            return jnp.where(is_warming_up, smallest, mean)

        clipped = jax.tree.map(
            lambda g, past: factor(g, past) * g, gradients, state["norms"]
        )
        norms = jax.tree.map(next_norm, gradients, state["norms"])
        return clipped, {"step": step, "norms": norms}

    return Transformation(init, update)


def z_clip(
    alpha: float = 0.97,
    z_threshold: float = 2.5,
    max_norm: float = 1.0,
    warm_up_steps: int = 25,
) -> Transformation:
    """ZClip (2504.02507), algorithm 1: the global norm's z-score limits it.

    Checked against bluorion-com/ZClip, `zclip.py` and `zclip/zclip.py`, with
    its defaults: mode "zscore", option "adaptive_scaling", and
    `max_grad_norm` 1 on top.
    """
    epsilon = 1e-6

    def init(weights):
        return {
            "step": jnp.int32(0),
            "norms": jnp.zeros(warm_up_steps),
            "mean": jnp.float32(0),
            "variance": jnp.float32(0),
        }

    def update(gradients, state, weights=None):
        step = state["step"]
        size = total_norm(gradients)
        is_warming_up = step < warm_up_steps
        norms = jnp.where(
            jnp.arange(warm_up_steps) == step, size, state["norms"]
        )
        mean, variance = state["mean"], state["variance"]
        deviation = jnp.sqrt(variance)
        z = (size - mean) / (deviation + epsilon)
        # Evaluated where z is not above the threshold too: no 0 below.
        eta = jnp.maximum(z, z_threshold) / z_threshold
        limit = jnp.where(
            z > z_threshold, mean + z_threshold * deviation / eta, size
        )
        next_mean = alpha * mean + (1 - alpha) * limit
        next_variance = (
            alpha * variance + (1 - alpha) * (limit - next_mean) ** 2
        )
        ends = step == warm_up_steps - 1
        next_mean = jnp.where(ends, jnp.mean(norms), next_mean)
        next_variance = jnp.where(ends, jnp.var(norms), next_variance)
        held = step < warm_up_steps - 1
        effective = jnp.minimum(jnp.where(is_warming_up, size, limit), max_norm)
        factor = jnp.minimum(1.0, effective / (size + epsilon))
        return scaled(gradients, factor), {
            "step": step + 1,
            "norms": norms,
            "mean": jnp.where(held, 0.0, next_mean),
            "variance": jnp.where(held, 0.0, next_variance),
        }

    return Transformation(init, update)


def auto_clip(percentile: float = 10.0, history: int = 1000) -> Transformation:
    """AutoClip (2007.14469), section 3: a percentile of the norms so far.

    Checked against pseeth/autoclip, `autoclip.py` (the norm joins the history
    before the percentile is taken; the paper's best percentile, 10) and
    `autoclip/torch/quantile.py`. Differs: the history is the last 1,000 norms,
    as in the latter, where the paper keeps all.
    """

    def init(weights):
        return {"step": jnp.int32(0), "norms": jnp.full(history, jnp.nan)}

    def update(gradients, state, weights=None):
        size = total_norm(gradients)
        norms = state["norms"].at[state["step"] % history].set(size)
        in_order = jnp.sort(norms)  # NaN, not filled yet, comes last.
        count = jnp.minimum(state["step"] + 1, history)
        at = percentile / 100.0 * (count - 1)
        low = jnp.floor(at).astype("int32")
        high = jnp.minimum(low + 1, count - 1)
        part = at - low
        limit = (1 - part) * in_order[low] + part * in_order[high]
        # torch.nn.utils.clip_grad_norm_
        factor = jnp.minimum(1.0, limit / (size + 1e-6))
        return scaled(gradients, factor), {
            "step": state["step"] + 1,
            "norms": norms,
        }

    return Transformation(init, update)


def agc() -> Transformation:
    """AGC (2102.06171), section 4; optax's, with the paper's 0.01.

    Differs: the paper leaves out the last layer, which needs to be told.
    """
    return optax.adaptive_grad_clip(0.01, eps=1e-3)


def spam(
    threshold: float = 5000.0,
    reset_every: int = 500,
    warm_up_steps: int = 150,
    wait: int = 20,
) -> Transformation:
    """SPAM (2501.06842), algorithm 1: Adam that forgets, and clips g^2 / v.

    Checked against TianjinYellow/SPAM-Optimizer, `galore_torch/SPAM.py`,
    whose defaults these are, with density 1 (no sparse momentum). `v` in the
    threshold is not corrected for its bias; the correction's clock is not
    reset.
    """
    epsilon = 1e-6

    def init(weights):
        return {
            "step": jnp.int32(0),
            "m": jax.tree.map(jnp.zeros_like, weights),
            "v": jax.tree.map(jnp.zeros_like, weights),
        }

    def update(gradients, state, weights=None):
        step = state["step"] + 1
        since_reset = step % reset_every
        keep = jnp.where(since_reset == 0, 0.0, 1.0)
        m, v = scaled(state["m"], keep), scaled(state["v"], keep)
        is_clipping = (step >= wait) & (since_reset >= wait)

        def clip(g, v):
            limit = jnp.where(is_clipping, jnp.sqrt(threshold * v), jnp.inf)
            return jnp.clip(g, -limit, limit)

        gradients = jax.tree.map(clip, gradients, v)
        m = jax.tree.map(
            lambda m, g: BETA_1 * m + (1 - BETA_1) * g, m, gradients
        )
        v = jax.tree.map(
            lambda v, g: BETA_2 * v + (1 - BETA_2) * g**2, v, gradients
        )
        cosine = jnp.cos(jnp.pi * since_reset / (warm_up_steps + 1))
        warm_up = 1.0 - 0.99 * (1.0 + cosine) / 2.0
        is_warm = (since_reset >= warm_up_steps) | (step < reset_every)
        time = step.astype("float32")
        size = jnp.where(is_warm, 1.0, warm_up) * (
            jnp.sqrt(1.0 - BETA_2**time) / (1.0 - BETA_1**time)
        )
        directions = jax.tree.map(
            lambda m, v: size * m / (jnp.sqrt(v) + epsilon), m, v
        )
        return directions, {"step": step, "m": m, "v": v}

    return Transformation(init, update)


def stable_adamw(beta_2: float = 0.99) -> Transformation:
    """StableAdamW (2304.13013), algorithm 2: a tensor's RMS slows its step.

    Checked against the authors' `StableAdamWUnfused` (a gist of mitchellnw;
    copied into LongNet, `LongNet/utils.py`) and warner-benjamin/optimi,
    `optimi/stableadamw.py`. Their `beta_2` of 0.99, epsilon of 1e-8.
    """
    epsilon = 1e-8

    def init(weights):
        return optax.scale_by_adam(BETA_1, beta_2, epsilon).init(weights)

    def update(gradients, state, weights=None):
        directions, next_state = optax.scale_by_adam(
            BETA_1, beta_2, epsilon
        ).update(gradients, state, weights)
        correction = 1.0 - beta_2 ** next_state.count.astype("float32")

        def slow(direction, g, v):
            ratio = g**2 / jnp.maximum(v / correction, epsilon**2)
            rms = jnp.sqrt(jnp.mean(ratio))
            return direction / jnp.maximum(1.0, rms)

        directions = jax.tree.map(slow, directions, gradients, next_state.nu)
        return directions, next_state

    return Transformation(init, update)


def adopt() -> Transformation:
    """ADOPT (2411.02853), with clipping; optax's, with its defaults.

    Its first step only initializes `v`, and moves nothing.
    """
    return optax.contrib.scale_by_adopt()


def adamw_clip() -> Transformation:
    """AdamWClip: an element of more than three deviations is cut there.

        |g| <= 3 * max(sqrt(v / (1 - beta_2^t)), 0.01)

    with `v` from before the step, from the eleventh step on. There is no
    paper; checked against wandeln/AdamWClip, `AdamWClip/optimizer.py`.
    """

    def clip(g, v, step):
        limit = 3.0 * jnp.maximum(jnp.sqrt(v), 0.01)
        limit = jnp.where(step > 10, limit, jnp.inf)
        return jnp.clip(g, -limit, limit)

    return _adam_with_clip(clip, 1e-8)


def per_tensor_clip() -> Transformation:
    """What the authors of our rule went on to: a limit for a tensor's norm.

        ||g|| <= 3 * sqrt(sum(v) / (1 - beta_2^t)) + 0.01

    with `v` from before the step. Checked against LUMII-Syslab/RSE and
    LUMII-Syslab/RRU, `RAdam.py` in both, `_resource_apply_dense` with
    `clip_gradients=True`. Differs: it is Adam here, where they have a RAdam
    whose first moment is that of `g / sqrt(v)`.
    """

    def clip(g, v, step):
        limit = 3.0 * jnp.sqrt(jnp.sum(v)) + 0.01
        return g * limit / jnp.maximum(norm(g), limit)

    return _adam_with_clip(clip, EPSILON)


def _adam_with_clip(
    clip: Callable[[Array, Array, Array], Array], epsilon: float
) -> Transformation:
    """Adam whose gradients are clipped with what its own `v` says.

    Args:
        clip: Takes a gradient, the `v` from before the step over the
            correction of this step, and the number of this step, from 1.
        epsilon: Of Adam.
    """
    plain = optax.scale_by_adam(BETA_1, BETA_2, epsilon)

    def update(gradients, state, weights=None):
        step = (state.count + 1).astype("float32")
        correction = 1.0 - BETA_2**step
        gradients = jax.tree.map(
            lambda g, v: clip(g, v / correction, step), gradients, state.nu
        )
        return plain.update(gradients, state)

    return Transformation(plain.init, update)
