"""Which batch each spike of an optimizer was, from its calls of `apply`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_adamax.callbacks._measurement import Measurement
from keras_adamax.spike_rule import Spike, SpikeStatistics


class Origin(NamedTuple):
    """A moment at which both the calls and the batches were known.

    Attributes:
        calls: Calls of `apply` so far.
        epoch: 0-based epoch.
        batch: Batches done in it.
    """

    calls: int
    epoch: int
    batch: int


@dataclasses.dataclass
class SpikeWindow:
    """What one optimizer has left out since the last record.

    Attributes:
        written: Its spikes until the last row that was written for one.
        origins: To count batches from. There are two where a `fit` was
            resumed: batches of before are counted from the first.
    """

    written: int
    origins: list[Origin]

    @classmethod
    def of(cls, now: SpikeStatistics, epoch: int, batch: int) -> "SpikeWindow":
        """A window that begins now."""
        return cls(now.spike_steps, [Origin(now.calls, epoch, batch)])

    def begin_epoch(self, epoch: int) -> None:
        """The calls since are those of another epoch."""
        self.origins[-1] = Origin(self.origins[-1].calls, epoch, 0)

    def find(
        self, now: SpikeStatistics, epoch: int, batch: int
    ) -> list[tuple[int, int, Spike]]:
        """The epoch, the batch in it, and each spike since the last call.

        Args:
            now: What the gate has done.
            epoch: The present epoch.
            batch: Batches done in it.
        """
        found = []
        for spike in now.spikes:
            if spike.number > self.written:
                origin = next(
                    (o for o in reversed(self.origins) if o.calls < spike.call),
                    self.origins[0],
                )
                its = origin.batch + spike.call - origin.calls
                if origin is self.origins[-1]:
                    # A `train_step` may apply gradients more than once.
                    its = min(its, batch)
                found.append((origin.epoch, max(its, 1), spike))
        self.written = now.spike_steps
        self.origins = [Origin(now.calls, epoch, batch)]
        return found

    def to_json(self) -> list[Any]:
        """What `from_json` makes a window of, with later origins."""
        return [self.written, self.origins]

    @classmethod
    def from_json(
        cls, state: Sequence[Any], later: "SpikeWindow"
    ) -> "SpikeWindow":
        """The window of a backup.

        Args:
            state: What `to_json` gave.
            later: The window that begins when the `fit` is resumed.
        """
        written, origins = state
        return cls(written, [*(Origin(*o) for o in origins), *later.origins])


def measurement_of(step: int, spikes: Sequence[Spike]) -> Measurement:
    """What is recorded of a batch.

    Args:
        step: Updates applied before it.
        spikes: One, or those of several optimizers.
    """
    rates = {n: rate for s in spikes for n, rate in s.variables.items()}
    return Measurement(
        step,
        tuple(rates),
        {"spike_rate": tuple(rates.values())},
        {"spike_rate": max(spike.rate for spike in spikes)},
    )
