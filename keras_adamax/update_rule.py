"""The mathematics of `AdamaxClipped`: the specification of every kernel.

Pure functions in `keras.ops` and operators: tensors in, tensors out, no
variable, no state and no backend. A fast kernel is right when it gives what
these give. (Operators where there is one: `keras.ops.add` takes TensorFlow's
`BiasAdd` for some shapes, which refuses those without elements.)

Symbols, as in the papers:

- `w`: the weight, `g`: its gradient,
- `m`: the first moment ("momentum" in saved states),
- `u`: the exponentially weighted infinity norm ("norm" in saved states).

References:
    - [Kingma & Ba, 2014](https://arxiv.org/abs/1412.6980), section 7.1
      (Adamax). Differs: epsilon is added in the division, and bias correction
      is an option.
    - [Freivalds & Liepins, 2017](https://arxiv.org/abs/1702.08727) (the
      clipping).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

Tensor = Any


class Hyperparameters(NamedTuple):
    """The scalars of one step, in the dtype of the state.

    Attributes:
        learning_rate: >= 0.
        beta_1: In [0, 1).
        beta_2: In [0, 1).
        epsilon: >= 0.
        clip_multiplier: >= 1.
        clip_epsilon: >= 0.
        bias_correction: What divides the step, from `bias_correction_factor`;
            `None` for no correction.
    """

    learning_rate: Tensor
    beta_1: Tensor
    beta_2: Tensor
    epsilon: Tensor
    clip_multiplier: Tensor
    clip_epsilon: Tensor
    bias_correction: Tensor | None


# What `sums_of` gives: of the squares of the gradient, of the clipped gradient,
# of the change of the weight, of the first moment; and how many elements of the
# gradient are NaN or infinite.
SUMS = ("gradient", "clipped_gradient", "update", "momentum", "nonfinite")

FLOAT32_MAX = float(np.finfo(np.float32).max)
# The largest float32 below 1: a decay rate of 1 would never forget.
LARGEST_DECAY_RATE = float(np.nextafter(np.float32(1.0), np.float32(0.0)))


def compute_dtype(weight_dtype: str) -> str:
    """The dtype of state and arithmetic for a weight of `weight_dtype`.

    Half precision loses what this rule lives on: a `beta_2` of 0.999 is 1 in
    bfloat16, an `epsilon` of 1e-8 is 0 in float16 and `1.2 * u` overflows
    there. So both are computed in float32, and the weight is rounded once.
    """
    return (
        "float32" if weight_dtype in ("float16", "bfloat16") else weight_dtype
    )


def clip_bound(
    u: Tensor, clip_multiplier: Tensor, clip_epsilon: Tensor
) -> Tensor:
    """How large a gradient element may be, given the past of its weight.

        bound = clip_multiplier * u + clip_epsilon

    Args:
        u: Infinity norm *before* this step.
        clip_multiplier: Scalar, >= 1.
        clip_epsilon: Scalar, >= 0.

    Returns:
        A tensor like `u`, at most float32's largest finite value, so that an
        infinite gradient is an oversized one whatever `u` is.
    """
    return _minimum(clip_multiplier * u + clip_epsilon, FLOAT32_MAX)


def clip(g: Tensor, bound: Tensor) -> Tensor:
    """`g` with every element held in `[-bound, bound]`; NaN stays NaN."""
    return _maximum(_minimum(g, bound), -bound)


def is_clipped(g: Tensor, bound: Tensor) -> Tensor:
    """Which elements `clip` cuts, as booleans (never a NaN)."""
    return ops.absolute(g) > bound


def next_moments(
    g: Tensor, m: Tensor, u: Tensor, beta_1: Tensor, beta_2: Tensor
) -> tuple[Tensor, Tensor]:
    """The two moments after a (clipped) gradient.

        m = beta_1 * m + (1 - beta_1) * g
        u = max(beta_2 * u, |g|)

    Args:
        g: Gradient, after clipping.
        m: First moment before this step.
        u: Infinity norm before this step.
        beta_1: Scalar in [0, 1).
        beta_2: Scalar in [0, 1).

    Returns:
        The new `m` and the new `u`.
    """
    # `+`, because TensorFlow's `ops.add` takes shape (0, n) for a bias.
    m = ops.multiply(beta_1, m) + ops.multiply(ops.subtract(1.0, beta_1), g)
    u = _maximum(ops.multiply(beta_2, u), ops.absolute(g))
    return m, u


def weight_change(
    m: Tensor,
    u: Tensor,
    learning_rate: Tensor,
    epsilon: Tensor,
    bias_correction: Tensor | None = None,
) -> Tensor:
    """What a step subtracts from the weight.

        change = learning_rate * m / (u + epsilon)

    Args:
        m: First moment after this step.
        u: Infinity norm after this step.
        learning_rate: Scalar >= 0.
        epsilon: Scalar >= 0.
        bias_correction: Scalar that divides too, from
            `bias_correction_factor`; `None` for no correction.

    Returns:
        A tensor like `m`. Where `u + epsilon` is 0 there never was a gradient
        (or it has faded out of floating point), and the change is 0, not 0/0.
    """
    denominator = u + epsilon
    is_zero = ops.equal(denominator, 0.0)
    denominator = ops.where(is_zero, ops.ones_like(denominator), denominator)
    if bias_correction is not None:
        denominator = bias_correction * denominator
    change = learning_rate * m / denominator
    # 0 * m rather than 0: a NaN goes on.
    return ops.where(is_zero, 0.0 * m, change)


def bias_correction_factor(log_beta_1_product: Tensor) -> Tensor:
    """`1 - prod(beta_1)`, from the logarithm of the product.

    Computed as `-expm1(log)`: near a `beta_1` of 1 the plain difference loses
    most of its digits in the first steps.
    """
    return -ops.expm1(log_beta_1_product)


def update(
    g: Tensor,
    w: Tensor,
    m: Tensor,
    u: Tensor,
    hyperparameters: Hyperparameters,
    is_excluded: Tensor | None,
    measures: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The whole step of one weight tensor.

    Args:
        g: Gradient.
        w: Weight; of any float dtype, in which the new one is returned.
        m: First moment before this step.
        u: Infinity norm before this step.
        hyperparameters: Scalars in the dtype of `m` and `u`.
        is_excluded: Boolean scalar, whether this one is not clipped; `None`
            where nothing is.
        measures: Called with the gradient, the clipped gradient, what is
            subtracted from the weight, and the new `m`. `None`: not called.

    Returns:
        The new `w`, `m` and `u`, booleans that mark the clipped elements
        (`None` where nothing is clipped), and what `measures` gave.
    """
    weight_dtype = keras.backend.standardize_dtype(w.dtype)
    dtype = keras.backend.standardize_dtype(m.dtype)
    given = g = ops.cast(g, dtype)
    clipped = None
    if is_excluded is not None:
        bound = clip_bound(
            u, hyperparameters.clip_multiplier, hyperparameters.clip_epsilon
        )
        # Not `full_like`: TensorFlow takes the shape for int32s.
        bound = ops.where(is_excluded, ops.cast(math.inf, dtype), bound)
        clipped = is_clipped(g, bound)
        g = clip(g, bound)
    m, u = next_moments(g, m, u, hyperparameters.beta_1, hyperparameters.beta_2)
    change = weight_change(
        m,
        u,
        hyperparameters.learning_rate,
        hyperparameters.epsilon,
        hyperparameters.bias_correction,
    )
    w = ops.cast(ops.cast(w, dtype) - change, weight_dtype)
    sums = None if measures is None else measures(given, g, change, m)
    return w, m, u, clipped, sums


def sums_of(
    g: Tensor,
    clipped_g: Tensor,
    change: Tensor,
    m: Tensor,
    is_counted: Tensor | None = None,
) -> Tensor:
    """The `SUMS` of one weight tensor.

    Args:
        g: Gradient, before clipping.
        clipped_g: Gradient, after clipping.
        change: What is subtracted from the weight.
        m: First moment after this step.
        is_counted: Booleans: which rows of a sparse gradient stand for all
            with their index. `None`: the gradient is dense.

    Returns:
        float32, shape `(1, 5)`.
    """
    sums = [
        *(ops.square(x) for x in (g, clipped_g, change, m)),
        ops.cast(ops.logical_not(ops.isfinite(g)), g.dtype),
    ]
    if is_counted is not None:
        is_counted = ops.reshape(is_counted, (-1,) + (1,) * (len(g.shape) - 1))
        sums = [ops.where(is_counted, x, ops.zeros_like(x)) for x in sums]
    total = ops.stack([ops.sum(x) for x in sums])
    return ops.expand_dims(ops.cast(total, "float32"), 0)


def sum_repeated_rows(indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sums the rows of a sparse gradient that have the same index.

    The shapes stay as they are, so that this compiles where shapes must be
    known: every occurrence of an index gets the sum over all of them.

    Args:
        indices: Integers, shape `(n,)`.
        values: Shape `(n, ...)`.

    Returns:
        The summed values, shape `(n, ...)`, and booleans of shape `(n,)` that
        are true at one occurrence of each index.
    """
    count = ops.shape(values)[0]
    order = ops.argsort(indices)
    in_order = ops.take(indices, order)
    starts_in_order = ops.concatenate(
        [
            ops.ones_like(in_order[:1], dtype="bool"),
            ops.not_equal(in_order[1:], in_order[:-1]),
        ]
    )
    segments_in_order = ops.cumsum(ops.cast(starts_in_order, "int32")) - 1
    back = ops.argsort(order)
    segments = ops.take(segments_in_order, back)
    sums = ops.segment_sum(values, segments, num_segments=count)
    return (
        ops.take(sums, segments, axis=0),
        ops.take(starts_in_order, back),
    )


# On torch Keras's `maximum` and `minimum` round float64 to float32.


def _maximum(x: Tensor, y: Tensor) -> Tensor:
    if keras.backend.standardize_dtype(x.dtype) != "float64":
        return ops.maximum(x, y)
    return ops.where(ops.logical_or(x > y, ops.isnan(x)), x, y)


def _minimum(x: Tensor, y: Tensor | float) -> Tensor:
    if keras.backend.standardize_dtype(x.dtype) != "float64":
        return ops.minimum(x, y)
    return ops.where(ops.logical_or(x < y, ops.isnan(x)), x, y)
