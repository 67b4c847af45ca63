"""A figure of panels over one time axis."""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, StrMethodFormatter

from keras_adamax.plots._labels import label_rows
from keras_adamax.plots._marks import GREY, SMALL, TEXT, WIDEST_ROW
from keras_adamax.plots._tables import Clock

# In inches.
_WIDTH, _WIDE = 10.5, 12.5
# A figure that is higher has the time's ticks at each panel.
_HIGH = 9.0
# The share of the height it asks for that each panel gets, at least.
_SURE = 0.85
# Runs beyond this number get thin lines: many short calls of `fit`.
_MANY_RUNS = 15


class Panel(NamedTuple):
    """Something to draw on one pair of axes, `height` inches high.

    `rows` are the variables of a heat map, which get names when the layout
    is known; `known` those from which a reader must tell them; `what` the
    rows are, if not variables. `is_wide` panels have words at both sides.
    """

    draw: Callable[[Axes, Clock], None]
    height: float
    rows: Sequence[str] = ()
    known: Sequence[str] = ()
    what: str = ""
    is_wide: bool = False


def make_figure(
    panels: Sequence[Panel], clock: Clock, title: str | None
) -> Figure:
    """Draws the panels below one another."""
    heights = [panel.height for panel in panels]
    is_high = sum(heights) > _HIGH
    width = _WIDE if any(panel.is_wide for panel in panels) else _WIDTH
    figure = Figure(
        figsize=(width, sum(heights) + 0.5 * len(heights) + 0.6),
        layout="constrained",
        facecolor="white",
    )
    grid = figure.subplots(
        len(panels),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    axes: list[Axes] = list(grid[:, 0])
    for panel, ax in zip(panels, axes, strict=True):
        ax.set_facecolor("white")
        ax.spines[:].set_color("black")
        ax.grid(False)
        ax.tick_params(labelsize=SMALL, which="both", colors="black")
        panel.draw(ax, clock)
        ax.yaxis.label.set(fontsize=TEXT, color="black")
        ax.tick_params(axis="x", labelbottom=is_high or ax is axes[-1])
    _time_axis(axes[-1], clock)
    _mark_runs(axes, clock)
    if title:
        figure.suptitle(
            textwrap.fill(title, 80),
            fontsize=12,
            weight="bold",
            color="black",
            parse_math=False,
        )
    mapped = [
        (panel, ax)
        for panel, ax in zip(panels, axes, strict=True)
        if panel.rows
    ]
    if any(_spacing(p, _SURE * p.height) > 1 for p, _ in mapped):
        # Lays the figure out, which takes long: how many names fit depends on
        # the heights.
        figure.draw_without_rendering()
        for panel, ax in mapped:
            height = ax.get_position().height * figure.get_figheight()
            _name_rows(ax, panel, _spacing(panel, height))
    else:
        for panel, ax in mapped:
            _name_rows(ax, panel, 1.0)
    return figure


def _time_axis(ax: Axes, clock: Clock) -> None:
    ax.set_xlim(clock.begin, max(clock.end, clock.begin + 1))
    ax.xaxis.set_major_locator(
        MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10])
    )
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    unit = "optimizer updates"
    if clock.shifted:
        unit += ", runs one after another"
    ax.set_xlabel(f"step ({unit})", fontsize=TEXT, color="black")


def _mark_runs(axes: Sequence[Axes], clock: Clock) -> None:
    """A vertical line where a run begins, and names where they fit."""
    length = max(clock.end - clock.begin, 1)
    # A name takes about so much, to the right of its line, or to the left if
    # it would leave the axes; `taken` is where the name before ends.
    room, taken = 0.075 * length, clock.begin
    width = 1.0 if len(clock.begins) <= _MANY_RUNS else 0.4
    for run, begin in list(clock.begins.items())[1:]:
        for ax in axes:
            ax.axvline(
                begin,
                color="black",
                lw=width,
                ls=(0, (4, 2)),
                zorder=4,
                gid=f"run:{run}",
            )
        at_end = begin + room > clock.end
        if begin - room * at_end < taken:
            continue
        taken = begin + room
        axes[0].annotate(
            f"run {run}",
            (begin, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if at_end else 3, -3),
            textcoords="offset points",
            ha="right" if at_end else "left",
            va="top",
            fontsize=SMALL,
            color=GREY,
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
            zorder=5,
        )


def _spacing(panel: Panel, height: float) -> float:
    """The distance that two names must keep, in rows of a map so high."""
    return SMALL * 1.25 / 72 * len(panel.rows) / height


def _name_rows(ax: Axes, panel: Panel, spacing: float) -> None:
    bands, what = label_rows(panel.rows, spacing, WIDEST_ROW, panel.known)
    ax.set_yticks(
        [band.center for band in bands],
        [band.label for band in bands],
        fontsize=SMALL,
        parse_math=False,
    )
    ax.set_ylabel(panel.what or what, fontsize=TEXT, color="black")
    if any(band.first < band.last for band in bands):
        # Ticks between the layers instead of at their labels.
        edges = {band.first - 0.5 for band in bands}
        edges |= {band.last + 0.5 for band in bands}
        ax.yaxis.set_minor_locator(FixedLocator(sorted(edges)))
        ax.tick_params(axis="y", which="minor", length=7, color="black")
        ax.tick_params(axis="y", which="major", length=0, pad=9)
