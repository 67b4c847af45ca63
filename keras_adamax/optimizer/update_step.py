"""Keras's step, with the updates of the backend in it."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_adamax import exact_totals, update_rule
from keras_adamax.backends.step import Step, Sums
from keras_adamax.optimizer.fields import Fields

Tensor = Any


class UpdateStep(Fields):
    """How `AdamaxClipped` updates variables with their gradients."""

    def _number_of_call(self) -> Tensor:
        """That of the present call of `apply`, from 1 on."""
        calls = self._clock().calls + 1
        gate = self._spike_gate
        return calls if gate is None else calls + gate.steps_on_device()

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
