"""What the figures of a search share: axes, points, ticks and legends.

matplotlib's object-oriented interface alone, with sizes and colours on each
artist: `pyplot` is global, so not for threads, and a user's dark style must
not make black on black.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import TICKRIGHT
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from keras_adamax.plots._marks import SMALL, STYLES, TEXT, WIDEST
from keras_adamax_tuning.results.axes import Axis, shorten

# The colours of both packages' figures; each comes with its own marker.
BLUE, RED, GREEN, _, ORANGE, _ = (style.color for style in STYLES)
# From light to dark, readable in grey and for the colour-blind; without the
# lightest part, which is too faint on white.
RANKS = LinearSegmentedColormap.from_list(
    "ranks", colormaps["cividis_r"](np.linspace(0.2, 1.0, 256))
)
# How each kind of point looks. Failed trials have no score, and stand in a
# strip; so do those whose score is beyond the axis.
COMPLETED: dict[str, Any] = {
    "color": BLUE,
    "marker": "o",
    "ms": 5.5,
    "mec": "white",
    "mew": 0.5,
}
PRUNED: dict[str, Any] = {
    "color": GREEN,
    "marker": "s",
    "ms": 5.5,
    "mfc": "white",
    "mec": GREEN,
    "mew": 1.2,
}
FAILED: dict[str, Any] = {"color": ORANGE, "marker": "x", "ms": 6, "mew": 1.6}
BEST: dict[str, Any] = {
    "color": RED,
    "marker": "*",
    "ms": 13,
    "mec": "white",
    "mew": 0.7,
}
# The strip for trials without a score, as a fraction of the axes.
_STRIP = 0.12
# Scores that spread over more than this factor get a log scale.
_WIDE = 20.0
# Scores beyond this many times the distance from the best one to the end of
# the best third are marked at the edge.
_FAR = 10.0


def new_figure(width: float, height: float, title: str) -> Figure:
    """A white figure of that many inches, with a title."""
    figure = Figure(
        figsize=(width, height), layout="constrained", facecolor="white"
    )
    figure.suptitle(
        title, fontsize=11, weight="bold", color="black", parse_math=False
    )
    return figure


def say_instead(title: str, text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure = new_figure(8, 2.5, title)
    ax = figure.subplots()
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
    return figure


def prepare(ax: Axes) -> None:
    """Gives axes their colours, whatever the user's style is."""
    ax.set_facecolor("white")
    ax.spines[:].set_color("black")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL, which="both", colors="black")


def scored(trials: Sequence[Any], *states: str) -> list[Any]:
    """The trials in these states that have a finite score."""
    return [
        trial
        for trial in trials
        if trial.state in states
        and trial.score is not None
        and math.isfinite(trial.score)
    ]


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > _WIDE


def score_axis(trials: Sequence[Any], objective: str) -> Axis:
    """The scores as an axis."""
    values = [trial.score for trial in trials]
    kind = "log" if _is_wide(values) else "linear"
    return Axis(objective, kind, (), min(values), max(values))


def near_and_far(
    trials: Sequence[Any], direction: str
) -> tuple[list[Any], list[Any]]:
    """The trials that the score axis is for, and those far beyond.

    A diverged trial's 1e6 would make one line of all good trials. The best
    third says how far the good ones lie from one another.
    """
    if not trials:
        return [], []
    sign = 1 if direction == "min" else -1
    log = _is_wide([trial.score for trial in trials])

    def badness(trial: Any) -> float:
        return sign * (math.log10(trial.score) if log else trial.score)

    ordered = sorted(map(badness, trials))
    best, third = ordered[0], ordered[(len(ordered) - 1) // 3]
    # Of equal scores, the next one.
    third = next((one for one in ordered if one >= third > best), third)
    limit = best + _FAR * (third - best)
    if limit == best:
        return list(trials), []
    return (
        [trial for trial in trials if badness(trial) <= limit],
        [trial for trial in trials if badness(trial) > limit],
    )


def without_extremes(trials: Sequence[Any], direction: str) -> list[Any]:
    """The far ones as bad as the worst near one.

    fANOVA explains the variance, of which one score of 1e6 is all.
    """
    near, far = near_and_far(trials, direction)
    if not far:
        return near
    worst = (max if direction == "min" else min)(t.score for t in near)
    return near + [dataclasses.replace(t, score=worst) for t in far]


def round_ticks(low: float, high: float, log: bool, at_most: int) -> list[Any]:
    """Round numbers from `low` to `high`, by matplotlib's own rules."""
    if not low < high:
        return [low]
    # On a log scale, in a short range, some between the powers of ten too.
    locators: list[Any] = [
        LogLocator(subs=subs, numticks=at_most)
        for subs in ([1, 2, 5], [1, 3], [1])
        if log
    ]
    locators.append(MaxNLocator(at_most - 1, steps=[1, 2, 2.5, 5, 10]))
    ticks: list[Any] = []
    for locator in locators:
        # An end may miss its decade by rounding.
        ticks = [
            float(f"{tick:.10g}")
            for tick in locator.tick_values(low, high)
            if low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high)
        ]
        if 2 <= len(ticks) <= at_most:
            break
    return ticks


def _ticks_of(axis: Axis, at_most: int) -> tuple[list[float], list[str]]:
    """Positions on an axis, and their labels."""
    if axis.kind == "choice":
        step = -(-len(axis.choices) // at_most)
        positions = [float(i) for i in range(0, len(axis.choices), step)]
        values = list(axis.choices[::step])
    else:
        log = axis.kind == "log"
        positions = values = round_ticks(axis.low, axis.high, log, at_most)
    return positions, [axis.label_of(value) for value in values]


def set_score_axis(
    ax: Axes, trials: Sequence[Any], direction: str, has_strip: bool
) -> float:
    """Scales the y axis; returns where failed trials stand, in axes."""
    values = [trial.score for trial in trials] or [0.0, 1.0]
    log = _is_wide(values)
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    margin = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-6)
    ends = np.array([low - margin, high + margin])
    # Failed trials stand on the bad side.
    bad = 1 if direction == "min" else 0
    limits = ends.copy()
    if has_strip:
        limits[bad] += (ends[bad] - ends[1 - bad]) * _STRIP / (1 - _STRIP)
    if log:
        ax.set_yscale("log")
        ends, limits = 10**ends, 10**limits
    ax.set_ylim(limits[0], limits[1])
    ticks = round_ticks(ends[0], ends[1], log, 6 if log else 7)
    for sibling in [ax, *ax.get_shared_y_axes().get_siblings(ax)]:
        if has_strip:
            strip = (ends[bad], limits[bad])
            sibling.axhspan(*strip, color="0.93", lw=0, zorder=0)
        sibling.grid(axis="y", color="0.92", lw=0.6, zorder=0)
        sibling.set_axisbelow(True)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=SMALL)
    ax.yaxis.set_minor_locator(NullLocator())
    return 1 - _STRIP / 2 if bad else _STRIP / 2


def label_score_axis(ax: Axes, objective: str, direction: str) -> None:
    """Names the objective, and which end of it is the better one."""
    better = "lower" if direction == "min" else "higher"
    ax.set_ylabel(f"{objective} ({better} is better)", fontsize=TEXT)


def set_value_axis(ax: Axes, axis: Axis) -> None:
    """Gives the x axis the scale of a hyperparameter."""
    ticks, labels = _ticks_of(axis, 4)
    if axis.kind == "log":
        ax.set_xscale("log")
        ratio = (axis.high / axis.low) ** 0.05
        ax.set_xlim(axis.low / ratio, axis.high * ratio)
    elif axis.kind == "linear":
        margin = 0.05 * (axis.high - axis.low)
        ax.set_xlim(axis.low - margin, axis.high + margin)
    else:
        ax.set_xlim(-0.5, len(axis.choices) - 0.5)
        # About 30 characters have room below a panel.
        room = max(4, 30 // len(labels))
        if max(map(len, labels)) > room + 2 or any(
            len(one) + len(other) > 2 * room
            for one, other in itertools.pairwise(labels)
        ):
            labels = [shorten(label, room) for label in labels]
    ax.set_xticks(ticks, labels, fontsize=SMALL, parse_math=False)
    ax.xaxis.set_minor_locator(NullLocator())
    if axis.is_reversed:
        ax.invert_xaxis()


def label_parallel_axis(ax: Axes, place: int, axis: Axis) -> None:
    """Draws one of the parallel axes."""
    ax.plot([place, place], [0, 1], color="black", lw=0.9, zorder=4)
    for tick, label in zip(*_ticks_of(axis, 6), strict=True):
        height = axis.height_at(tick)
        ax.plot([place], [height], marker=TICKRIGHT, ms=4, color="black")
        ax.annotate(
            label,
            (place, height),
            xytext=(6, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=SMALL,
            color="black",
            bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.8},
            parse_math=False,
            zorder=5,
        )


def draw_points(
    ax: Axes,
    places: Sequence[float],
    heights: Sequence[float],
    look: dict[str, Any],
    label: str,
    gid: str | None = None,
    in_strip: bool = False,
) -> None:
    """Draws a marker for each trial; in the strip at a height of the axes."""
    if len(places):
        artists = ax.plot(
            places, heights, ls="", zorder=3, label=label, gid=gid, **look
        )
        if in_strip:
            artists[0].set_transform(ax.get_xaxis_transform())


def draw_in_strip(
    ax: Axes,
    trials: Mapping[str, Sequence[tuple[float, Any]]],
    strip: float,
    direction: str,
) -> None:
    """Draws the trials that have no place on the score axis, in the strip.

    Args:
        ax: The axes.
        trials: Pairs of a place on the x axis and a trial: the `"failed"`
            ones, and those `"far"` beyond the axis.
        strip: Where the strip is, as `set_score_axis` returned it.
        direction: `"min"` or `"max"`.
    """
    for kind, pairs in trials.items():
        if not pairs:
            continue
        places = [place for place, _ in pairs]
        look, label, height = FAILED, "failed", strip
        if kind == "far":
            look = far_look(direction)
            label = far_label([trial for _, trial in pairs], direction)
            height += (-0.25 if direction == "min" else 0.25) * _STRIP
        heights = [height] * len(places)
        draw_points(ax, places, heights, look, label, kind, in_strip=True)


def far_look(direction: str) -> dict[str, Any]:
    """The marker of scores beyond the edge."""
    marker = "^" if direction == "min" else "v"
    return {"color": "black", "marker": marker, "ms": 5}


def far_label(trials: Sequence[Any], direction: str) -> str:
    """What such a marker means."""
    worst = max if direction == "min" else min
    return (
        f"{len(trials)} beyond the axis "
        f"(up to {worst(trial.score for trial in trials):.3g})"
    )


def draw_names(ax: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Writes names of hyperparameters above parallel axes."""
    ax.set_xticks(
        places,
        [shorten(name, WIDEST) for name in names],
        rotation=32,
        ha="left",
        rotation_mode="anchor",
        fontsize=TEXT,
        color="black",
        parse_math=False,
    )
    ax.tick_params(axis="x", length=0, pad=6)


def key(label: str, **look: Any) -> Line2D:
    """An entry of the legend."""
    return Line2D([], [], label=label, **{"ls": "", **look})


def draw_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Draws the legend below the figure."""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        # More have no room side by side.
        ncols=len(handles) if len(handles) < 6 else 3,
        frameon=False,
        fontsize=TEXT,
        labelcolor="black",
    )
