"""Heat maps of variables: all of them, groups of them, and the outliers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from keras_adamax.plots import _marks
from keras_adamax.plots._heat_map import heat_map, map_height
from keras_adamax.plots._rows import Peak, Selection, grouped, standing_out
from keras_adamax.plots._scales import Scale
from keras_adamax.plots._sheet import Panel
from keras_adamax.plots._tables import Clock, Table

# Variables that are named below a map of groups.
_OUTLIERS = 8
# In a map of all variables up to so many are marked, if they are so many times
# larger than usual.
_MARKED, _TIMES = 3, 8
# The height of a map of one of several runs, in inches.
_LOW = 6.2


def maps(
    table: Table,
    scale: Scale,
    selection: Selection,
    limit: float,
    spikes: Table | None = None,
) -> list[Panel]:
    """One map, or one of the groups and one of the outliers.

    Args:
        table: What was recorded.
        scale: How it is shown.
        selection: Which variables, grouped how.
        limit: Height of the map of all variables, in inches.
        spikes: The rates of the variables in the steps that were left out: a
            mark for each of which the bounds were exceeded most.
    """
    norm = scale.norm(table.values)
    kind, groups = selection.groups(table.variables)
    if not groups:
        peaks = standing_out(table, _MARKED, scale.is_rate)
        # Not `>=`: what is not finite is marked.
        peaks = [peak for peak in peaks if not peak.factor < _TIMES]
        title = f"{scale.title} of each variable"
        one = _Map(table, scale, norm, title, _marks.note(table), peaks, spikes)
        return [one.panel(limit)]
    of_groups = grouped(table, groups)
    title = f"{scale.title} by {kind}"
    note = f"Of each {kind} the variable with the largest value. "
    note += _marks.note(of_groups)
    if spikes is not None:
        group_of = dict(zip(table.variables, groups, strict=True))
        known = [r for r, v in enumerate(spikes.variables) if v in group_of]
        spikes = spikes.rows(known)
        spikes = grouped(spikes, [group_of[v] for v in spikes.variables])
    one = _Map(of_groups, scale, norm, title, note, (), spikes, kind)
    panels = [one.panel(limit)]
    return [*panels, *_outliers(table, scale, norm, _OUTLIERS)]


def _outliers(
    table: Table, scale: Scale, norm: Normalize, count: int, name: str = ""
) -> list[Panel]:
    """A map of the variables that stand out, with words beside it."""
    peaks = standing_out(table, count, scale.is_rate)
    if not peaks:
        return []
    chosen = table.rows([peak.row for peak in peaks])
    peaks = [peak._replace(row=row) for row, peak in enumerate(peaks)]
    title = f"{scale.title}: variables that stand out"
    if name:
        title += f" in {name}"
    note = (
        f"{len(peaks)} of {len(table.variables)}, by how far they rise above "
        "their usual value (the median) while the others do not. Colours as "
        f"above. {_marks.note(chosen)}"
    )
    one = _Map(chosen, scale, norm, title, note, peaks, is_below=True)
    return [one.panel(_LOW)]


def rows_of_a_run(
    table: Table, scale: Scale, norm: Normalize, selection: Selection, name: str
) -> list[Panel]:
    """The map of one of several runs, and its greatest outliers in words."""
    kind, groups = selection.groups(table.variables)
    shown = grouped(table, groups) if groups else table
    title = f"{scale.title} {f'by {kind}' if kind else 'of each variable'}"
    note = _marks.note(shown)
    one = _Map(shown, scale, norm, f"{title}: {name}", note, what=kind)
    return [one.panel(_LOW), *_outliers(table, scale, norm, _MARKED, name)]


class _Map(NamedTuple):
    """A heat map; `is_below` one that has the same colours."""

    table: Table
    scale: Scale
    norm: Normalize
    title: str
    note: str
    peaks: Sequence[Peak] = ()
    spikes: Table | None = None
    what: str = ""
    is_below: bool = False

    def panel(self, limit: float) -> Panel:
        table = self.table
        height = map_height(table, limit, not self.is_below)
        return Panel(
            self._draw,
            height,
            table.variables,
            table.known,
            self.what,
            is_wide=self.is_below,
        )

    def _draw(self, ax: Axes, clock: Clock) -> None:
        table, scale = self.table, self.scale
        _marks.head(ax, self.title, self.note)
        handles = heat_map(
            ax,
            table,
            clock,
            self.norm,
            scale.label,
            scale.colors,
            scale.ticks,
            not self.is_below,
        )
        for peak in self.peaks:
            _marks.peak(ax, clock, peak, self.is_below)
        handles += self._draw_spikes(ax)
        _marks.legend(ax, handles, above=True)

    def _draw_spikes(self, ax: Axes) -> list[Artist]:
        rows = {name: row for row, name in enumerate(self.table.variables)}
        series = [] if self.spikes is None else list(self.spikes.series())
        series = [one for one in series if one.variable in rows]
        for one in series:
            known = np.isfinite(one.values)
            steps = one.steps[known]
            height = np.full(len(steps), rows[one.variable])
            _marks.spikes(ax, one.variable, one.run, steps, height)
        label = "largest rates in a spike"
        return [_marks.spike_key(label)] if series else []
