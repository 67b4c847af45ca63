"""The totals of all optimizers and the step, in one transfer to the host."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_adamax import kernels
from keras_adamax.callbacks import _optimizers
from keras_adamax.callbacks._weight_changes import pack, unpack_step
from keras_adamax.spikes import SpikeStatistics
from keras_adamax.statistics import ClipStatistics

Tensor = Any


class Totals(NamedTuple):
    """What the optimizers have counted so far.

    Attributes:
        step: The updates applied.
        clips: A snapshot of each `AdamaxClipped`.
        spikes: Likewise, of its spike gate.
    """

    step: int
    clips: list[ClipStatistics]
    spikes: list[SpikeStatistics]


def read(optimizers: Sequence[Any]) -> Totals:
    """Reads what the optimizers have counted so far.

    Args:
        optimizers: The model's optimizers, their state up to date.
    """
    ours = _optimizers.ours(optimizers)
    counts = [optimizer.clip_counts for optimizer in ours]
    spikes = [optimizer.last_spikes for optimizer in ours]
    rows = [_optimizers.value_of(c) for c in counts if c is not None]
    rows += [s for s in spikes if s is not None]
    packed = kernels.load().measure(
        _flatten,
        pack,
        rows,
        rows,
        _optimizers.updates(optimizers),
    )
    # Limbs, which float32 holds exactly.
    values = ops.convert_to_numpy(packed)
    parts = iter(np.split(values, np.cumsum([np.prod(r.shape) for r in rows])))
    clips = [
        optimizer.clip_statistics(
            None if c is None else next(parts).reshape(c.shape)
        )
        for optimizer, c in zip(ours, counts, strict=True)
    ]
    gates = [
        optimizer.spike_statistics(
            None if s is None else next(parts).reshape(s.shape)
        )
        for optimizer, s in zip(ours, spikes, strict=True)
    ]
    return Totals(unpack_step(next(parts)), clips, gates)


def _flatten(previous: Tensor, current: Tensor, in_blocks: bool) -> Tensor:
    del previous, in_blocks
    return ops.reshape(current, (-1,))
