"""The totals of all optimizers and the step, in one transfer to the host."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
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


class _Source(NamedTuple):
    """Where the totals of an optimizer are in a vector.

    Attributes:
        optimizer: Whose they are.
        whole: The shapes of the tensors that are in it as a whole.
        norms: The numbers of the variables of which an element of the infinity
            norm is in it.
    """

    optimizer: AdamaxClipped
    whole: Sequence[Sequence[int]]
    norms: Sequence[int]


class Reading(NamedTuple):
    """Totals that are on their way to the host.

    Attributes:
        sources: For each optimizer; the totals of one that is not built.
        packed: The vector, on the device.
    """

    sources: Sequence[_Source | Totals]
    packed: Tensor


def start(optimizers: Sequence[Any]) -> Reading:
    """Starts reading the updates applied, and what the optimizers counted.

    Nobody waits here for the step that runs.

    Args:
        optimizers: The model's optimizers, their state up to date.
    """
    sources: list[_Source | Totals] = []
    current: list[Tensor] = []
    previous: list[Tensor] = []
    # In place of a value before: asks for the first element alone.
    first_element = ops.zeros(())
    for optimizer in _optimizers.ours(optimizers):
        if optimizer.clip_counts is None:
            sources.append(_totals_of(optimizer))
            continue
        whole = [optimizer.clip_counts]
        if optimizer.last_spikes is not None:
            whole.append(optimizer.last_spikes)
        whole += optimizer.gradient_totals or ()
        norms = {
            i: norm
            for i, norm in enumerate(optimizer.infinity_norms)
            if norm is not None and math.prod(norm.shape)
        }
        shapes = [tuple(tensor.shape) for tensor in whole]
        sources.append(_Source(optimizer, shapes, list(norms)))
        values = [_optimizers.value_of(tensor) for tensor in whole]
        # One element of a norm tells whether it has become NaN: a NaN in one
        # gradient is in all weights two steps later.
        parts = [
            _optimizers.value_of(tensor)
            for tensor in (
                *_optimizers.state_of(optimizer, "skipped_steps"),
                *norms.values(),
            )
        ]
        current += values + parts
        previous += values + [first_element] * len(parts)
    packed = _devices.load().measure(
        _flatten, pack, previous, current, _optimizers.updates(optimizers)
    )
    return Reading(sources, packed)


def read(reading: Reading) -> tuple[int, list[Totals]]:
    """Waits for what was started.

    Args:
        reading: What `start` returned.

    Returns:
        The updates applied, and the totals of each optimizer.
    """
    # Limbs, which float32 holds exactly.
    rest = ops.convert_to_numpy(reading.packed)
    totals = []
    for source in reading.sources:
        if isinstance(source, Totals):
            totals.append(source)
            continue
        whole = []
        for shape in source.whole:
            length = math.prod(shape)
            whole.append(rest[:length].reshape(shape))
            rest = rest[length:]
        skipped, norms, rest = np.split(rest, [1, 1 + len(source.norms)])
        found = _totals_of(source.optimizer, whole)
        paths = list(found.clips.counted)
        diverged = [
            paths[place]
            for place, norm in zip(source.norms, norms, strict=True)
            if np.isnan(norm)
        ]
        totals.append(
            found._replace(skipped=int(*skipped), diverged=frozenset(diverged))
        )
    return unpack_step(rest), totals


def _totals_of(
    optimizer: AdamaxClipped, whole: Sequence[np.ndarray] = ()
) -> Totals:
    """What an optimizer has counted, but for what is in its other variables.

    Args:
        optimizer: The optimizer.
        whole: Its tensors; none if it is not built.
    """
    rest = iter(whole)
    clips = optimizer.clip_statistics(next(rest, None))
    spikes = optimizer.spike_statistics(
        next(rest, None) if optimizer.has_spike_gate else None
    )
    gradients = optimizer.gradient_statistics(next(rest, None))
    nonfinite = optimizer.nonfinite_gradients(next(rest, None))
    return Totals(clips, spikes, frozenset(), 0, gradients, nonfinite)


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


def named(
    optimizers: Sequence[AdamaxClipped],
    scheduled: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """The values of each; with the optimizer's name where it has peers."""
    if len(optimizers) == 1:
        return dict(scheduled[0])
    names = _optimizers.unique_names([o.name for o in optimizers])
    return {
        f"{its}/{name}": value
        for its, values in zip(names, scheduled, strict=True)
        for name, value in values.items()
    }
