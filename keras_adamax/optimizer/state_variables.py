"""The variables that an optimizer keeps its state in."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_adamax import (
    exact_totals,
    exclusions,
    spike_rule,
    target_clip_rate,
    update_rule,
)
from keras_adamax.beta_1_product import Beta1Product
from keras_adamax.clip_statistics import ClipCounts
from keras_adamax.gradient_statistics import GradientTotals
from keras_adamax.optimizer.fields import Fields
from keras_adamax.spike_gate import SpikeGate


class StateVariables(Fields):
    """How `AdamaxClipped` makes its variables."""

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
