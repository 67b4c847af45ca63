"""The totals of all optimizers and the step, in one transfer to the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_adamax import kernels
from keras_adamax.callbacks import _optimizers
from keras_adamax.callbacks._weight_changes import pack, unpack_step
from keras_adamax.statistics import ClipStatistics

Tensor = Any


def read(optimizers: Sequence[Any]) -> tuple[int, list[ClipStatistics]]:
    """What the optimizers have counted so far.

    Args:
        optimizers: The model's optimizers, their state up to date.

    Returns:
        The updates applied, and a snapshot of each `AdamaxClipped`.
    """
    ours = _optimizers.ours(optimizers)
    counts = [optimizer.clip_counts for optimizer in ours]
    rows = [_optimizers.value_of(c) for c in counts if c is not None]
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
    snapshots = [
        optimizer.clip_statistics(
            None if c is None else next(parts).reshape(c.shape)
        )
        for optimizer, c in zip(ours, counts, strict=True)
    ]
    return unpack_step(next(parts)), snapshots


def _flatten(previous: Tensor, current: Tensor, in_blocks: bool) -> Tensor:
    del previous, in_blocks
    return ops.reshape(current, (-1,))
