"""Lines, headings, legends and log axes that the panels share.

Needs matplotlib, as do `_heat_map`, `_sheet`, `_panels` and `_layouts`. They
use its object-oriented interface alone, and set sizes and colours on each
artist: `pyplot` and `rc_context` are global, so not for threads, and a user's
dark style must not make black lines on black.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator

from keras_adamax.plots import _labels
from keras_adamax.plots._rows import Peak
from keras_adamax.plots._tables import Clock, Series, Table

# Sizes of fonts, in points.
SMALL, TEXT, HEADING = 7.5, 8.5, 10
GREY = "0.35"
# The longest name of a variable in a legend and on an axis, in characters.
WIDEST, WIDEST_ROW = 38, 48
# Height of the strips for zeros and NaN, as a fraction of the axes.
STRIP = 0.15
NO_DATA: dict[str, Any] = {
    "facecolor": "0.88",
    "edgecolor": "0.6",
    "hatch": "/////",
    "lw": 0,
}

# White around it: it stands on lines and on dark colours.
_SPIKE: dict[str, Any] = {
    "color": "#D55E00",
    "ls": "none",
    "marker": "v",
    "ms": 6,
    "mec": "white",
    "mew": 0.6,
}


class Style(NamedTuple):
    """How a line looks."""

    color: str
    dashes: Any
    marker: str
    width: float = 1.3
    size: float = 3.2


SUMMARY = Style("black", "-", "o", 2.4, 3.8)
# Okabe & Ito's palette, without yellow (too faint on white); each colour
# comes with its own dashes and marker, for print and for the colour-blind.
STYLES = (
    Style("#0072B2", "-", "o"),
    Style("#D55E00", (0, (5, 1.5)), "s"),
    Style("#009E73", (0, (3, 1.2, 1, 1.2)), "^"),
    Style("#CC79A7", (0, (1.2, 1.2)), "D"),
    Style("#E69F00", (0, (7, 1.5, 1, 1.5)), "v"),
    Style("#56B4E9", (0, (5, 1, 1, 1, 1, 1)), "P"),
)


def line(ax: Axes, quantity: str, series: Series, style: Style) -> Line2D:
    """Draws one run of one variable."""
    known = np.isfinite(series.values)
    # A marker for every record if there are few, else some; but always for
    # a record whose neighbours are missing, which has no line.
    beside = np.concatenate([[False], known, [False]])
    alone = known & ~beside[:-2] & ~beside[2:]
    count = len(known)
    spread = np.arange(count) % max(1, count // 20) == 0
    (artist,) = ax.plot(
        series.steps,
        series.values,
        color=style.color,
        ls=style.dashes,
        lw=style.width,
        marker=style.marker,
        ms=style.size,
        markevery=np.flatnonzero(alone | spread).tolist(),
        zorder=2 if series.variable else 3,
    )
    artist.set_gid(f"{quantity}:{series.variable}:run:{series.run}")
    _clip_loosely(artist, ax)
    return artist


def _clip_loosely(artist: Line2D, ax: Axes) -> None:
    """Lets markers stand on the frame, where the last record always is."""
    frame = Rectangle((-0.01, -0.03), 1.02, 1.06, transform=ax.transAxes)
    artist.set_clip_path(frame)


def key(label: str, style: Style) -> Line2D:
    """A legend's entry for lines of this style."""
    return Line2D(
        [],
        [],
        color=style.color,
        ls=style.dashes,
        lw=style.width,
        marker=style.marker,
        ms=style.size,
        label=label,
    )


def spikes(
    ax: Axes, variable: str, run: int, steps: np.ndarray, heights: np.ndarray
) -> None:
    """Marks steps that were left out, each by itself."""
    if not len(steps):
        return
    (artist,) = ax.plot(
        steps,
        heights,
        **_SPIKE,
        zorder=4,
        gid=f"spikes:{variable}:run:{run}",
    )
    _clip_loosely(artist, ax)


def spike_key(label: str) -> Line2D:
    """A legend's entry for them."""
    return Line2D([], [], **_SPIKE, label=label)


def peak(ax: Axes, clock: Clock, peak: Peak, beside: bool) -> None:
    """Marks where a row stands out, and says when and how large.

    Args:
        ax: The axes of the map.
        clock: Its time axis.
        peak: What to mark.
        beside: Whether the words stand to the right of the map.
    """
    # White in black, to be seen on any colour.
    for color, width in (("black", 2.6), ("white", 1.2)):
        ax.plot(
            [peak.step],
            [peak.row],
            ls="none",
            marker="o",
            ms=6,
            mfc="none",
            mec=color,
            mew=width,
            zorder=4,
            gid=f"peak:{peak.row}",
        )
    what = f"{peak.value:.2g} at step {peak.step:,}"
    if not math.isfinite(peak.value):
        name = "NaN" if math.isnan(peak.value) else f"{peak.value:g}"
        what = f"{name} since step {peak.step:,}"
    words: dict[str, Any] = {
        "text": f"{what} (usually {peak.usual:.2g})",
        "textcoords": "offset points",
        "va": "center",
        "fontsize": SMALL,
        "color": "black",
    }
    if beside:
        place = (1.005, peak.row)
        transform = ax.get_yaxis_transform()
        ax.annotate(xy=place, xytext=(0, 0), xycoords=transform, **words)
        return
    # On the map, where it hides nothing of this.
    is_left = clock.end - peak.end < peak.begin - clock.begin
    ax.annotate(
        xy=(peak.begin if is_left else peak.end, peak.row),
        xytext=(-7 if is_left else 7, 0),
        ha="right" if is_left else "left",
        bbox={"facecolor": "white", "alpha": 0.85, "lw": 0, "pad": 0.8},
        zorder=5,
        **words,
    )


def head(ax: Axes, title: str, note: str = "") -> None:
    """A heading, and a sentence in small print below it."""
    lines = textwrap.wrap(note, 120)
    ax.set_title(
        title,
        loc="left",
        fontsize=HEADING,
        weight="bold",
        pad=4 + 10 * len(lines),
        color="black",
        parse_math=False,
    )
    if lines:
        ax.annotate(
            "\n".join(lines),
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=SMALL,
            color=GREY,
            parse_math=False,
        )


def legend(ax: Axes, handles: Sequence[Artist], above: bool = False) -> None:
    """A legend to the right of the axes, or above them in one row."""
    if not handles:
        return
    place: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (1.005, 1.03),
        "borderaxespad": 0,
    }
    if above:
        place = {
            "loc": "lower right",
            "bbox_to_anchor": (1, 1),
            "borderaxespad": 0.1,
            "ncols": len(handles),
        }
    drawn = ax.legend(
        handles=list(handles),
        frameon=False,
        fontsize=SMALL,
        labelcolor="black",
        handlelength=2.6,
        **place,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def finite(values: np.ndarray) -> np.ndarray:
    """The values that are neither NaN nor infinite."""
    return values[np.isfinite(values)]


def gaps(ax: Axes, table: Table) -> list[Artist]:
    """Hatches where the summary has no finite value; a legend's entry."""
    found = False
    for part in table.parts:
        edges = np.concatenate([[part.begin], part.steps])
        bad = np.concatenate([[False], ~np.isfinite(part.summary), [False]])
        starts = np.flatnonzero(bad[1:] & ~bad[:-1])
        ends = np.flatnonzero(bad[:-1] & ~bad[1:])
        for start, end in zip(starts, ends, strict=True):
            ax.axvspan(edges[start], edges[end], zorder=0.2, **NO_DATA)
            found = True
    return [Patch(label="no data (NaN or inf)", **NO_DATA)] if found else []


def ranked(
    shown: Sequence[Series], test: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    """Variables that have such values, spread evenly over 0 to 1."""
    found = [one.variable for one in shown if test(one.values).any()]
    found = list(dict.fromkeys(found))
    return {
        name: (place + 0.5) / len(found) for place, name in enumerate(found)
    }


def flag(
    ax: Axes,
    quantity: str,
    series: Series,
    where: np.ndarray,
    height: float,
    style: Style,
) -> None:
    """Marks, in a strip of its own, what a log scale cannot show."""
    (artist,) = ax.plot(
        series.steps,
        np.where(where, height, np.nan),
        transform=ax.get_xaxis_transform(),
        color=style.color,
        lw=0.8,
        marker=style.marker,
        ms=3.2,
        markevery=max(1, len(where) // 40),
        zorder=3,
        gid=f"flag:{quantity}:{series.variable}:run:{series.run}",
    )
    _clip_loosely(artist, ax)


def log_axis(
    ax: Axes, values: np.ndarray, zeros: bool = False, bad: bool = False
) -> None:
    """A log scale around `values`, with strips for zeros and NaN."""
    ax.set_yscale("log", nonpositive="mask")
    low, high = -3.0, 0.0
    values = finite(values)
    # Beyond float32, but far from where powers of ten overflow.
    values = np.clip(values[values > 0], 1e-99, 1e99)
    if values.size:
        low, high = math.log10(values.min()), math.log10(values.max())
        margin = 0.05 * max(high - low, 1)
        low, high = low - margin, high + margin
        if math.floor(high) - math.ceil(low) < 1:
            low, high = math.floor(low), math.ceil(high)
    # The strips take their share of the axes off the decades.
    strip = (high - low) * STRIP / (1 - STRIP * (zeros + bad))
    bottom, top = low - strip * zeros, high + strip * bad
    ax.set_ylim(10.0**bottom, 10.0**top)
    decades = range(math.ceil(low), math.floor(high) + 1)
    decades = decades[:: -(-len(decades) // 6)] if values.size else []
    ticks = [10.0**decade for decade in decades]
    names = [f"$\\mathdefault{{10^{{{decade}}}}}$" for decade in decades]
    for tick in ticks:
        ax.axhline(tick, color="0.9", lw=0.6, zorder=0.5)
    for wanted, name, outer, inner in (
        (zeros, "0", bottom, low),
        (bad, "NaN/inf", top, high),
    ):
        if wanted:
            ax.axhspan(10.0**outer, 10.0**inner, color="0.93", lw=0, zorder=0)
            ax.axhline(10.0**inner, color="0.6", lw=0.8, zorder=1)
            ticks.append(10.0 ** ((outer + inner) / 2))
            names.append(name)
    ax.set_yticks(ticks, names, fontsize=SMALL)
    ax.yaxis.set_minor_locator(NullLocator())


def short_names(table: Table, width: int = WIDEST) -> list[str]:
    """Names of the rows, without the folder that all of them share."""
    folder = _labels.common_folder(table.variables)
    paths = [path.removeprefix(folder) for path in table.variables]
    known = [path.removeprefix(folder) for path in table.known]
    return _labels.shorten(paths, width, known)


def note(table: Table, unchanged: bool = False) -> str:
    """Says what the names leave out and, if asked, what never changed."""
    folder = _labels.common_folder(table.variables).removesuffix("/")
    said = f"Variables in {_labels.shorten([folder], 50)[0]}." if folder else ""
    if unchanged and (rows := table.unchanged()):
        said += f" Never changed in these records: {_join(table, rows)}."
    if unchanged and (since := table.still()):
        first = min(since.values())
        rows = [row for row, step in since.items() if step == first]
        said += f" Unchanged since step {first:,}: {_join(table, rows)}."
        if len(rows) < len(since):
            said += f" Later also {len(since) - len(rows)} more."
    return said.lstrip()


def _join(table: Table, rows: Sequence[int]) -> str:
    short = short_names(table, 46)
    names = [short[row] for row in rows[:3]]
    if len(rows) > 3:
        names.append(f"{len(rows) - 3} more")
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
