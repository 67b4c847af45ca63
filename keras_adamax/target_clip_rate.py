"""`TargetClipRate`: a clip rate in place of a clip multiplier."""

from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax._validation import check_number

Tensor = Any

# Of `clip_multiplier - 1`. It starts where the default multiplier is.
START = 0.2
SMALLEST = 1e-4
LARGEST = 1e3
# At 0.05 the rate of heavy-tailed noise is still 20 % off after 800 steps.
_SPEED = 0.1
# In units of the target. Without a limit a single spoilt step, in which all is
# clipped, would multiply `clip_multiplier - 1` by `exp(10)` for a target of
# 0.01; with a lower one than this the rate of small models would be too high.
_MOST_ABOVE_TARGET = 4.0
WARM_UP_STEPS = 100


@keras.saving.register_keras_serializable("keras_adamax")
class TargetClipRate(LearningRateSchedule):
    """How often to clip, in place of a `clip_multiplier`.

    Use it where a multiplier would have to be guessed: the multiplier that
    clips one element in a hundred depends on `beta_2`, on the distribution of
    the gradients and on the phase of the training, and this follows all of
    them. It is a closed loop: a step that clipped more than `target` raises
    the multiplier of the next one, a step that clipped less lowers it.

        rate = clipped elements / elements given to the clipping
        speed = 0.1 * min(rate / target - 1, 4)
        clip_multiplier = 1 + (clip_multiplier - 1) * exp(speed)

    The rate is that of one step over all variables, each element counted like
    any other. The multiplier starts at 1.2, is held between 1.0001 and 1001,
    and is not raised in the first 100 updates, in which the bound grows from 0
    (see `AdamaxClipped`). A step without any such element leaves it as it is,
    as do steps that are left out (`skip_nonfinite`) and the micro-steps of
    gradient accumulation. It is part of the optimizer's saved state.

    On steady noise (normal, Laplace, Student's t with 2 degrees of freedom;
    targets 0.01 and 0.05; the default `beta_2`) the mean rate of the steps 500
    to 800 is within 5 % of the target.

    The multiplier cannot fall below 1, so a target can be out of reach for a
    while: after a burst of large gradients nothing is clipped until the
    infinity norm has come down again, by a factor of `beta_2` a step (6,900
    steps with 0.999, for a burst of a thousand times the scale).
    `ClipRateLogger` warns of that once. On steady noise every target is
    reached in the end (tried: 0.001 to 0.5, with a `beta_2` of 0 to 0.9999; of
    these only 0.5 with 0.9999 was not, where the rate stayed at 0.29),
    because what is not clipped lets the norm shrink by `beta_2`, and what is
    clipped lets it grow by the multiplier. For a target well above
    `1 - beta_2` the multiplier therefore settles near
    `1 + (1 - beta_2) / target`; the nearer `beta_2` is to 1, the longer that
    takes, some `1 / (1 - beta_2)` steps.

    The loop sets how much is clipped in ordinary steps. It alone is no cure
    for spikes: a spoilt batch still moves all moments, and raises the
    multiplier for the next. In `benchmarks/training.py`, on digits with 5 %
    spoilt batches, it ended at a loss of 0.090, against 0.051 where the spike
    gate left such steps out.

    It is for `clip_multiplier` alone, and cannot be a part of another
    schedule: its value depends on the gradients and not on the step.

    Args:
        target: Wanted fraction of clipped gradient elements. Number in (0, 1).

    Raises:
        TypeError: If `target` is no number.
        ValueError: If `target` is outside (0, 1).

    Example:
        >>> import keras, keras_adamax
        >>> optimizer = keras_adamax.AdamaxClipped(
        ...     clip_multiplier=keras_adamax.TargetClipRate(0.01)
        ... )
        >>> weight = keras.Variable([1.0, 2.0], name="weight")
        >>> nothing = keras.ops.convert_to_tensor([0.0, 0.0])
        >>> for _ in range(10):
        ...     optimizer.apply([nothing], [weight])
        >>> print(f"{optimizer.current_clip_multiplier():.3f}")
        1.074

    References:
        - [Andrew et al., 2019](https://arxiv.org/abs/1905.03871): a geometric
          update towards a quantile, of a threshold for norms. Differs: it is
          applied to `clip_multiplier - 1`, the speed is relative to the
          target, and a single step is limited.
    """

    def __init__(self, target: float):
        self._target = check_number(
            "target", target, exclusive_minimum=0, exclusive_maximum=1
        )

    @property
    def target(self) -> float:
        """The wanted fraction of clipped gradient elements."""
        return self._target

    def __call__(self, step: Tensor) -> Tensor:
        """Refuses: there is no value that depends on the step alone.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "`TargetClipRate` has no value for a step: it depends on what was "
            "clipped. It must be given to `AdamaxClipped` as "
            "`clip_multiplier` itself, and not be a part of another schedule. "
            f"Received: step={step!r}."
        )

    def next_excess(
        self, excess: Tensor, clipped: Tensor, counted: Tensor, updates: Tensor
    ) -> Tensor:
        """`clip_multiplier - 1` for the step after this one.

        Operators and tensors in place of numbers as arguments, because Keras
        copies a number to a GPU, which on torch waits for it.

        Args:
            excess: That of this step. Scalar.
            clipped: How many elements this step clipped. Scalar, of the same
                dtype.
            counted: How many elements it was given, likewise.
            updates: Number of updates before this one. Integer scalar.

        Returns:
            A scalar like `excess`.
        """
        one = ops.ones_like(excess)
        rate = clipped / ops.maximum(counted, one)
        error = (rate / self._target - 1.0) * ops.minimum(counted, one)
        is_warm = ops.convert_to_tensor(updates) >= WARM_UP_STEPS
        most = _MOST_ABOVE_TARGET * ops.cast(is_warm, excess.dtype)
        excess = excess * ops.exp(_SPEED * ops.minimum(error, most))
        return ops.maximum(ops.minimum(excess, LARGEST * one), SMALLEST * one)

    def get_config(self) -> dict[str, Any]:
        """The arguments, ready for JSON."""
        return {"target": self._target}
