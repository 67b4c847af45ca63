"""`AdamaxClipped`: hyperparameters, state and configuration."""

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_adamax import (
    _validation,
    backends,
    exact_totals,
    exclusions,
    hyperparameters,
    spike_counts,
    spike_rule,
    target_clip_rate,
    update_rule,
    updates,
)
from keras_adamax._keras_private import NotDecayed
from keras_adamax.backends.step import Changes, Step, Sums
from keras_adamax.beta_1_product import Beta1Product
from keras_adamax.clip_statistics import (
    ClipCounts,
    ClipStatistics,
    statistics_of,
)
from keras_adamax.exclusions import Exclusions
from keras_adamax.gradient_statistics import (
    GradientStatistics,
    GradientTotals,
    NonfiniteGradient,
)
from keras_adamax.hyperparameters import LiveHyperparameters, LiveNumber
from keras_adamax.kernel_choice import kernel_choice
from keras_adamax.learning_rate import LearningRate
from keras_adamax.spike_gate import Clock, SpikeGate
from keras_adamax.spike_rule import Spike, SpikeStatistics
from keras_adamax.state.planning import CLIP_EXCESS, Table
from keras_adamax.state.restoration import Parts, Restoration

Tensor = Any

_READ_ONLY = frozenset(
    {
        "clip_gradients",
        "bias_correction",
        "exclude_from_clipping",
        "track_clip_rate",
        "track_gradient_norms",
        "skip_nonfinite",
        "has_spike_gate",
        "spike_tolerance",
        "target_clip_rate",
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "use_ema",
        "ema_momentum",
        "ema_overwrite_frequency",
        "gradient_accumulation_steps",
        "name",
    }
)


@keras.saving.register_keras_serializable("keras_adamax")
class AdamaxClipped(keras.optimizers.Optimizer):
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

    beta_1 = LiveNumber("Decay rate of the first moment, or its schedule.")
    beta_2 = LiveNumber("Decay rate of the infinity norm, or its schedule.")
    epsilon = LiveNumber("Added to the infinity norm before the division.")
    clip_multiplier = LiveNumber("Growth of the bound, or its schedule.")
    clip_epsilon = LiveNumber("Added to the bound, or its schedule.")
    spike_threshold = LiveNumber("Rate above which a step is a spike, or None.")
    max_skipped_spikes = LiveNumber("How many spikes in a row are left out.")

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

    def _add_scalar_variables(self) -> None:
        dtype = "float64" if keras.config.floatx() == "float64" else "float32"
        packed = self.add_variable(
            shape=self._live.packed.shape,
            initializer=keras.initializers.Constant(
                self._live.packed.astype(dtype)
            ),
            dtype=dtype,
            aggregation="only_first_replica",
            name="hyperparameters",
        )
        self._hyperparameters = packed
        product = self.add_variable(
            shape=(),
            dtype=dtype,
            aggregation="only_first_replica",
            name="log_beta_1_product",
        )
        self._beta_1_product = Beta1Product(
            product, self._live, self.gradient_accumulation_steps or 1
        )
        self._skipped_steps = self.add_variable(
            shape=(),
            dtype="int32",
            aggregation="only_first_replica",
            name="skipped_steps",
        )
        # Without a gate the state is the one of before there were gates:
        # Keras's wrappers drop a state that has another number of variables.
        self._spike_gate = None
        if "spike_threshold" in self._live.written:
            self._spike_gate = SpikeGate(
                self.add_variable, self._live, self._backend
            )
        self._clip_excess = None
        if self._live.target_clip_rate is not None:
            self._clip_excess = self.add_variable(
                shape=(),
                initializer=keras.initializers.Constant(target_clip_rate.START),
                dtype=dtype,
                aggregation="only_first_replica",
                name="clip_multiplier_minus_1",
            )
        self._live.attach(packed, self._clip_excess)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state for a list of variables.

        A list without any builds nothing: Keras gives an empty one when it
        loads a whole-model `.h5` file, and the optimizer is then built with
        the model's variables in the first step.

        Args:
            variables: The trainable variables of the model.

        Raises:
            ValueError: If a pattern of `exclude_from_clipping` matches none of
                their paths, or a state loaded before does not fit.
        """
        variables = list(variables)
        if self.built:
            return
        if not variables:
            self._restoration.build_without_variables()
            return
        self._restoration.warn_if_empty(self.name)
        paths = _unique_paths(variables)
        excluded, unmatched = exclusions.resolve(
            self.exclude_from_clipping, paths
        )
        self._exclusions.unmatched = tuple(unmatched)
        restoration = self._restoration
        if not (restoration.is_expected or restoration.saved):
            self._exclusions.check(paths)
        super().build(variables)
        self._paths = paths
        self._momentums = [
            self._add_state(variable, "momentum") for variable in variables
        ]
        self._norms = [
            self._add_state(variable, "norm") for variable in variables
        ]
        self._state_dtypes = [
            None
            if norm is None
            else keras.backend.standardize_dtype(norm.dtype)
            for norm in self._norms
        ]
        if self._spike_gate is not None:
            total = sum(math.prod(v.shape) for v in variables)
            self._spike_gate.strides = [
                spike_rule.stride_of(v.shape, total)
                if norm is not None and self._backend.can_sample(norm)
                else 1
                for v, norm in zip(variables, self._norms, strict=True)
            ]
        counts = self.add_variable(
            shape=(len(variables), exact_totals.ROW_LENGTH),
            dtype="float32",
            name="clip_counts",
        )
        excluded = excluded.astype("float32")
        flags = self.add_variable(
            shape=(len(variables),),
            initializer=keras.initializers.Constant(excluded),
            dtype="float32",
            name="clipping_exclusions",
        )
        if self.track_gradient_norms:
            self._gradient_totals = GradientTotals(
                self.add_variable, paths, self._backend
            )
        self._clip_counts = ClipCounts(counts, flags, paths, self._backend)
        restoration.give_to_variables(excluded)

    def _add_state(self, variable: Any, name: str) -> Any:
        if self._overwrite_variable_with_gradient(variable):
            return None
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if update_rule.compute_dtype(dtype) == dtype:
            return self.add_variable_from_reference(variable, name=name)
        path = getattr(variable, "path", variable.name)
        return self.add_variable(
            shape=variable.shape,
            dtype=update_rule.compute_dtype(dtype),
            layout=getattr(variable, "_layout", None),
            name=f"{path.replace('/', '_').replace(':', '_')}_{name}",
        )

    def apply(
        self,
        grads: Sequence[Any],
        trainable_variables: Sequence[Any] | None = None,
    ) -> None:
        """Updates variables with their gradients.

        Args:
            grads: One gradient per variable: a tensor, sparse rows, or
                `None`.
            trainable_variables: The variables; needed in the first call of an
                optimizer that was not built.
        """
        grads = list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built and trainable_variables:
                with keras.name_scope(self.name, caller=self):
                    self.build(trainable_variables)
        if self.built:
            self._restoration.give_to_variables()
        self._exclusions.check(self._paths)
        targets = trainable_variables
        if targets is None:
            targets = self._trainable_variables if self.built else grads
        if grads and len(grads) != len(targets):
            raise ValueError(
                "`grads` must have a gradient, or None, for each variable. "
                f"Received: {len(grads)} gradient(s) for {len(targets)} "
                "variable(s)."
            )
        with self._backend.no_gradient():
            grads = [
                self._prepare(gradient, variable)
                for gradient, variable in zip(grads, targets, strict=False)
            ]
            gate = self._spike_gate if self.built else None
            if not (self.skip_nonfinite or gate) or all(
                g is None for g in grads
            ):
                super().apply(grads, trainable_variables)
                return
            is_applied, decided = self._decide(grads, targets, gate)
            self._updates.apply_if(
                is_applied,
                super().apply,
                grads,
                trainable_variables,
                lambda: self._changes(grads, targets, decided),
            )
            for variable, value in decided:
                variable.assign(value)

    def _changes(
        self,
        grads: Sequence[Any],
        variables: Sequence[Any],
        decided: Sequence[tuple[Any, Tensor]],
    ) -> Changes:
        """What Keras's `apply` may change, but for what is decided before."""
        own = {id(variable) for variable, _ in decided}
        of_optimizer = [v for v in self.variables if id(v) not in own]
        small = None
        if (
            self._kernel_choice != "reference"
            # The attribute would be read from the device.
            and "weight_decay" not in self._live.written
            and not self.use_ema
            and not self.gradient_accumulation_steps
            and not any(map(self._backend.is_sparse, grads))
            and all(
                v.constraint is None
                and not self._overwrite_variable_with_gradient(v)
                for v in variables
            )
        ):
            large = {id(v) for v in (*self._momentums, *self._norms)}
            small = [v for v in of_optimizer if id(v) not in large]
        return Changes(
            kernel=self._kernel_choice,
            weights=list(variables),
            all=of_optimizer + self._trainable_variables,
            small=small,
        )

    def _decide(
        self,
        grads: Sequence[Any],
        variables: Sequence[Any],
        gate: SpikeGate | None,
    ) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
        """Whether a step is applied, and what is then known of all steps.

        Returns:
            A boolean scalar, and pairs of a variable and its next value.
        """
        is_applied = None
        decided: list[tuple[Any, Tensor]] = []
        if self.skip_nonfinite:
            is_applied, found = self._find_nonfinite(grads, variables)
            decided += found
            skipped = ops.convert_to_tensor(self._skipped_steps)
            is_skipped = 1 - ops.cast(is_applied, self._skipped_steps.dtype)
            decided.append((self._skipped_steps, skipped + is_skipped))
        if gate is not None:
            self._check_variables_are_known(variables)
            counts, indices = self._count_above(grads, variables, gate)
            is_applied, changed = gate.decide(
                counts,
                indices,
                self._clock(),
                is_applied,
                self._hyperparameters.dtype,
            )
            decided += changed
        return is_applied, decided

    def _find_nonfinite(
        self, grads: Sequence[Any], variables: Sequence[Any]
    ) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
        """Whether all is finite, and what is then known of all steps."""
        scale = self.loss_scale_factor
        pairs = [
            (g if scale is None else g / scale, v)
            for g, v in zip(grads, variables, strict=True)
            if g is not None
        ]
        given = [g for g, _ in pairs]
        totals = self._gradient_totals
        if totals is None:
            return self._updates.is_finite(given, self._kernel_choice), []
        self._check_variables_are_known(variables)
        found = self._updates.count_nonfinite(given, self._kernel_choice)
        indices = [self._get_variable_index(v) for _, v in pairs]
        rows = self._backend.call_untraced(
            totals.nonfinite_after, indices, found, self._number_of_call()
        )
        return ops.all(found == 0), [(totals.nonfinite, rows)]

    def _number_of_call(self) -> Tensor:
        """That of the present call of `apply`, from 1 on."""
        calls = self._clock().calls + 1
        gate = self._spike_gate
        return calls if gate is None else calls + gate.steps_on_device()

    def _clock(self) -> Clock:
        steps = self.gradient_accumulation_steps
        skipped = ops.convert_to_tensor(self._skipped_steps)
        return Clock(
            calls=ops.cast(self._iterations, "int32") + skipped,
            updates=ops.cast(self.iterations, "int32"),
            is_update=(
                None if steps is None else (self._iterations + 1) % steps == 0
            ),
        )

    def _count_above(
        self, grads: Sequence[Any], variables: Sequence[Any], gate: SpikeGate
    ) -> tuple[list[spike_rule.Counts], list[int]]:
        """Of the gradients as the clipping is going to be given them.

        Returns:
            What was found, and the indices of the variables in that order.
        """
        pairs = [
            (
                ops.convert_to_tensor(g) if isinstance(g, np.ndarray) else g,
                self._get_variable_index(v),
            )
            for g, v in zip(grads, variables, strict=True)
            if g is not None and not self._overwrite_variable_with_gradient(v)
        ]
        indices = [index for _, index in pairs]
        steps = self.gradient_accumulation_steps
        given = spike_counts.treat(
            [g for g, _ in pairs],
            indices,
            [self._norms[i].shape for i in indices],
            [gate.strides[i] for i in indices],
            spike_counts.Treatment(
                loss_scale_factor=self.loss_scale_factor,
                gradient_accumulation_steps=steps,
                accumulated=self._accumulated_gradients if steps else (),
                clip=self._clip_gradients,
                is_elementwise=self.clipnorm is self.global_clipnorm is None,
                is_needed=not (
                    self.loss_scale_factor is steps is self.clipvalue is None
                ),
            ),
        )
        assert self._clip_counts is not None
        excluded = None
        if self.exclude_from_clipping:
            flags = self._clip_counts.exclusions
            excluded = ops.convert_to_tensor(flags) > 0.0
        return spike_counts.count_above(
            given,
            spike_counts.Bounds(
                self._norms, self._state_dtypes, self._bound_scalars, excluded
            ),
            self._kernel_choice,
        )

    def _bound_scalars(self, dtype: str) -> tuple[Tensor, Tensor]:
        return (
            self._live.tensor("clip_multiplier", self.iterations, dtype),
            self._live.tensor("clip_epsilon", self.iterations, dtype),
        )

    def _prepare(self, gradient: Any, variable: Any) -> Any:
        """Makes a sparse gradient one that Keras handles rightly."""
        if gradient is None or not self._backend.is_sparse(gradient):
            return gradient
        if self.gradient_accumulation_steps:
            # The gradient itself may not know its shape.
            return self._backend.to_dense(gradient, variable.shape)
        if (
            self.clipnorm is None
            and self.clipvalue is None
            and self.global_clipnorm is None
            and self.loss_scale_factor is None
            and not self.skip_nonfinite
        ):
            return gradient
        # A norm is one of summed rows: each sum stands at one occurrence.
        _, values, is_first = self._backend.summed_rows(gradient)
        is_first = ops.reshape(
            is_first, (-1,) + (1,) * (len(variable.shape) - 1)
        )
        return self._backend.with_values(
            gradient, ops.where(is_first, values, ops.zeros_like(values))
        )

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Gives the variables their moving averages, with `use_ema`.

        Args:
            var_list: The variables that the optimizer was built with.
        """
        # It is not built yet where there was nothing to train.
        if self.built:
            super().finalize_variable_values(var_list)

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
    ) -> tuple[list[Any], list[Any]]:
        """As `apply`, on values in place of variables (JAX).

        Args:
            optimizer_variables: One value for each of `self.variables`.
            grads: One gradient per variable.
            trainable_variables: One value per variable.

        Returns:
            The new values of the variables and of the optimizer's variables.
        """
        if not self.built and not trainable_variables:
            return list(trainable_variables), list(optimizer_variables)
        return super().stateless_apply(
            optimizer_variables, grads, trainable_variables
        )

    # What follows overrides private methods of Keras's optimizers, because
    # there is no public place for it; `tests/test_keras_hooks.py` fails when
    # Keras changes them.

    def _clip_gradients(self, grads: Sequence[Any]) -> list[Any]:
        if self.clipnorm is self.clipvalue is self.global_clipnorm is None:
            return list(grads)
        # Keras's clipping knows dense tensors only (or, of IndexedSlices, some
        # of it): it gets the values, each row of which is there once.
        values = [
            self._backend.rows(g)[1] if self._backend.is_sparse(g) else g
            for g in grads
        ]
        return [
            self._backend.with_values(g, v) if self._backend.is_sparse(g) else v
            for g, v in zip(grads, super()._clip_gradients(values), strict=True)
        ]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        variables = [v for v in variables if self._use_weight_decay(v)]
        if not variables:
            # On torch Keras's cannot do with an empty list.
            return
        self._weight_decay_readers += 1
        try:
            super()._apply_weight_decay(variables)
        finally:
            self._weight_decay_readers -= 1

    def _backend_update_step(
        self,
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
        learning_rate: Tensor,
    ) -> None:
        assert self._clip_counts is not None
        rows_before = None
        if self._clip_excess is not None:
            # A copy: torch's kernels write to the memory of the variable.
            rows_before = ops.copy(
                ops.convert_to_tensor(self._clip_counts.rows)
            )
        if self._kernel_choice == "reference" or self._backend.is_replicated():
            super()._backend_update_step(
                grads, trainable_variables, learning_rate
            )
        else:
            self._update_together(grads, trainable_variables, learning_rate)
        if rows_before is not None:
            self._follow_target_clip_rate(rows_before, self._clip_counts.rows)
        self._beta_1_product.advance(self.iterations, self.bias_correction)

    def _follow_target_clip_rate(self, before: Tensor, after: Any) -> None:
        """Sets the multiplier of the next step by what this one clipped."""
        target, excess = self._live.target_clip_rate, self._clip_excess
        assert target is not None and excess is not None
        clipped, counted = (
            ops.cast(total, excess.dtype)
            for total in exact_totals.step_totals(
                before, ops.convert_to_tensor(after)
            )
        )
        excess.assign(
            target.next_excess(
                ops.convert_to_tensor(excess), clipped, counted, self.iterations
            )
        )

    def _update_together(
        self,
        gradients: Sequence[Any],
        variables: Sequence[Any],
        learning_rate: Tensor,
    ) -> None:
        """Hands gradients to the backend's fused updates, all at once."""
        counts = self._clip_counts
        assert counts is not None
        kinds: dict[tuple[bool, str], list[tuple[int, Any]]] = {}
        sums: list[Sums] = []
        for gradient, variable in zip(gradients, variables, strict=True):
            index = self._get_variable_index(variable)
            kind = (
                self._backend.is_sparse(gradient),
                self._state_dtypes[index],
            )
            kinds.setdefault(kind, []).append((index, gradient))
        for (is_sparse, dtype), pairs in kinds.items():
            indices = tuple(index for index, _ in pairs)
            step = Step(
                kernel=self._kernel_choice,
                indices=indices,
                gradients=[gradient for _, gradient in pairs],
                weights=[self._trainable_variables[i] for i in indices],
                momentums=[self._momentums[i] for i in indices],
                norms=[self._norms[i] for i in indices],
                dtype=dtype,
                learning_rate=learning_rate,
                hyperparameters=self._hyperparameters_of_step,
                has_schedules=bool(self._live.schedules),
                clip_gradients=self.clip_gradients,
                exclusions=(
                    counts.exclusions
                    if self.clip_gradients and self.exclude_from_clipping
                    else None
                ),
                clip_counts=(
                    counts.rows
                    if self.clip_gradients and self.track_clip_rate
                    else None
                ),
                measures=self._gradient_totals is not None,
                # A dictionary, so that nobody saves with the optimizer what
                # is in it.
                kept=self.__dict__.setdefault("_kept_by_kernel", {}),
            )
            update = self._updates.update_dense
            if is_sparse:
                update = self._updates.update_rows
            updated = update(step)
            sums += updated.sums
            for position in updated.left:
                self.update_step(
                    step.gradients[position],
                    step.weights[position],
                    learning_rate,
                )
        if sums:
            self._add_sums(
                Sums(
                    [index for its in sums for index in its.indices],
                    ops.concatenate([its.values for its in sums]),
                )
            )

    def _add_sums(self, sums: Sums) -> None:
        """Adds what a step has measured to the totals."""
        self._backend.call_untraced(self._add_to_totals, sums)

    def _add_to_totals(self, sums: Sums) -> None:
        totals = self._gradient_totals
        assert totals is not None
        self.assign(totals.rows, totals.rows_after(sums))
        # With `skip_nonfinite`, what is not finite was counted before.
        if not self.skip_nonfinite:
            elements = sums.values[:, 4]
            rows = self._backend.value_if(
                ops.any(elements > 0.0),
                lambda: totals.nonfinite_after(
                    sums.indices,
                    ops.cast(elements, "int32"),
                    self._number_of_call(),
                ),
                ops.convert_to_tensor(totals.nonfinite),
            )
            self.assign(totals.nonfinite, rows)

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Tensor
    ) -> None:
        """Updates one variable, as the specification has it.

        Gradients come here where no fused update of the backend can serve.

        Args:
            gradient: Its gradient, dense or sparse rows.
            variable: The variable.
            learning_rate: Scalar.
        """
        index = self._get_variable_index(variable)
        state = (variable, self._momentums[index], self._norms[index])
        if not self._backend.is_sparse(gradient):
            values = [ops.convert_to_tensor(x) for x in state]
            values = self._update(index, gradient, values, learning_rate)
            for target, value in zip(state, values, strict=True):
                self.assign(target, value)
            return
        indices, gradient, is_counted = self._backend.summed_rows(gradient)
        values = [self._backend.take_rows(x, indices) for x in state]
        values = self._update(
            index, gradient, values, learning_rate, is_counted
        )
        for target, value in zip(state, values, strict=True):
            self._backend.assign_rows(target, indices, value)

    def _update(
        self,
        index: int,
        gradient: Tensor,
        values: Sequence[Tensor],
        learning_rate: Tensor,
        is_counted: Tensor | None = None,
    ) -> Sequence[Tensor]:
        """New weight, momentum and norm from old ones; counts and measures."""
        counts = self._clip_counts
        assert counts is not None
        is_excluded = None
        if self.clip_gradients:
            is_excluded = ops.convert_to_tensor(counts.exclusions)[index] > 0.0
        weight, momentum, norm = values
        measures = None
        if self._gradient_totals is not None:
            measures = functools.partial(
                update_rule.sums_of, is_counted=is_counted
            )
        weight, momentum, norm, clipped, sums = update_rule.update(
            gradient,
            weight,
            momentum,
            norm,
            self._hyperparameters_of_step(learning_rate, norm.dtype),
            is_excluded,
            measures,
        )
        if measures is not None:
            self._add_sums(Sums([index], sums))
        if self.clip_gradients and self.track_clip_rate:
            # The gradient itself may not know its shape.
            shape = tuple(self._trainable_variables[index].shape)
            rows = counts.row_after(
                index, clipped, is_counted, is_excluded, shape
            )
            self.assign(counts.rows, rows)
        return weight, momentum, norm

    def _hyperparameters_of_step(
        self, learning_rate: Tensor, dtype: Any
    ) -> update_rule.Hyperparameters:
        """All scalars of the step, as tensors of `dtype`."""
        dtype = keras.backend.standardize_dtype(dtype)

        def live(name: str) -> Tensor:
            return self._live.tensor(name, self.iterations, dtype)

        return update_rule.Hyperparameters(
            learning_rate=ops.cast(learning_rate, dtype),
            beta_1=live("beta_1"),
            beta_2=live("beta_2"),
            epsilon=live("epsilon"),
            clip_multiplier=live("clip_multiplier"),
            clip_epsilon=live("clip_epsilon"),
            bias_correction=(
                update_rule.bias_correction_factor(
                    self._beta_1_product.next(self.iterations, dtype)
                )
                if self.bias_correction
                else None
            ),
        )

    # Statistics

    @property
    def clip_counts(self) -> Any | None:
        """The totals as they are on the device, for `clip_statistics`.

        Returns:
            Variable of shape `(n, 6)`, float32, a row for each of the `n`
            variables; `None` before the optimizer is built.
        """
        return None if self._clip_counts is None else self._clip_counts.rows

    @property
    def infinity_norms(self) -> list[Any | None]:
        """The infinity norm `u` of each variable, as it is on the device.

        Returns:
            One variable, of the weight's shape, for each variable that the
            optimizer was built with; `None` for one that Keras overwrites with
            its gradient. Empty before the optimizer is built.
        """
        return list(self._norms) if self._clip_counts is not None else []

    def clip_statistics(self, rows: Any | None = None) -> ClipStatistics:
        """A snapshot of the totals, to measure from with `since`.

        Args:
            rows: NumPy array, a value of `clip_counts` that was brought to the
                host together with others. Defaults to the present value.

        Returns:
            The number of gradient elements clipped and counted since the
            optimizer was built, for each variable.
        """
        if self._clip_counts is not None:
            return self._clip_counts.statistics(rows)
        saved = self._restoration.saved
        if saved is None or not saved.paths:
            return ClipStatistics({}, {})
        return statistics_of(saved.per_variable("clip_counts"), saved.paths)

    def clip_rates(
        self, since: ClipStatistics | None = None
    ) -> dict[str, float]:
        """The fraction of gradient elements clipped, for each variable.

        Counted are the elements that the clipping was given: of a sparse
        gradient the summed unique rows, of an excluded variable, a skipped
        step or an absent gradient none.

        Args:
            since: A snapshot from `clip_statistics()`. Defaults to the last
                call of `reset_clip_rates()`, or to the beginning.

        Returns:
            Variable path to a fraction in [0, 1]; NaN where no element was
            counted. With `clip_gradients=False` all are 0.
        """
        elapsed = self._elapsed(since)
        if not self.clip_gradients:
            return dict.fromkeys(elapsed.counted, 0.0)
        return elapsed.rates()

    def clip_rate(self, since: ClipStatistics | None = None) -> float:
        """The fraction of all gradient elements clipped.

        Args:
            since: As for `clip_rates`.

        Returns:
            A fraction in [0, 1]; NaN where no element was counted.
        """
        elapsed = self._elapsed(since)
        return elapsed.rate() if self.clip_gradients else 0.0

    def _elapsed(self, since: ClipStatistics | None) -> ClipStatistics:
        now = self.clip_statistics()
        if since is not None:
            return now.since(since)
        origin = self._restoration.present_origin(self._clip_counts)
        # A later one is of another state: the totals alone were set.
        if origin is None or not now.is_after(origin):
            return now
        return now.since(origin)

    def reset_clip_rates(self) -> None:
        """Makes `clip_rates()` and `clip_rate()` count from now on.

        The totals go on, so that nobody who measures from a snapshot of his
        own is disturbed.
        """
        now = self.clip_statistics()
        origin = now if now.counted else None
        if self._clip_counts is None:
            self._restoration.origin = origin
        else:
            self._clip_counts.origin = origin

    @property
    def gradient_totals(self) -> tuple[Any, Any] | None:
        """What `gradient_statistics` and `nonfinite_gradients` read.

        Returns:
            Two variables, float32, of shapes `(n, 5, 12)` and `(n, 8)`, as they
            are on the device; `None` before the optimizer is built, and
            without `track_gradient_norms`.
        """
        totals = self._gradient_totals
        return None if totals is None else (totals.rows, totals.nonfinite)

    def gradient_statistics(
        self, rows: Any | None = None
    ) -> GradientStatistics:
        """A snapshot of how large gradients, updates and momentums were.

        Args:
            rows: NumPy array, a value of the first of `gradient_totals` that
                was brought to the host together with others. Defaults to the
                present value.

        Returns:
            The totals since the optimizer was built, for each variable;
            nothing without `track_gradient_norms`, and before the optimizer is
            built.
        """
        if self._gradient_totals is None:
            return GradientStatistics({}, {}, {}, {}, {})
        return self._gradient_totals.statistics(rows)

    def nonfinite_gradients(
        self, rows: Any | None = None
    ) -> dict[str, NonfiniteGradient]:
        """The variables whose gradients had a NaN or an infinity.

        Args:
            rows: NumPy array, a value of the second of `gradient_totals`.
                Defaults to the present value.

        Returns:
            Variable path to how many `steps` had one, how many `elements` they
            were, and the number of the `first_call` of `apply`, since the
            optimizer was built. A step that the spike gate left out is not
            counted. Nothing without `track_gradient_norms`.
        """
        if self._gradient_totals is None:
            return {}
        return self._gradient_totals.nonfinite_gradients(rows)

    def skipped_steps(self) -> int:
        """How many calls of `apply` were skipped (`skip_nonfinite`)."""
        return int(self._backend.to_numpy(self._skipped_steps))

    @property
    def has_spike_gate(self) -> bool:
        """Whether spikes are left out (`spike_threshold`)."""
        return self._spike_gate is not None

    def spike_steps(self) -> int:
        """How many calls of `apply` were left out (`spike_threshold`)."""
        return 0 if self._spike_gate is None else self._spike_gate.steps()

    @property
    def last_spikes(self) -> Any | None:
        """What `spike_statistics` reads, as it is on the device.

        Returns:
            float32 tensor of shape `(17, 17)`: a row for each of the last
            spikes, and one for the present; `None` without a
            `spike_threshold`.
        """
        gate = self._spike_gate
        return None if gate is None else gate.rows(self._clock())

    def spike_statistics(self, rows: Any | None = None) -> SpikeStatistics:
        """A snapshot of what the spike gate has done.

        Args:
            rows: NumPy array, a value of `last_spikes` that was brought to the
                host together with others. Defaults to the present value.

        Returns:
            The numbers of spikes, of calls of `apply` and of updates so far,
            and the last spikes; nothing without a `spike_threshold`.
        """
        if self._spike_gate is None:
            return SpikeStatistics(0, 0, 0, ())
        saved = self._restoration.saved
        paths = self._paths
        if saved is not None and not self.built:
            paths = tuple(saved.paths)
        return self._spike_gate.statistics(rows, self._clock(), paths)

    def spikes(self, since: int = 0) -> list[Spike]:
        """The last spikes, with the variables that exceeded their bounds most.

        The last 16 are kept. Older ones are counted by `spike_steps()`: the
        first of the list has a `number` that says how many came before.

        Args:
            since: A value of `spike_steps()`: only the spikes after it.
                Integer >= 0. Defaults to `0`: all that are kept.

        Returns:
            A `Spike` for each, in order: its `number`, the `call` of `apply`
            (the batch), the `step`, its `rate`, and of up to five `variables`
            the own rate, the largest first. Without a `spike_threshold` the
            list is empty.

        Raises:
            TypeError: If `since` is no integer.
            ValueError: If it is negative.

        Example:
            >>> import keras, keras_adamax
            >>> optimizer = keras_adamax.AdamaxClipped(
            ...     clip_epsilon=1.0, spike_threshold=0.2
            ... )
            >>> weight = keras.Variable([1.0, 1.0], name="weight")
            >>> for size in (0.5, 0.5, 99.0, 0.5):
            ...     gradient = keras.ops.full((2,), size)
            ...     optimizer.apply([gradient], [weight])
            >>> [spike] = optimizer.spikes()
            >>> spike.call, spike.step, spike.rate, spike.variables
            (3, 2, 1.0, {'weight': 1.0})
        """
        since = _validation.check_integer("since", since, minimum=0)
        kept = self.spike_statistics().spikes
        return [spike for spike in kept if spike.number > since]

    @property
    def spike_tolerance(self) -> float:
        """The share of spiky steps that the rule absorbs without the gate.

        A spike lets the bound of a weight grow by `clip_multiplier`, any other
        step lets it fall by `beta_2`. Below this share `p` the bound stays at
        the size of ordinary gradients; above it the bound grows without end:

            p * ln(clip_multiplier) = (1 - p) * -ln(beta_2)

        It is 0.0055 with the defaults, 0.052 with `beta_2=0.99`. A schedule
        has the value of the next update. Without clipping it is 0.
        """
        if not self.clip_gradients:
            return 0.0
        return spike_rule.tolerance(
            max(self._present_value("clip_multiplier"), 1.0),
            self._present_value("beta_2"),
        )

    # Hyperparameters

    @property
    def target_clip_rate(self) -> float | None:
        """The target of the `TargetClipRate`; `None` if there is none."""
        rate = self._live.target_clip_rate
        return None if rate is None else rate.target

    def current_clip_multiplier(self) -> float:
        """The multiplier of the next step.

        Returns:
            The number, the value of the schedule, or what a `TargetClipRate`
            has come to.
        """
        return self._present_value("clip_multiplier")

    def scheduled_values(self) -> dict[str, float]:
        """The hyperparameters that change by themselves, for the next step.

        Returns:
            Name to value of each that is a schedule, a callable or a
            `TargetClipRate`, out of `learning_rate`, `beta_1`, `beta_2`,
            `clip_multiplier` and `clip_epsilon`; empty where all are numbers.

        Example:
            >>> import keras, keras_adamax
            >>> decay = keras.optimizers.schedules.ExponentialDecay(
            ...     0.5, decay_steps=1, decay_rate=0.5
            ... )
            >>> optimizer = keras_adamax.AdamaxClipped(learning_rate=decay)
            >>> weight = keras.Variable([1.0])
            >>> optimizer.apply([keras.ops.ones((1,))], [weight])
            >>> optimizer.scheduled_values()
            {'learning_rate': 0.25}
        """
        values = {}
        if self._rate.schedule is not None:
            # Fails where `fit` holds the state.
            self._backend.to_numpy(self._hyperparameters)
            rate = ops.convert_to_numpy(self._get_current_learning_rate())
            values["learning_rate"] = float(rate)
        for name in self._live.schedules:
            values[name] = self._present_value(name)
        return values

    def _present_value(self, name: str) -> float:
        # Fails where `fit` holds the state.
        self._backend.to_numpy(self._hyperparameters)
        value = self._live.tensor(name, self.iterations, "float32")
        return float(ops.convert_to_numpy(value))

    def _get_live(self, name: str) -> Any:
        return self._live.get(
            name, self._backend.to_numpy(self._hyperparameters)
        )

    def _set_live(self, name: str, value: Any) -> None:
        # Fails where `fit` holds the state and would not see the change.
        scalars = self._scalar_values()
        product = self._beta_1_product.so_far(scalars)
        self._live.set(name, value, scalars["hyperparameters"])
        if name == "beta_1":
            self._beta_1_product.go_on_from(product, self._scalar_values())

    @property
    def weight_decay(self) -> Any:
        """Keras's weight decay: `None` or a number."""
        if self._weight_decay_readers:
            # Keras reads it while it traces: it gets what is live.
            return (
                self._live.tensor(
                    "weight_decay", self.iterations, self._hyperparameters.dtype
                )
                if "weight_decay" in self._live.written
                else None
            )
        return self._get_live("weight_decay")

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        # Keras's constructor sets it, before there is anything to set.
        if getattr(self, "_is_constructed", False):
            self._set_live("weight_decay", value)

    @property
    def learning_rate(self) -> Any:
        """The learning rate, as Keras gives it: a variable or a tensor."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if callable(value) and not isinstance(value, keras.Variable):
            self._rate.set_schedule(value, self.built)
            self._learning_rate = value
        else:
            self._rate.set(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if not getattr(self, "_is_constructed", False):
            super().__setattr__(name, value)
            return
        is_read_only = name in _READ_ONLY
        if name == "loss_scale_factor":
            # Keras's wrappers set it, and turn it off where they scale.
            value = _positive(name, value)
            is_read_only = (
                self.built
                and value is not None
                and value != self.loss_scale_factor
            )
        if is_read_only:
            raise AttributeError(
                f"`{name}` is read-only: compiled steps would not see a "
                f"change. Received: {name}={value!r}. Make an optimizer with "
                "it."
            )
        if name in hyperparameters.RANGES:
            # Keras's would take a variable for one of the optimizer's.
            object.__setattr__(self, name, value)
            return
        super().__setattr__(name, value)

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[Any] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Excludes variables from weight decay, as in Keras.

        The excluded variables are part of the saved state.

        Args:
            var_list: Variables to exclude.
            var_names: Regular expressions; a variable whose name one of them
                matches is excluded.
        """
        super().exclude_from_weight_decay(var_list, var_names)
        self._not_decayed.is_chosen_by_user = True

    # Saved state

    def _scalars(self) -> dict[str, Any]:
        scalars = {
            "iterations": self._iterations,
            "learning_rate": self._rate.variable,
            "hyperparameters": self._hyperparameters,
            "log_beta_1_product": self._beta_1_product.variable,
            "skipped_steps": self._skipped_steps,
        }
        if self._spike_gate is not None:
            scalars["spike_gate"] = self._spike_gate.state
            scalars["last_spikes"] = self._spike_gate.kept
        if self._clip_excess is not None:
            scalars[CLIP_EXCESS] = self._clip_excess
        return scalars

    def _scalar_values(self) -> dict[str, np.ndarray]:
        return {
            role: self._backend.to_numpy(variable)
            for role, variable in self._scalars().items()
        }

    def _per_variable(self) -> dict[str, Sequence[Any]]:
        roles: dict[str, Sequence[Any]] = {
            "momentum": self._momentums,
            "norm": self._norms,
        }
        if self.use_ema:
            roles["average"] = self._model_variables_moving_average
        if self.gradient_accumulation_steps:
            roles["gradient_accumulator"] = self._accumulated_gradients
        return roles

    def _rows_of_variables(self) -> dict[str, Any]:
        totals = self._gradient_totals
        if totals is None:
            return {}
        return {
            "gradient_totals": totals.rows,
            "nonfinite_gradients": totals.nonfinite,
        }

    def _table(self) -> Table:
        scalars = self._scalars()
        # Keras builds in steps: built is what has all of its variables.
        is_built = self._clip_counts is not None
        return Table(
            scalars=scalars,
            per_variable=self._per_variable() if is_built else {},
            positional=self._variables[len(scalars) :],
            trained=self._trainable_variables if is_built else (),
            paths=self._paths,
            clip_counts=self._clip_counts,
            rows=self._rows_of_variables(),
            settings={
                "use_ema": self.use_ema,
                "gradient_accumulation_steps": self.gradient_accumulation_steps,
            },
            exclusions=self._exclusions,
            not_decayed=lambda: [
                i
                for i, v in enumerate(self._trainable_variables)
                if not self._use_weight_decay(v)
            ],
            needs_beta_1_product=(
                self.bias_correction and "beta_1" in self._live.schedules
            ),
        )

    def save_own_variables(self, store: Any) -> None:
        """Writes the state, each entry with its role, path and shape.

        Args:
            store: What Keras gives: a mapping from names to arrays.
        """
        self._restoration.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Reads a state; one of a `keras.optimizers.Adamax`, too.

        An optimizer that is not built keeps it until it is.

        Args:
            store: What Keras gives: a mapping from names to arrays.

        Raises:
            ValueError: If the state does not fit, with what does not. Nothing
                is changed then.
        """
        self._restoration.load(store, self.name)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets all variables of the optimizer, in the order of `variables`.

        An optimizer that is not built keeps them until it is.

        Args:
            weights: An array for each of `self.variables`.

        Raises:
            ValueError: If their number or a shape does not fit. Nothing is
                changed then.
        """
        self._restoration.set_weights(self.variables, weights)

    # Configuration

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


def _unique_paths(variables: Sequence[Any]) -> tuple[str, ...]:
    """A key for each variable: its path, numbered where that repeats."""
    paths: dict[str, None] = {}
    for variable in variables:
        path = unique = getattr(variable, "path", variable.name)
        number = 1
        while unique in paths:
            number += 1
            unique = f"{path}#{number}"
        paths[unique] = None
    return tuple(paths)
