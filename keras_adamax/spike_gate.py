"""The spike gate of an optimizer: its variables, and what it decides."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_adamax import spike_rule
from keras_adamax.backends import Backend
from keras_adamax.hyperparameters import LiveHyperparameters
from keras_adamax.spike_rule import Counts, SpikeStatistics

Tensor = Any


class Clock(NamedTuple):
    """Where training stands before a call of `apply`.

    Attributes:
        calls: Calls so far, without those that the gate left out.
        updates: Updates applied so far.
        is_update: Whether this call changes the weights; `None`: it does.
    """

    calls: Tensor
    updates: Tensor
    is_update: Tensor | None = None


class SpikeGate:
    """Decides which calls of `apply` are left out, as `spikes` specifies.

    Args:
        add_variable: The optimizer's.
        live: The hyperparameters.
        backend: The running one.

    Attributes:
        state: Variable in the order of `spike_rule.STATE`.
        kept: Variable with the last spikes.
        strides: Of the sample of each of the optimizer's variables.
    """

    def __init__(
        self,
        add_variable: Callable[..., Any],
        live: LiveHyperparameters,
        backend: Backend,
    ):
        self.state = add_variable(
            shape=(len(spike_rule.STATE),),
            dtype="int32",
            aggregation="only_first_replica",
            name="spike_gate",
        )
        self.kept = add_variable(
            shape=(spike_rule.KEPT, spike_rule.ROW_LENGTH),
            dtype="float32",
            aggregation="only_first_replica",
            name="last_spikes",
        )
        self.strides: list[int] = []
        self._live = live
        self._backend = backend

    def decide(
        self,
        counts: Sequence[Counts],
        indices: Sequence[int],
        clock: Clock,
        is_finite: Tensor | None,
        dtype: str,
    ) -> tuple[Tensor, list[tuple[Any, Tensor]]]:
        """Whether a step is applied.

        Args:
            counts: What exceeds its bound in the step.
            indices: Which of the optimizer's variables these are.
            clock: When the step is.
            is_finite: Boolean scalar, false for a step that is skipped before
                it reaches the gate. `None`: none is.
            dtype: Of the hyperparameters.

        Returns:
            A boolean scalar, and pairs of a variable and its next value.
        """
        state = ops.convert_to_tensor(self.state)
        rate = spike_rule.rate_of(counts)
        threshold = self._live.tensor("spike_threshold", clock.updates, dtype)
        is_left_out, gate = spike_rule.decide(
            state,
            rate,
            ops.cast(threshold, "float32"),
            self._live.tensor("max_skipped_spikes", clock.updates, dtype),
            clock.is_update,
        )
        is_applied = ops.logical_not(is_left_out)
        if is_finite is not None:
            is_applied = ops.logical_and(is_finite, is_applied)
            is_left_out = ops.logical_and(is_finite, is_left_out)
            gate = ops.where(is_finite, gate, state)
        kept = ops.convert_to_tensor(self.kept)

        def keep() -> Tensor:
            total, calls, updates = self._integers(clock)
            row = spike_rule.row_of(
                (total + 1, calls + 1, updates),
                rate,
                spike_rule.rates_of(counts, self._backend.constant),
                indices,
                self._backend.constant,
            )
            return spike_rule.keep(kept, row, total + 1, self._backend.constant)

        # Without a gradient for the clipping there is no spike.
        if counts:
            kept = self._backend.value_if(is_left_out, keep, kept)
        return is_applied, [(self.state, gate), (self.kept, kept)]

    def steps_on_device(self) -> Tensor:
        """How many calls were left out, as an integer tensor."""
        state = ops.convert_to_tensor(self.state)
        return state[spike_rule.STATE.index("spike_steps")]

    def steps(self) -> int:
        """How many calls were left out."""
        gate = self._backend.to_numpy(self.state)
        return int(gate[spike_rule.STATE.index("spike_steps")])

    def rows(self, clock: Clock) -> Tensor:
        """The last spikes and the present, as they are on the device."""
        row = spike_rule.present_row(self._integers(clock))
        kept = ops.convert_to_tensor(self.kept)
        return ops.concatenate([kept, ops.expand_dims(row, 0)])

    def present_statistics(
        self, clock: Clock, paths: Sequence[str]
    ) -> SpikeStatistics:
        """What the gate has done until now."""
        # Fails where `fit` holds the state.
        self._backend.to_numpy(self.kept)
        rows = np.asarray(ops.convert_to_numpy(self.rows(clock)))
        return spike_rule.statistics_of(rows, paths)

    def _integers(self, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes, calls and updates before this call."""
        total = self.steps_on_device()
        return total, clock.calls + total, clock.updates
