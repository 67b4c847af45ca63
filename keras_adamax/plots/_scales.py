"""How the values of each quantity are shown: title, label, colours."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LogNorm, Normalize, PowerNorm

from keras_adamax.plots import _marks
from keras_adamax.plots._tables import Table

RATE_TICKS = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)


class Scale(NamedTuple):
    """How a quantity is shown.

    Attributes:
        title: What it is called in headings.
        label: What its axis is called.
        is_rate: Whether the values are fractions from 0 to 1. They get a
            square-root scale: rates of some percent are the ones to read late
            in training, and from 0 to 1 they would all look like 0.
    """

    title: str
    label: str
    is_rate: bool = False

    @property
    def colors(self) -> str:
        """Name of the colour map."""
        return "cividis" if self.is_rate else "viridis"

    @property
    def ticks(self) -> tuple[float, ...] | None:
        """Ticks of the colour bar, where they are not matplotlib's."""
        return RATE_TICKS if self.is_rate else None

    def norm(self, values: np.ndarray) -> Normalize:
        """From values to colours."""
        if self.is_rate:
            return PowerNorm(0.5, vmin=0, vmax=1)
        if is_signed(values):
            known = _marks.finite(values)
            return Normalize(known.min(), known.max())
        return LogNorm(*_decades(values))


CLIP_RATE = Scale("Clip rate", "clipped elements\n(fraction)", True)
GRADIENT_NORM = Scale("Gradient norm", "gradient norm\nbefore clipping")
CLIPPED_SHARE = Scale("Clipped share", "of the squared norm\n(fraction)", True)
UPDATE_NORM = Scale("Update norm", "update, L2 norm")
NONFINITE = Scale("NaNs and infinities", "elements of\nthe gradient")
WEIGHT_CHANGE = Scale("Weight change", "weight change, L2 norm")
WEIGHT_CHANGE_RATIO = Scale(
    "Weight change ratio", "weight change / weight norm"
)


def scale_of(table: Table) -> Scale:
    """The scale of a quantity of which nothing but the name is known."""
    name = table.quantity.replace("_", " ")
    known = _marks.finite(table.values)
    is_rate = table.quantity.endswith(("_rate", "_share"))
    is_rate = is_rate and not ((known < 0) | (known > 1)).any()
    return Scale(name[:1].upper() + name[1:], name, is_rate)


def is_signed(values: np.ndarray) -> bool:
    """Whether there are negative values, which no log scale can show."""
    return bool((_marks.finite(values) < 0).any())


def _decades(values: np.ndarray) -> tuple[float, float]:
    """Whole decades around the positive values; 8 of them at most."""
    values = _marks.finite(values)
    values = np.clip(values[values > 0], 1e-99, 1e99)
    if not values.size:
        return 1e-4, 1e-2
    high = math.ceil(math.log10(values.max()) - 1e-9)
    low = math.floor(math.log10(values.min()) + 1e-9)
    return 10.0 ** max(min(low, high - 1), high - 8), 10.0**high
