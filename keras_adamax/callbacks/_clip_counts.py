"""The totals of all optimizers and the step, in one transfer to the host."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import _devices, _optimizers
from keras_adamax.callbacks._weight_changes import pack, unpack_step
from keras_adamax.clip_statistics import ClipStatistics
from keras_adamax.gradient_statistics import (
    GradientStatistics,
    NonfiniteGradient,
)
from keras_adamax.spike_rule import SpikeStatistics

Tensor = Any


class Totals(NamedTuple):
    """What one `AdamaxClipped` has counted so far.

    Attributes:
        clips: What it has clipped.
        spikes: What its spike gate has done.
        diverged: The paths of its variables whose infinity norm is NaN, as it
            is once a gradient was NaN.
        skipped: How many steps `skip_nonfinite` has left out.
        gradients: How large its gradients were.
        nonfinite: Its variables whose gradients were not finite.
    """

    clips: ClipStatistics
    spikes: SpikeStatistics
    diverged: frozenset[str]
    skipped: int
    gradients: GradientStatistics
    nonfinite: dict[str, NonfiniteGradient]

    def at_begin(self) -> "Totals":
        """What the same optimizer had counted before it was built."""
        return Totals(
            ClipStatistics({}, {}),
            dataclasses.replace(self.spikes, spike_steps=0, calls=0),
            frozenset(),
            0,
            GradientStatistics({}, {}, {}, {}, {}),
            {},
        )


def read(optimizers: Sequence[Any]) -> tuple[int, list[Totals]]:
    """Reads the updates applied, and what each optimizer has counted so far.

    Args:
        optimizers: The model's optimizers, their state up to date.
    """
    ours = _optimizers.ours(optimizers)
    counts = [optimizer.clip_counts for optimizer in ours]
    spikes = [optimizer.last_spikes for optimizer in ours]
    rows = [_optimizers.value_of(c) for c in counts if c is not None]
    rows += [s for s in spikes if s is not None]
    gradients = [optimizer.gradient_totals for optimizer in ours]
    rows += [_optimizers.value_of(v) for its in gradients for v in its or ()]
    skipped = [
        _optimizers.value_of(variable)
        for optimizer in ours
        for variable in _optimizers.state_of(optimizer, "skipped_steps")
    ]
    # By the numbers of their variables.
    norms_of_each = [
        {
            i: _optimizers.value_of(norm)
            for i, norm in enumerate(optimizer.infinity_norms)
            if norm is not None and math.prod(norm.shape)
        }
        for optimizer in ours
    ]
    norms = [norm for its in norms_of_each for norm in its.values()]
    # In place of a value before: asks for the first element alone.
    first_element = ops.zeros(())
    packed = _devices.load().measure(
        _flatten,
        pack,
        # One element of a norm tells whether it has become NaN: a NaN in one
        # gradient is in all weights two steps later.
        [*rows, *(first_element for _ in (*skipped, *norms))],
        [*rows, *skipped, *norms],
        _optimizers.updates(optimizers),
    )
    # Limbs, which float32 holds exactly.
    values = ops.convert_to_numpy(packed)
    ends = np.cumsum(
        [*(np.prod(r.shape) for r in rows), len(skipped), len(norms)]
    )
    parts = iter(np.split(values, ends.astype(int)))
    clips = [
        optimizer.clip_statistics(None if c is None else _part(parts, c))
        for optimizer, c in zip(ours, counts, strict=True)
    ]
    gates = [
        optimizer.spike_statistics(None if s is None else _part(parts, s))
        for optimizer, s in zip(ours, spikes, strict=True)
    ]
    measured, nonfinite = [], []
    for optimizer, its in zip(ours, gradients, strict=True):
        totals, not_finite = (
            (None, None) if its is None else (_part(parts, v) for v in its)
        )
        measured.append(optimizer.gradient_statistics(totals))
        nonfinite.append(optimizer.nonfinite_gradients(not_finite))
    skips = next(parts).astype(int).tolist()
    are_nan = iter(np.isnan(next(parts)).tolist())
    diverged = [
        frozenset(
            path
            for i, path in enumerate(its.counted)
            if i in norms_of_one and next(are_nan)
        )
        for norms_of_one, its in zip(norms_of_each, clips, strict=True)
    ]
    step = unpack_step(next(parts))
    return step, [
        Totals(*its)
        for its in zip(
            clips, gates, diverged, skips, measured, nonfinite, strict=True
        )
    ]


def _part(parts: Iterator[np.ndarray], like: Any) -> np.ndarray:
    return next(parts).reshape(like.shape)


def _flatten(previous: Tensor, current: Tensor, in_blocks: bool) -> Tensor:
    del in_blocks
    flat = ops.reshape(current, (-1,))
    return flat[:1] if len(previous.shape) == 0 else flat


def rate(
    optimizers: Sequence[AdamaxClipped],
    all_elapsed: Sequence[ClipStatistics | None],
    diverged: Sequence[frozenset[str]],
) -> float:
    """The clip rate of several optimizers together."""
    if any(
        nan and optimizer.clip_gradients
        for optimizer, nan in zip(optimizers, diverged, strict=True)
    ):
        return math.nan
    of_clipping = [
        elapsed
        for optimizer, elapsed in zip(optimizers, all_elapsed, strict=True)
        if elapsed is not None and optimizer.clip_gradients
    ]
    counted = sum(sum(e.counted.values()) for e in of_clipping)
    if counted:
        return sum(sum(e.clipped.values()) for e in of_clipping) / counted
    is_off = any(
        elapsed is not None and elapsed.counted and not optimizer.clip_gradients
        for optimizer, elapsed in zip(optimizers, all_elapsed, strict=True)
    )
    return 0.0 if is_off else math.nan


def grown(before: Sequence[int], now: Sequence[int]) -> float:
    """By how much totals have grown; NaN where a state was loaded."""
    increases = [n - b for n, b in zip(now, before, strict=True)]
    return math.nan if min(increases, default=0) < 0 else sum(increases)


def scheduled_values(optimizers: Sequence[AdamaxClipped]) -> dict[str, float]:
    """Those of the next step; with the optimizer's name where it has peers."""
    if len(optimizers) == 1:
        return optimizers[0].scheduled_values()
    names = _optimizers.unique_names([o.name for o in optimizers])
    return {
        f"{its}/{name}": value
        for its, optimizer in zip(names, optimizers, strict=True)
        for name, value in optimizer.scheduled_values().items()
    }
