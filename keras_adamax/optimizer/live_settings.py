"""Hyperparameters that are read, set and scheduled while it trains."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_adamax import _validation, hyperparameters
from keras_adamax.hyperparameters import LiveNumber
from keras_adamax.optimizer.fields import Fields

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


class LiveSettings(Fields):
    """What `AdamaxClipped` lets be set, and what it holds fast."""

    beta_1 = LiveNumber("Decay rate of the first moment, or its schedule.")
    beta_2 = LiveNumber("Decay rate of the infinity norm, or its schedule.")
    epsilon = LiveNumber("Added to the infinity norm before the division.")
    clip_multiplier = LiveNumber("Growth of the bound, or its schedule.")
    clip_epsilon = LiveNumber("Added to the bound, or its schedule.")
    spike_threshold = LiveNumber("Rate above which a step is a spike, or None.")
    max_skipped_spikes = LiveNumber("How many spikes in a row are left out.")

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
        if self._rate.schedule is None and not self._live.schedules:
            return values
        self._check_state_is_here()
        if self._rate.schedule is not None:
            rate = ops.convert_to_numpy(self._get_current_learning_rate())
            values["learning_rate"] = float(rate)
        for name in self._live.schedules:
            values[name] = self._value_of_next_step(name)
        return values

    def _present_value(self, name: str) -> float:
        self._check_state_is_here()
        return self._value_of_next_step(name)

    def _check_state_is_here(self) -> None:
        # Fails where `fit` holds it.
        self._backend.to_numpy(self._hyperparameters)

    def _value_of_next_step(self, name: str) -> float:
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
            value = _validation.check_optional_number(
                name, value, exclusive_minimum=0
            )
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
