"""Variables by records, as colours."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator, StrMethodFormatter

from keras_adamax.plots._marks import NO_DATA, SMALL, TEXT
from keras_adamax.plots._tables import Clock, Table

# More columns than this are merged: a picture has no pixels for them.
_MAX_COLUMNS = 1000


def map_height(table: Table, limit: float, has_bar: bool = True) -> float:
    """Inches: a name for each row, as far as `limit` allows."""
    return min(max(1.6 * has_bar, 0.155 * len(table.variables)), limit)


def heat_map(
    ax: Axes,
    table: Table,
    clock: Clock,
    norm: Normalize,
    label: str,
    cmap: str,
    ticks: Sequence[float] | None = None,
    has_bar: bool = True,
) -> list[Artist]:
    """Draws the map and, if it is to have one, its colour bar.

    On a log scale zeros are white: exactly 0 is below every scale.

    Returns:
        A legend's entries for the cells without a colour.
    """
    edges, values = table.cells(clock, _MAX_COLUMNS)
    values = np.ma.masked_invalid(values)
    colors = colormaps[cmap]
    handles: list[Artist] = []
    if np.ma.is_masked(values):
        # Behind the map, so that it shows wherever the map has nothing.
        ax.add_patch(
            Rectangle((0, 0), 1, 1, transform=ax.transAxes, zorder=0, **NO_DATA)
        )
        handles.append(Patch(label="no data", **NO_DATA))
    if isinstance(norm, LogNorm):
        colors = colors.with_extremes(under="white")
        if (values == 0).any():
            handles.append(
                Patch(
                    facecolor="white",
                    edgecolor="black",
                    lw=0.6,
                    label="unchanged (exactly 0)",
                )
            )
        # Not 0, which a log scale would mask like missing data.
        low = float(norm.vmin or 1)
        values = np.ma.where(values > 0, values.clip(low), low / 10)
    rows = np.arange(len(table.variables) + 1) - 0.5
    mesh = ax.pcolormesh(
        edges,
        rows,
        values,
        cmap=colors,
        norm=norm,
        # In PDF and SVG one image instead of a shape for every cell.
        rasterized=True,
        zorder=1,
        gid=table.quantity,
    )
    ax.set_ylim(rows[-1], rows[0])
    if has_bar:
        _color_bar(ax, mesh, label, ticks)
    return handles


def _color_bar(
    ax: Axes, mesh: QuadMesh, label: str, ticks: Sequence[float] | None
) -> None:
    # Inside the axes' own box: beside the axes, a legend of another panel
    # would push it away from the map.
    bar = ax.figure.colorbar(
        mesh, cax=ax.inset_axes((1.012, 0, 0.02, 1)), ticks=ticks
    )
    bar.ax.tick_params(labelsize=SMALL, which="both", colors="black")
    bar.outline.set_edgecolor("black")
    if ticks is not None:
        bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label(label, fontsize=TEXT, color="black")
