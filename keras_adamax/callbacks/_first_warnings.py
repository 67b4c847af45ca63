"""What `ClipRateLogger` warns of, once per `fit` each."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks._measurement import Measurement
from keras_adamax.gradient_statistics import NonfiniteGradient
from keras_adamax.target_clip_rate import SMALLEST

# How many variables a warning names.
_NAMED = 5


class FirstWarnings:
    """Warns the first time; later ones of the same kind say nothing."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def _warn(self, kind: str, text: str) -> None:
        self._given.add(kind)
        warnings.warn(text, stacklevel=4)

    def of_nonfinite(
        self,
        found: Sequence[
            tuple[Mapping[str, NonfiniteGradient], Mapping[str, Any], bool]
        ],
        epoch: int,
    ) -> None:
        """Says which gradients have had NaNs or infinities.

        Args:
            found: For each optimizer: all that are known of, by the paths of
                the variables; the paths of those since the last record; and
                whether such steps are left out.
            epoch: 0-based.
        """
        if "nonfinite" in self._given:
            return
        for now, its, is_skipped in found:
            if not its:
                continue
            first = sorted(its, key=lambda path: now[path].first_call)
            named = [
                f"{path} ({now[path].elements} element(s) in "
                f"{now[path].steps} step(s), first in call "
                f"{now[path].first_call} of `apply`)"
                for path in first[:_NAMED]
            ]
            if len(first) > _NAMED:
                named.append(f"and {len(first) - _NAMED} more")
            what_then = "`skip_nonfinite=True` leaves such steps out."
            if is_skipped:
                what_then = "These steps were left out (`skip_nonfinite`)."
            self._warn(
                "nonfinite",
                "Gradients have had NaNs or infinities since the last record "
                f"(epoch {epoch + 1}): {', '.join(named)}. {what_then}",
            )

    def of_skips(self, number: float, epoch: int) -> None:
        """Says that `skip_nonfinite` has left out steps.

        Args:
            number: How many since the last record.
            epoch: 0-based.
        """
        # Where variables were named, that has been said.
        if number > 0 and not self._given & {"skips", "nonfinite"}:
            self._warn(
                "skips",
                f"{number} step(s) were left out since the last record (epoch "
                f"{epoch + 1}), because a gradient had a NaN or an infinity "
                "(`skip_nonfinite`). `skipped_steps` counts them.",
            )

    def of_spikes(
        self, found: Sequence[tuple[int, int, Measurement]], number: float
    ) -> None:
        """Says that the spike gate has left out steps.

        Args:
            found: 0-based epoch, batch, and what is recorded of each.
            number: How many since the last record.
        """
        if not found or "spikes" in self._given:
            return
        epoch, batch, spike = found[0]
        variable = f", most in '{spike.names[0]}'" if spike.names else ""
        self._warn(
            "spikes",
            f"The spike gate has left out {number} step(s) since the last "
            f"record. The first was batch {batch} of epoch {epoch + 1}, with "
            f"{spike.summary['spike_rate']:.0%} of its gradient elements above "
            f"their bound{variable}. `spikes` counts them, and the records "
            "name each (`spike_rate`). Look at such batches; there will be no "
            "further warning.",
        )

    def of_target(
        self, optimizer: AdamaxClipped, multiplier: float, rate: float
    ) -> None:
        """Says that a `TargetClipRate` cannot be reached now.

        Args:
            optimizer: The optimizer.
            multiplier: Its clip multiplier.
            rate: Its clip rate since the last record.
        """
        target = optimizer.target_clip_rate
        if (
            target is not None
            and "target" not in self._given
            and rate < target / 2
            and multiplier - 1 < 1.5 * SMALLEST
        ):
            self._warn(
                "target",
                f"The optimizer '{optimizer.name}' cannot reach its target of "
                f"{target:.6g} for the clip rate now: since the last record "
                f"it was {rate:.6g}, and the clip multiplier cannot be below "
                "1. After large gradients that lasts until the infinity norm "
                "has shrunk, by `beta_2` a step; choose a smaller `beta_2` or "
                "target where it lasts too long, and a smaller `clip_epsilon` "
                "where gradients are below it.",
            )

    def of_loss(self, error: ValueError) -> None:
        """Says that the clip rate since the last record is not known.

        Args:
            error: Why.
        """
        if "loss" not in self._given:
            self._warn(
                "loss",
                "ClipRateLogger cannot tell the clip rate since the last "
                f"record, which is NaN: {error}",
            )
