"""`AdamaxClipped`: hyperparameters, state and configuration."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax import (
    _validation,
    backends,
    exclusions,
    hyperparameters,
    updates,
)
from keras_adamax._keras_private import NotDecayed
from keras_adamax.clip_statistics import (
    ClipCounts,
)
from keras_adamax.exclusions import Exclusions
from keras_adamax.gradient_statistics import (
    GradientTotals,
)
from keras_adamax.hyperparameters import LiveHyperparameters
from keras_adamax.kernel_choice import kernel_choice
from keras_adamax.learning_rate import LearningRate
from keras_adamax.optimizer.guarded_apply import GuardedApply
from keras_adamax.optimizer.readings import Readings
from keras_adamax.optimizer.saved_variables import SavedVariables
from keras_adamax.optimizer.state_variables import StateVariables
from keras_adamax.state.restoration import Parts, Restoration

Tensor = Any


@keras.saving.register_keras_serializable("keras_adamax")
class AdamaxClipped(StateVariables, GuardedApply, Readings, SavedVariables):
    """Adamax that clips each gradient element by its own past.

    Use it where gradients are spiky - recurrent networks, long sequences, tiny
    batches - and a clipping threshold would have to be guessed. An element may
    exceed the running maximum of its weight's past gradients by no more than
    `clip_multiplier`; the bound adapts to every weight by itself.

    For a weight `w` with gradient `g`, first moment `m` and infinity norm `u`
    (both start at 0):

        bound = clip_multiplier * u + clip_epsilon
        g = clip(g, -bound, bound)
        m = beta_1 * m + (1 - beta_1) * g
        u = max(beta_2 * u, |g|)
        w = w - learning_rate * m / (u + epsilon)

    `u` starts at 0, so the first gradient is cut to `clip_epsilon`, and the
    bound then grows by at most the multiplier a step: some dozens of steps of
    built-in warm-up, in which gradients much larger than `clip_epsilon` are
    clipped nearly everywhere.

    State and arithmetic are float32 for float16 and bfloat16 weights. Sparse
    gradients (`tf.IndexedSlices`, JAX's `BCOO`, torch's sparse COO, all of
    whole rows) are handled lazily: rows with the same index are summed, and
    only the rows that appear decay, clip and move.

    Args:
        learning_rate: Step size. Float or integer >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Keras evaluates a schedule at the number of
            calls, micro-steps of gradient accumulation included. Defaults to
            `0.001`.
        beta_1: Decay rate of the first moment. Number in [0, 1) or a
            schedule. Defaults to `0.9`.
        beta_2: Decay rate of the infinity norm. Number in [0, 1) or a
            schedule. Defaults to `0.999`.
        epsilon: Added to the infinity norm before the division. Number >= 0.
            Defaults to `1e-8`.
        clip_gradients: Whether gradients are clipped. `False` leaves Adamax.
            Defaults to `True`.
        clip_multiplier: How much larger than the running maximum of its past
            a gradient element may be. Number >= 1, a schedule, whose values
            are held at 1 from below, or a `TargetClipRate`, which says how
            often to clip in its place. Defaults to `1.2`.
        clip_epsilon: Added to the bound, in units of the gradient; lets a
            weight start that had no gradient so far. Number >= 0 or a
            schedule. Defaults to `1e-4`.
        bias_correction: Whether the step is divided by
            `1 - beta_1^t` (by one minus the product of all values so far,
            where `beta_1` is a schedule). Defaults to `False`, as in the
            original.
        exclude_from_clipping: List of regular expressions; a variable whose
            path one of them matches (`re.search`) is updated without
            clipping. Each must match a variable when the optimizer is built.
            Defaults to `None`.
        track_clip_rate: Whether clipped elements are counted, see
            `clip_rates`. Defaults to `True`.
        track_gradient_norms: Whether the squares of gradients, updates and
            momentums are added up, and NaNs and infinities of gradients
            counted; see `gradient_statistics` and `nonfinite_gradients`. The
            update does that in the same pass over memory. Defaults to
            `False`.
        skip_nonfinite: Whether a call of `apply` in which any gradient has a
            NaN or an Inf is skipped as a whole: it adds one to
            `skipped_steps()` and changes nothing else in the optimizer or its
            variables. What the forward pass changed (BatchNormalization's
            averages, seeds, metrics) stays changed. Defaults to `False`:
            NaN spreads, and an Inf is clipped like any oversized element.
        spike_threshold: `None` or a number in (0, 1): the spike gate. A call
            of `apply` in which a larger fraction of the gradient elements
            exceeds its bound is a spike. It is left out like a non-finite one:
            it adds one to `spike_steps()` and changes nothing else. A step at
            or below the threshold arms the gate; before the first one, and so
            in the warm-up, nothing is left out. Ordinary steps have a few per
            cent, a spoilt batch has nearly all. `0.2` is a good start.
            `spikes()` says which calls were left out, and for which variables.
            Defaults to `None`: no step is left out.
        max_skipped_spikes: Integer >= 1: how many spikes in a row are left
            out. The next one is applied and disarms the gate, so that the
            bound follows a lasting change of the gradients' scale. Without a
            `spike_threshold` it has no effect. Defaults to `5`.
        weight_decay: `None` or a number >= 0, see Keras. It is dense: it
            moves the rows that a sparse gradient leaves alone, too. Defaults
            to `None`.
        clipnorm: `None` or a number > 0: Keras's clipping of each gradient's
            norm, before ours. Only one of the three can be set. Defaults to
            `None`.
        clipvalue: `None` or a number > 0: Keras's clipping of each element,
            before ours. Defaults to `None`.
        global_clipnorm: `None` or a number > 0: Keras's clipping of the norm
            of all gradients, before ours. Defaults to `None`.
        use_ema: Whether Keras keeps a moving average of the weights. Defaults
            to `False`.
        ema_momentum: Number in [0, 1], see Keras. Defaults to `0.99`.
        ema_overwrite_frequency: `None` or an integer >= 1, see Keras. Defaults
            to `None`.
        loss_scale_factor: `None` or a number > 0, see Keras. Defaults to
            `None`.
        gradient_accumulation_steps: `None` or an integer >= 2, see Keras.
            Defaults to `None`.
        name: Name of the optimizer. Defaults to `"adamax_clipped"`.

    `learning_rate`, `beta_1`, `beta_2`, `epsilon`, `clip_multiplier`,
    `clip_epsilon`, `spike_threshold`, `max_skipped_spikes` and `weight_decay`
    can be set on a live optimizer where they are numbers, and take effect in
    the next step; `max_skipped_spikes` only where there is a
    `spike_threshold`. Everything else is read-only.

    The rate that the gate compares with the threshold is the number of
    elements above their bound over the number that the clipping is given, over
    all variables of the call. Gradients are judged as the update is given
    them: unscaled, summed over replicas, after Keras's clipping. A NaN is not
    above its bound, an Inf is. With gradient accumulation the gate judges
    each micro-batch by the update that it would lead to: the gradients
    accumulated so far and its own, divided by the number of micro-batches. It
    leaves out the micro-batch alone, and only a complete update arms it. Where
    all variables together have more than 1,048,576 elements it looks at a
    sample, evenly spread in runs of 16: at least 131,072 elements in all, and
    at least 8,192 of each variable that has as many; at all elements where JAX
    has several devices or the variable is spread over some. A step that
    `skip_nonfinite` leaves out does not reach the gate.

    The gate is part of the state only where there is a `spike_threshold`, and
    the totals of `track_gradient_norms` only with that. A
    file that was saved without one loads into an optimizer with one, whose
    gate is then not armed and has left out nothing; the other way about, the
    gate's part is not read. `set_weights`, `set_state_tree` and TensorFlow's
    checkpoints need an optimizer that has one, too. Keras's wrappers know the
    number of variables alone: a LossScaleOptimizer then warns and starts with
    its first scale.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument is out of range, or `clip_multiplier` is a
            `TargetClipRate` and `clip_gradients` or `track_clip_rate` is
            `False`, or its target is not below `spike_threshold`.

    Example:
        >>> import keras, keras_adamax
        >>> optimizer = keras_adamax.AdamaxClipped(
        ...     learning_rate=0.5, clip_multiplier=2.0, clip_epsilon=0.25
        ... )
        >>> weight = keras.Variable([1.0], name="weight")
        >>> gradient = keras.ops.convert_to_tensor([4.0])
        >>> optimizer.apply([gradient], [weight])
        >>> optimizer.clip_rates()
        {'weight': 1.0}
        >>> print(keras.ops.convert_to_numpy(weight))
        [0.95]

    References:
        - [Kingma & Ba, 2014](https://arxiv.org/abs/1412.6980), section 7.1.
          Differs: epsilon is added in the division.
        - [Freivalds & Liepins, 2017](https://arxiv.org/abs/1702.08727): the
          clipping, and no bias correction.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float | LearningRateSchedule = 0.999,
        epsilon: float = 1e-8,
        clip_gradients: bool = True,
        clip_multiplier: float | LearningRateSchedule = 1.2,
        clip_epsilon: float | LearningRateSchedule = 1e-4,
        bias_correction: bool = False,
        exclude_from_clipping: Sequence[str] | None = None,
        track_clip_rate: bool = True,
        track_gradient_norms: bool = False,
        skip_nonfinite: bool = False,
        spike_threshold: float | None = None,
        max_skipped_spikes: int = 5,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "adamax_clipped",
        **kwargs: Any,
    ):
        if kwargs:
            raise ValueError(
                "AdamaxClipped does not have the argument(s) "
                f"{', '.join(map(repr, kwargs))}. Received: {kwargs}."
            )
        learning_rate = hyperparameters.check("learning_rate", learning_rate)
        values = {
            name: hyperparameters.check(name, value)
            for name, value in {
                "beta_1": beta_1,
                "beta_2": beta_2,
                "epsilon": epsilon,
                "clip_multiplier": clip_multiplier,
                "clip_epsilon": clip_epsilon,
                "weight_decay": weight_decay,
                "spike_threshold": spike_threshold,
                "max_skipped_spikes": max_skipped_spikes,
            }.items()
        }
        flags = {
            name: _validation.check_bool(name, value)
            for name, value in {
                "clip_gradients": clip_gradients,
                "bias_correction": bias_correction,
                "track_clip_rate": track_clip_rate,
                "track_gradient_norms": track_gradient_norms,
                "skip_nonfinite": skip_nonfinite,
                "use_ema": use_ema,
            }.items()
        }
        hyperparameters.check_combination(
            values, clip_gradients, track_clip_rate
        )
        live = LiveHyperparameters(values)
        if clip_gradients and (
            np.float32(live.written.get("clip_epsilon", 1.0)) == 0
        ):
            warnings.warn(
                "With clip_epsilon=0 no weight ever moves: the bound starts at "
                "0 and can only grow from a gradient that it lets through. "
                f"Received: clip_epsilon={clip_epsilon!r}, "
                "clip_gradients=True.",
                stacklevel=2,
            )
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(
                "`name` must be a string without '/', and not empty. "
                f"Received: name={name!r}."
            )
        is_schedule = callable(learning_rate)
        super().__init__(
            # Keras keeps a number in a variable. A schedule gets one as well
            # (unused), so that the layout of the state is the same, and a
            # wrapper's positional state survives a change of the kind.
            learning_rate=0.0 if is_schedule else float(learning_rate),
            clipnorm=_positive("clipnorm", clipnorm),
            clipvalue=_positive("clipvalue", clipvalue),
            global_clipnorm=_positive("global_clipnorm", global_clipnorm),
            use_ema=flags["use_ema"],
            ema_momentum=_validation.check_number(
                "ema_momentum", ema_momentum, minimum=0, maximum=1
            ),
            ema_overwrite_frequency=_validation.check_optional_integer(
                "ema_overwrite_frequency", ema_overwrite_frequency, minimum=1
            ),
            loss_scale_factor=_positive("loss_scale_factor", loss_scale_factor),
            gradient_accumulation_steps=_validation.check_optional_integer(
                "gradient_accumulation_steps",
                gradient_accumulation_steps,
                minimum=2,
            ),
            name=name,
        )
        self._backend = backends.load()
        self._updates = updates.load()
        self._kernel_choice = kernel_choice(self._updates.CHOICES)
        self._live = live
        self._rate = LearningRate(
            learning_rate, self._learning_rate, self._backend
        )
        if is_schedule:
            self._learning_rate = learning_rate
        self.clip_gradients = flags["clip_gradients"]
        self.bias_correction = flags["bias_correction"]
        self.track_clip_rate = flags["track_clip_rate"]
        self.track_gradient_norms = flags["track_gradient_norms"]
        self.skip_nonfinite = flags["skip_nonfinite"]
        self.exclude_from_clipping = exclusions.check_patterns(
            "exclude_from_clipping", exclude_from_clipping
        )
        self._add_scalar_variables()
        self._paths: tuple[str, ...] = ()
        self._clip_counts: ClipCounts | None = None
        self._gradient_totals: GradientTotals | None = None
        self._exclusions = Exclusions(self.exclude_from_clipping)
        self._not_decayed = NotDecayed(self)
        self._restoration = Restoration(
            self._table,
            Parts(
                live=live,
                learning_rate=self._rate,
                beta_1_product=self._beta_1_product,
                exclusions=self._exclusions,
                not_decayed=self._not_decayed,
                backend=self._backend,
            ),
        )
        self._weight_decay_readers = 0
        self._is_constructed = True

    def get_config(self) -> dict[str, Any]:
        """The configuration, with the numbers as they were written."""
        values = self._backend.to_numpy(self._hyperparameters)
        config = {
            name: self._live.get(name, values)
            for name in hyperparameters.PACKED
        }
        for name, schedule in self._live.schedules.items():
            config[name] = keras.saving.serialize_keras_object(schedule)
        return {
            "learning_rate": self._rate.config(),
            **config,
            "clip_gradients": self.clip_gradients,
            "bias_correction": self.bias_correction,
            "exclude_from_clipping": (
                None
                if self.exclude_from_clipping is None
                else list(self.exclude_from_clipping)
            ),
            "track_clip_rate": self.track_clip_rate,
            "track_gradient_norms": self.track_gradient_norms,
            "skip_nonfinite": self.skip_nonfinite,
            "clipnorm": self.clipnorm,
            "clipvalue": self.clipvalue,
            "global_clipnorm": self.global_clipnorm,
            "use_ema": self.use_ema,
            "ema_momentum": self.ema_momentum,
            "ema_overwrite_frequency": self.ema_overwrite_frequency,
            "loss_scale_factor": self.loss_scale_factor,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> "AdamaxClipped":
        """Makes an optimizer from `get_config`'s result, which stays as it is.

        Args:
            config: The configuration.
            custom_objects: Names of schedules that are not registered.
        """
        config = dict(config)
        for name in ("learning_rate", *hyperparameters.SCHEDULABLE):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(
                    config[name], custom_objects=custom_objects
                )
        optimizer = cls(**config)
        # Paths may have changed since the patterns were written; the saved
        # state, which Keras loads after it has built, says what they matched.
        optimizer._restoration.is_expected = True
        return optimizer


def _positive(name: str, value: Any) -> int | float | None:
    return _validation.check_optional_number(name, value, exclusive_minimum=0)
