"""What a logger has measured, and the quantities that there are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from keras_adamax import _validation

# What our loggers put into `logs`: no logger records it as one of the logs.
SUMMARIES = (
    "clip_rate",
    "gradient_norm",
    "skipped_steps",
    "spikes",
    "weight_delta",
    "weight_delta_ratio",
)
# All that our loggers record.
QUANTITIES = (
    *SUMMARIES,
    "clipped_share",
    "nonfinite_elements",
    "spike_rate",
    "update_norm",
)


class Measurement(NamedTuple):
    """What a logger has measured.

    Attributes:
        step: Updates applied so far.
        names: The variables' paths.
        values: Quantity to one value per variable.
        summary: Quantity to the value of all variables together.
        histograms: Path to the largest absolute value and counts in bins.
        earlier: What belongs to batches before: epoch, batch, and it.
        scheduled: Name to the present value of a hyperparameter that is a
            schedule.
    """

    step: int
    names: tuple[str, ...]
    values: Mapping[str, Sequence[float]]
    summary: Mapping[str, float]
    histograms: Mapping[str, tuple[float, Sequence[float]]] = {}
    earlier: Sequence[tuple[int, int, "Measurement"]] = ()
    scheduled: Mapping[str, float] = {}

    def renamed(self, names: Mapping[str, str]) -> "Measurement":
        """The same, of variables with other names."""
        return self._replace(
            names=tuple(names.get(n, n) for n in self.names),
            histograms={names.get(n, n): h for n, h in self.histograms.items()},
            earlier=[(e, b, m.renamed(names)) for e, b, m in self.earlier],
        )


def scalars_of(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers among the logs that are not ours."""
    return {
        name: float(value)
        for name, value in (logs or {}).items()
        if name not in SUMMARIES
        and (_validation.is_number(value) or isinstance(value, bool))
    }
