"""What an optimizer tells about its steps."""

from typing import Any

from keras_adamax import _validation, spike_rule
from keras_adamax.clip_statistics import ClipStatistics, statistics_of
from keras_adamax.gradient_statistics import (
    GradientStatistics,
    NonfiniteGradient,
)
from keras_adamax.optimizer.live_settings import LiveSettings
from keras_adamax.spike_rule import Spike, SpikeStatistics


class Readings(LiveSettings):
    """The statistics of `AdamaxClipped`."""

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
        if rows is None:
            return self._spike_gate.present_statistics(self._clock(), paths)
        return spike_rule.statistics_of(rows, paths)

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
