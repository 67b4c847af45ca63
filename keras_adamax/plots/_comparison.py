"""Several runs over one time axis."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from keras_adamax.plots import _layouts, _maps, _marks, _panels, _scales
from keras_adamax.plots._layouts import Tables
from keras_adamax.plots._marks import Style
from keras_adamax.plots._scales import Scale
from keras_adamax.plots._sheet import Panel
from keras_adamax.plots._tables import Clock, Table


class Comparison(NamedTuple):
    """The tables of each run, and the time axis that they share."""

    tables: Mapping[str, Tables]
    clock: Clock

    @classmethod
    def of(cls, tables: Mapping[str, Tables]) -> "Comparison":
        """Each run keeps its steps; the axis reaches from first to last."""
        clocks = [one.clock for one in tables.values()]
        clock = Clock(
            {0: min(clock.begin for clock in clocks)},
            {0: int(any(clock.shifted for clock in clocks))},
            max(clock.end for clock in clocks),
        )
        return cls(tables, clock)

    def styles(self) -> dict[str, Style]:
        """How the lines of each run look."""
        return dict(zip(self.tables, _marks.STYLES, strict=False))

    def keys(self) -> list[Artist]:
        """A legend's entries for the runs."""
        return [
            _marks.key(name, style) for name, style in self.styles().items()
        ]

    def of_quantity(self, quantity: str) -> dict[str, Table]:
        """The table of each run that has recorded it."""
        found = {name: one[quantity] for name, one in self.tables.items()}
        return {name: table for name, table in found.items() if table}


def panels(comparison: Comparison) -> list[Panel]:
    """Lines for what all weights did; maps of the variables of each run."""
    found = []
    if any(map(comparison.of_quantity, ("loss", "val_loss"))):
        found.append(_losses(comparison))
    others = [
        table.quantity
        for tables in comparison.tables.values()
        for table in tables.others()
    ]
    known = ("clip_rate", "gradient_norm", "weight_delta_ratio")
    for quantity in dict.fromkeys((*known, *others)):
        tables = comparison.of_quantity(quantity)
        if tables:
            scale = _layouts.scale_of(next(iter(tables.values())))
            found.append(_summaries(comparison, tables, scale))
            found += _each(comparison, tables, scale)
    return found or [_panels.empty("Loss, clip rate and weight change")]


def _losses(comparison: Comparison) -> Panel:
    trained = comparison.of_quantity("loss")
    validated = comparison.of_quantity("val_loss")

    def draw(ax: Axes, clock: Clock) -> None:
        note = "Validation is dashed." if validated else ""
        _marks.head(ax, "Loss", note)
        _panels.loss_axis(ax, _values([trained, validated]))
        for name, style in comparison.styles().items():
            _draw(ax, name, trained.get(name), style)
            dashed = style._replace(dashes=(0, (4, 2)), width=1.0)
            _draw(ax, name, validated.get(name), dashed)
        ax.set_ylabel("loss")
        _marks.legend(ax, comparison.keys())

    return Panel(draw, 1.9)


def _summaries(
    comparison: Comparison, tables: Mapping[str, Table], scale: Scale
) -> Panel:
    def draw(ax: Axes, clock: Clock) -> None:
        _marks.head(ax, f"{scale.title} of all weights")
        values = _values([tables])
        if scale.is_rate:
            _panels.rate_axis(ax)
        elif not _scales.is_signed(values):
            has_zeros = bool((values == 0).any())
            _marks.log_axis(ax, values, zeros=has_zeros)
        for name, style in comparison.styles().items():
            _draw(ax, name, tables.get(name), style)
        ax.set_ylabel(scale.label.replace(" / ", " /\n"))
        _marks.legend(ax, comparison.keys())

    return Panel(draw, 1.9)


def _each(
    comparison: Comparison, tables: Mapping[str, Table], scale: Scale
) -> list[Panel]:
    """A map for each run, all of them with the same colours."""
    with_rows = {n: table for n, table in tables.items() if table.variables}
    if not with_rows:
        return []
    values = [table.values.ravel() for table in with_rows.values()]
    norm = scale.norm(np.concatenate(values))
    found = []
    for name, table in with_rows.items():
        selection = comparison.tables[name].selection
        found += _maps.rows_of_a_run(table, scale, norm, selection, name)
    return found


def _values(several: Sequence[Mapping[str, Table]]) -> np.ndarray:
    series = [
        series.values
        for tables in several
        for table in tables.values()
        for series in table.summaries()
    ]
    return np.concatenate([np.empty(0), *series])


def _draw(ax: Axes, name: str, table: Table | None, style: Style) -> None:
    if table is None:
        return
    for series in table.summaries():
        line = _marks.line(ax, table.quantity, series, style)
        line.set_gid(f"{name}:{line.get_gid()}")
