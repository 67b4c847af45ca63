"""Whether a step is applied."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_adamax import spike_counts, spike_rule
from keras_adamax.backends.step import Changes
from keras_adamax.optimizer.update_step import UpdateStep
from keras_adamax.spike_gate import SpikeGate

Tensor = Any


class GuardedApply(UpdateStep):
    """How `AdamaxClipped` leaves out steps."""

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
