"""The state of an optimizer as it is saved."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_adamax.optimizer.fields import Fields
from keras_adamax.state.planning import CLIP_EXCESS, Table


class SavedVariables(Fields):
    """How `AdamaxClipped` saves and loads its variables."""

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
