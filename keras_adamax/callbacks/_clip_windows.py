"""What `AdamaxClipped` optimizers have counted between two records."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import _clip_counts, _gradient_windows
from keras_adamax.callbacks._clip_counts import Totals
from keras_adamax.callbacks._spike_windows import SpikeWindow
from keras_adamax.clip_statistics import ClipStatistics
from keras_adamax.gradient_statistics import (
    GradientStatistics,
    NonfiniteGradient,
)


@dataclasses.dataclass
class ClipWindow:
    """What one optimizer had counted at the last record.

    Attributes:
        last: Its totals then.
        spikes: Which batches its later spikes are.
    """

    last: Totals
    spikes: SpikeWindow

    @classmethod
    def of(cls, now: Totals, epoch: int, batch: int) -> "ClipWindow":
        """A window that begins now.

        Args:
            now: What the optimizer has counted.
            epoch: The present epoch.
            batch: Batches done in it.
        """
        return cls(now, SpikeWindow.of(now.spikes, epoch, batch))

    def to_json(self) -> list[Any]:
        """What `from_json` makes a window of."""
        clips, spikes, _, skipped, gradients, nonfinite = self.last
        return [
            dict(clips.clipped),
            dict(clips.counted),
            [spikes.spike_steps, *self.spikes.to_json()],
            skipped,
            dataclasses.asdict(gradients),
            nonfinite,
        ]

    @classmethod
    def from_json(
        cls,
        state: Sequence[Any],
        renamed: Mapping[str, str],
        later: "ClipWindow",
    ) -> "ClipWindow":
        """The window of a backup.

        Args:
            state: What `to_json` gave. Backups of earlier versions end sooner.
            renamed: Present name of a variable to that in the records.
            later: The window that begins when the `fit` is resumed.
        """
        clipped, counted, *its = state
        last, spikes = later.last, later.spikes
        names = _present_names(counted, last.clips.counted, renamed)
        last = last._replace(
            clips=ClipStatistics(
                _renamed(clipped, names), _renamed(counted, names)
            )
        )
        if len(its) > 0:
            recorded, *origins = its[0]
            spikes = SpikeWindow.from_json(origins, spikes)
            last = last._replace(
                spikes=dataclasses.replace(last.spikes, spike_steps=recorded)
            )
        if len(its) > 1:
            last = last._replace(skipped=its[1])
        if len(its) > 2:
            last = last._replace(
                gradients=GradientStatistics(
                    **{k: _renamed(v, names) for k, v in its[2].items()}
                ),
                nonfinite={
                    path: NonfiniteGradient(*numbers)
                    for path, numbers in _renamed(its[3], names).items()
                },
            )
        return cls(last, spikes)


def _present_names(
    saved: Mapping[str, Any], now: Mapping[str, Any], renamed: Mapping[str, str]
) -> dict[str, str]:
    """Saved path to the present one of the same variable."""
    old = [renamed.get(name, name) for name in now]
    if set(old) != set(saved):
        if len(old) != len(saved):
            return {}
        old = list(saved)
    return dict(zip(old, now, strict=True))


def _renamed(
    by_path: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    return {names.get(path, path): value for path, value in by_path.items()}


def rates(
    optimizers: Sequence[AdamaxClipped],
    now: Sequence[Totals],
    clips: Sequence[ClipStatistics | None],
) -> list[float]:
    """The clip rate of each variable.

    Args:
        optimizers: The optimizers.
        now: What each has counted.
        clips: What each has clipped since an earlier moment; `None` where that
            is not known.
    """
    found: list[float] = []
    for optimizer, its, elapsed in zip(optimizers, now, clips, strict=True):
        if elapsed is None:
            found += [math.nan] * len(its.clips.counted)
        elif optimizer.clip_gradients:
            found += [
                math.nan if path in its.diverged else rate
                for path, rate in elapsed.rates().items()
            ]
        else:
            found += [0.0] * len(elapsed.counted)
    return found


def summary(
    keys: Sequence[str],
    optimizers: Sequence[AdamaxClipped],
    now: Sequence[Totals],
    before: Sequence[Totals],
    clips: Sequence[ClipStatistics | None],
) -> dict[str, float]:
    """Quantity to the value of all optimizers together.

    Args:
        keys: The quantities that there are.
        optimizers: The optimizers.
        now: What each has counted.
        before: What each had counted at an earlier moment.
        clips: What each has clipped since; `None` where that is not known.
    """
    diverged = [its.diverged for its in now]
    values = {"clip_rate": _clip_counts.rate(optimizers, clips, diverged)}
    if "gradient_norm" in keys:
        values["gradient_norm"] = _gradient_windows.norm(
            [
                _gradient_windows.since(its.gradients, then.gradients)
                for its, then in zip(now, before, strict=True)
            ]
        )
    if "spikes" in keys:
        values["spikes"] = _clip_counts.grown(
            [its.spikes.spike_steps for its in before],
            [its.spikes.spike_steps for its in now],
        )
    if "skipped_steps" in keys:
        values["skipped_steps"] = _clip_counts.grown(
            [its.skipped for its in before], [its.skipped for its in now]
        )
    return values
