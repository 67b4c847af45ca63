"""How the figures of a search look. Needs matplotlib.

matplotlib's object-oriented interface alone, with sizes and colours on each
artist: `pyplot` is global, so not for threads, and a user's dark style must
not make black on black.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import TICKRIGHT
from matplotlib.ticker import MaxNLocator, NullLocator

from keras_adamax_tuning._axes import (
    Axis,
    axes_of,
    linear_ticks,
    log_ticks,
    shorten,
)
from keras_adamax_tuning._importance import FEWEST_TRIALS, importances
from keras_adamax_tuning._progress import best_of

# Sizes of fonts, in points.
_SMALL, _TEXT, _HEADING = 7.5, 8.5, 11
# Characters of a hyperparameter's name that have room at a panel or an axis;
# the longest one of `AdamaxClippedSpace` has 38.
_NAME = 38
_GREY = "0.35"
# Okabe & Ito's palette; each comes with its own marker, for the colour-blind.
_BLUE, _RED, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
# From light to dark, readable in grey and for the colour-blind; without the
# lightest part, which is too faint on white.
_RANKS = LinearSegmentedColormap.from_list(
    "ranks", colormaps["cividis_r"](np.linspace(0.2, 1.0, 256))
)
# The strip for trials without a score, as a fraction of the axes.
_STRIP = 0.12
_EVALUATORS = {
    "PED-ANOVA": "PED-ANOVA: for being among the best tenth",
    "fANOVA": "fANOVA: for the score (only what every trial has)",
}
# Scores that spread over more than this factor get a log scale.
_WIDE = 20.0
# Scores beyond this many times the distance from the best one to the end of
# the best third are marked at the edge.
_FAR = 10.0


def scores(trials: Sequence[Any], objective: str, direction: str) -> Figure:
    """See `figures.plot_scores`."""
    figure = _figure(8, 4.2)
    ax = figure.subplots()
    _prepare(ax)
    _title(figure, f"{objective} of each trial")
    known = _scored(trials, ("completed", "pruned"))
    failed = [trial for trial in trials if trial.state == "failed"]
    if not known and not failed:
        return _say(ax, "No trial has ended yet.")
    near, far = _near_and_far(known, direction)
    strip = _score_axis(ax, near, direction, bool(failed or far))
    completed = [trial for trial in near if trial.state == "completed"]
    pruned = [trial for trial in near if trial.state == "pruned"]
    if completed:
        _line_of_the_best(
            ax,
            [trial for trial in known if trial.state == "completed"],
            trials,
            direction,
        )
    _points(ax, completed, lambda trial: trial.number, _BLUE, "o", "completed")
    _points(ax, pruned, lambda trial: trial.number, _GREEN, "s", "pruned")
    _flags(ax, failed, lambda trial: trial.number, strip)
    _far_flags(ax, far, lambda trial: trial.number, strip, direction)
    best = best_of(trials, direction)
    if best is not None:
        ax.plot(
            [best.number],
            [best.score],
            ls="",
            marker="*",
            ms=13,
            color=_RED,
            mec="white",
            mew=0.7,
            zorder=5,
            label=f"best: {best.score:.5g} (trial {best.number})",
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    numbers = [trial.number for trial in (*known, *failed)]
    margin = 0.02 * (max(numbers) - min(numbers)) + 0.5
    ax.set_xlim(min(numbers) - margin, max(numbers) + margin)
    ax.set_xlabel("trial", fontsize=_TEXT, color="black")
    ax.set_ylabel(_score_label(objective, direction), fontsize=_TEXT)
    _legend(figure, ax)
    return figure


def hyperparameters(
    trials: Sequence[Any],
    space: Iterable[Any],
    objective: str,
    direction: str,
) -> Figure:
    """See `figures.plot_hyperparameters`."""
    axes = axes_of(trials, space)
    known = _scored(trials, ("completed", "pruned"))
    failed = [trial for trial in trials if trial.state == "failed"]
    if not axes or not (known or failed):
        figure = _figure(8, 2.5)
        return _say(figure.subplots(), _nothing(axes))
    columns = min(len(axes), 3 if len(axes) <= 9 else 4)
    rows = -(-len(axes) // columns)
    figure = _figure(max(2.7 * columns, 5.4), 2.3 * rows + 1.0)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    _title(figure, f"{objective} against each hyperparameter")
    best = best_of(trials, direction)
    last = max(trial.number for trial in (*known, *failed)) or 1
    for ax in grid.flat:
        _prepare(ax)
    near, far = _near_and_far(known, direction)
    # One call, because the panels share their y axis.
    strip = _score_axis(grid[0, 0], near, direction, bool(failed or far))
    for place, axis in enumerate(axes):
        ax = grid[place // columns, place % columns]
        for state, marker in (("completed", "o"), ("pruned", "s")):
            here = [
                trial
                for trial in near
                if trial.state == state and axis.name in trial.hyperparameters
            ]
            ax.scatter(
                [_place(axis, trial) for trial in here],
                [trial.score for trial in here],
                c=[_RANKS(trial.number / last) for trial in here],
                marker=marker,
                s=20,
                linewidths=0.5,
                edgecolors="black",
                alpha=0.75,
                zorder=3,
            )
        _far_flags(
            ax,
            [t for t in far if axis.name in t.hyperparameters],
            lambda trial, axis=axis: _place(axis, trial),
            strip,
            direction,
        )
        _flags(
            ax,
            [t for t in failed if axis.name in t.hyperparameters],
            lambda trial, axis=axis: _place(axis, trial),
            strip,
        )
        if best is not None and axis.name in best.hyperparameters:
            ax.plot(
                [_place(axis, best)],
                [best.score],
                ls="",
                marker="*",
                ms=12,
                color=_RED,
                mec="white",
                mew=0.7,
                zorder=5,
            )
        _value_axis(ax, axis)
        used = sum(axis.name in t.hyperparameters for t in (*known, *failed))
        name = shorten(axis.label, _NAME)
        if used < len(known) + len(failed):
            name += f"\n(only in {used} trials)"
        ax.set_xlabel(name, fontsize=_TEXT, color="black")
        if place % columns == 0:
            ax.set_ylabel(_score_label(objective, direction), fontsize=_TEXT)
    for ax in grid.flat[len(axes) :]:
        ax.remove()
    handles = [_key("o", _RANKS(0.0), "first trial")]
    handles += [_key("o", _RANKS(1.0), "last trial")]
    if any(trial.state == "pruned" for trial in known):
        handles.append(_key("s", _RANKS(0.5), "pruned"))
    if failed:
        handles.append(_key("x", _ORANGE, "failed"))
    if far:
        handles.append(
            _key(_far_marker(direction), "black", _far_label(far, direction))
        )
    if best is not None:
        handles.append(_key("*", _RED, f"best (trial {best.number})", 10))
    _legend(figure, handles=handles)
    return figure


def parallel_coordinates(
    trials: Sequence[Any],
    space: Iterable[Any],
    objective: str,
    direction: str,
) -> Figure:
    """See `figures.plot_parallel_coordinates`."""
    axes = axes_of(trials, space)
    completed = _scored(trials, ("completed",))
    if not axes or not completed:
        figure = _figure(8, 2.5)
        return _say(figure.subplots(), _nothing(axes))
    near, far = _near_and_far(completed, direction)
    outside = {trial.number for trial in far}
    scale = _score_scale(near, objective)
    figure = _figure(max(6.0, 1.05 * len(axes) + 2.2), 5.2)
    ax = figure.subplots()
    ax.set_facecolor("white")
    ax.spines[:].set_visible(False)
    conditional = any(
        axis.name not in trial.hyperparameters
        for axis in axes
        for trial in completed
    )
    bottom = -0.2 if conditional else -0.06
    sign = 1 if direction == "min" else -1
    ordered = sorted(completed, key=lambda trial: -sign * trial.score)
    for rank, trial in enumerate(ordered):
        heights = [
            _height(axis, trial)
            if axis.name in trial.hyperparameters
            else -0.15
            for axis in axes
        ]
        # A far one ends just beyond the axis.
        beyond = 1.04 if direction == "min" else -0.04
        heights.append(
            beyond if trial.number in outside else scale.fraction(trial.score)
        )
        is_best = trial is ordered[-1]
        ax.plot(
            range(len(axes) + 1),
            heights,
            color=_RED if is_best else _RANKS(rank / max(1, len(ordered) - 1)),
            lw=2.4 if is_best else 1.0,
            alpha=1.0 if is_best else 0.8,
            zorder=3 if is_best else 2,
            solid_joinstyle="round",
            gid=f"trial:{trial.number}",
        )
    for place, axis in enumerate((*axes, scale)):
        ax.plot([place, place], [0, 1], color="black", lw=0.9, zorder=4)
        _label_axis(ax, place, axis)
    if conditional:
        ax.axhspan(-0.19, -0.11, color="0.93", lw=0, zorder=0)
        ax.annotate(
            "not used",
            (0, -0.15),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=_SMALL,
            color=_GREY,
        )
    ax.set_xlim(-0.25, len(axes) + 0.75)
    ax.set_ylim(bottom, 1.06)
    ax.set_yticks([])
    ax.xaxis.tick_top()
    ax.set_xticks(
        range(len(axes) + 1),
        [*(shorten(axis.label, _NAME) for axis in axes), objective],
        rotation=32,
        ha="left",
        rotation_mode="anchor",
        fontsize=_TEXT,
        color="black",
        parse_math=False,
    )
    ax.tick_params(axis="x", length=0, pad=6)
    _title(figure, "Hyperparameters and score of each completed trial")
    handles = [
        _key("", _RANKS(0.0), "worst", line=True),
        _key("", _RANKS(1.0), "good", line=True),
        _key(
            "", _RED, f"best (trial {ordered[-1].number})", line=True, width=2.4
        ),
    ]
    if far:
        handles.append(_key("", "white", _far_label(far, direction)))
    _legend(figure, handles=handles)
    return figure


def importance(
    trials: Sequence[Any],
    space: Iterable[Any],
    objective: str,
    direction: str,
) -> Figure:
    """See `figures.plot_importance`."""
    axes = axes_of(trials, space)
    completed = _scored(trials, ("completed",))
    found = importances(
        _without_extremes(completed, direction), axes, direction
    )
    if not found:
        figure = _figure(8, 2.5)
        _title(figure, f"Importance for {objective}")
        if not axes:
            return _say(figure.subplots(), _nothing(axes))
        if len(completed) >= FEWEST_TRIALS:
            return _say(
                figure.subplots(),
                "All trials have the same score: nothing mattered.",
            )
        return _say(
            figure.subplots(),
            f"Importance needs at least {FEWEST_TRIALS} completed trials; "
            f"there are {len(completed)}.",
        )
    main = next(iter(found.values()))
    names = sorted(main, key=lambda name: main[name])
    labels = {axis.name: axis.label for axis in axes}
    figure = _figure(8, 0.32 * len(names) + 2.2)
    ax = figure.subplots()
    _prepare(ax)
    looks: tuple[dict[str, Any], ...] = (
        {"color": _BLUE, "hatch": None},
        {"color": "#F0C35E", "hatch": "////"},
    )
    height = 0.8 / len(found)
    for number, (evaluator, shares) in enumerate(found.items()):
        here = [place for place, name in enumerate(names) if name in shares]
        ax.barh(
            [
                place + height * (len(found) / 2 - 0.5 - number)
                for place in here
            ],
            [shares[names[place]] for place in here],
            height=height * 0.92,
            label=_EVALUATORS[evaluator],
            edgecolor="black",
            linewidth=0.5,
            zorder=2,
            **looks[number],
        )
    ax.grid(axis="x", color="0.9", lw=0.6, zorder=0)
    ax.set_yticks(
        range(len(names)),
        [shorten(labels[name], _NAME) for name in names],
        fontsize=_TEXT,
        parse_math=False,
    )
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_xlim(left=0)
    words = (
        f"share of importance for {objective} (sum 1), "
        f"{len(completed)} completed trials"
    )
    if len(found) > 1:
        words += f"\n{_explanation(len(completed))}"
    ax.set_xlabel(words, fontsize=_TEXT)
    _title(figure, f"Importance for {objective}")
    _legend(figure, ax)
    return figure


def _explanation(completed: int) -> str:
    tenth = completed // 10
    return (
        "The two may differ: fANOVA says what explains all scores, bad ones "
        "included,\nPED-ANOVA what the best tenth have in common "
        f"({tenth} trial{'s' * (tenth > 1)} here).\n"
        "With fewer than 100 completed trials, take both as a hint."
    )


def _figure(width: float, height: float) -> Figure:
    return Figure(
        figsize=(width, height), layout="constrained", facecolor="white"
    )


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(
        text,
        fontsize=_HEADING,
        weight="bold",
        color="black",
        parse_math=False,
    )


def _prepare(ax: Axes) -> None:
    ax.set_facecolor("white")
    ax.spines[:].set_color("black")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=_SMALL, which="both", colors="black")


def _say(ax: Axes, text: str) -> Figure:
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=10)
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def _nothing(axes: Sequence[Axis]) -> str:
    if not axes:
        return "No hyperparameter took more than one value."
    return "No trial has a score yet."


def _scored(trials: Sequence[Any], states: tuple[str, ...]) -> list[Any]:
    return [
        trial
        for trial in trials
        if trial.state in states
        and trial.score is not None
        and math.isfinite(trial.score)
    ]


def _score_label(objective: str, direction: str) -> str:
    better = "lower" if direction == "min" else "higher"
    return f"{objective} ({better} is better)"


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > _WIDE


def _score_scale(trials: Sequence[Any], objective: str) -> Axis:
    values = [trial.score for trial in trials]
    kind = "log" if _is_wide(values) else "linear"
    return Axis(objective, kind, (), min(values), max(values))


def _near_and_far(
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


def _without_extremes(trials: Sequence[Any], direction: str) -> list[Any]:
    """The far ones as bad as the worst near one.

    fANOVA explains the variance, of which one score of 1e6 is all.
    """
    near, far = _near_and_far(trials, direction)
    if not far:
        return near
    worst = (max if direction == "min" else min)(t.score for t in near)
    return near + [dataclasses.replace(t, score=worst) for t in far]


def _score_axis(
    ax: Axes, trials: Sequence[Any], direction: str, failed: bool
) -> float:
    """Scales the y axis; returns where failed trials stand, in axes."""
    values = [trial.score for trial in trials] or [0.0, 1.0]
    log = _is_wide(values)
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    margin = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-6)
    low, high = low - margin, high + margin
    # Failed trials stand on the bad side.
    at_top = direction == "min"
    inner = high if at_top else low
    if failed:
        strip = (high - low) * _STRIP / (1 - _STRIP)
        low, high = (low, high + strip) if at_top else (low - strip, high)
    if log:
        ax.set_yscale("log")
        ticks = log_ticks(10**low, 10 ** (inner if at_top else high), 6)
        ax.set_ylim(10**low, 10**high)
        inner = 10**inner
    else:
        ax.set_ylim(low, high)
        ends = (low, inner) if at_top else (inner, high)
        ticks = linear_ticks(*ends, 7)
    if failed:
        ticks = [t for t in ticks if (t <= inner if at_top else t >= inner)]
    for sibling in [ax, *ax.get_shared_y_axes().get_siblings(ax)]:
        if failed:
            edge = ax.get_ylim()[1 if at_top else 0]
            sibling.axhspan(inner, edge, color="0.93", lw=0, zorder=0)
        sibling.grid(axis="y", color="0.92", lw=0.6, zorder=0)
        sibling.set_axisbelow(True)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=_SMALL)
    ax.yaxis.set_minor_locator(NullLocator())
    return 1 - _STRIP / 2 if at_top else _STRIP / 2


def _value_axis(ax: Axes, axis: Axis) -> None:
    ticks, labels = axis.ticks(4)
    if axis.kind == "log":
        ax.set_xscale("log")
        ratio = (axis.high / axis.low) ** 0.05
        ax.set_xlim(axis.low / ratio, axis.high * ratio)
    elif axis.kind == "linear":
        margin = 0.05 * (axis.high - axis.low)
        ax.set_xlim(axis.low - margin, axis.high + margin)
    else:
        ax.set_xlim(-0.5, len(axis.choices) - 0.5)
    if axis.kind == "choice":
        # About 30 characters have room below a panel.
        room = max(4, 30 // len(labels))
        if max(map(len, labels)) > room + 2 or any(
            len(one) + len(other) > 2 * room
            for one, other in itertools.pairwise(labels)
        ):
            labels = [shorten(label, room) for label in labels]
    ax.set_xticks(ticks, labels, fontsize=_SMALL, parse_math=False)
    ax.xaxis.set_minor_locator(NullLocator())
    if axis.is_reversed:
        ax.invert_xaxis()


def _place(axis: Axis, trial: Any) -> float:
    return axis.position(trial.hyperparameters[axis.name])


def _height(axis: Axis, trial: Any) -> float:
    return _fraction(axis, trial.hyperparameters[axis.name])


def _fraction(axis: Axis, value: Any) -> float:
    """The height of a value; choices divide the axis among them."""
    if axis.kind == "choice":
        return (axis.position(value) + 0.5) / len(axis.choices)
    return axis.fraction(value)


def _label_axis(ax: Axes, place: int, axis: Axis) -> None:
    ticks, labels = axis.ticks(6)
    for tick, label in zip(ticks, labels, strict=True):
        value = axis.choices[int(tick)] if axis.kind == "choice" else tick
        height = _fraction(axis, value)
        ax.plot([place], [height], marker=TICKRIGHT, ms=4, color="black")
        ax.annotate(
            label,
            (place, height),
            xytext=(6, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=_SMALL,
            color="black",
            bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.8},
            parse_math=False,
            zorder=5,
        )


def _line_of_the_best(
    ax: Axes, completed: Sequence[Any], trials: Sequence[Any], direction: str
) -> None:
    ordered = sorted(completed, key=lambda trial: trial.number)
    gather = np.minimum if direction == "min" else np.maximum
    best = gather.accumulate([trial.score for trial in ordered])
    numbers = [trial.number for trial in ordered]
    last = max(t.number for t in trials if t.state != "running")
    ax.step(
        [*numbers, last],
        [*best, best[-1]],
        where="post",
        color="black",
        lw=1.6,
        zorder=2,
        label="best so far",
        gid="best so far",
    )


def _points(
    ax: Axes,
    trials: Sequence[Any],
    place: Any,
    color: str,
    marker: str,
    label: str,
) -> None:
    if trials:
        ax.plot(
            [place(trial) for trial in trials],
            [trial.score for trial in trials],
            ls="",
            marker=marker,
            ms=5.5,
            color=color,
            mfc=color if marker == "o" else "white",
            mec=color if marker == "s" else "white",
            mew=1.2 if marker == "s" else 0.5,
            zorder=3,
            label=label,
            gid=label,
        )


def _flags(ax: Axes, trials: Sequence[Any], place: Any, strip: float) -> None:
    """Failed trials, which have no score, in the strip."""
    if trials:
        ax.plot(
            [place(trial) for trial in trials],
            [strip] * len(trials),
            transform=ax.get_xaxis_transform(),
            ls="",
            marker="x",
            ms=6,
            mew=1.6,
            color=_ORANGE,
            zorder=3,
            label="failed",
            gid="failed",
        )


def _far_flags(
    ax: Axes, trials: Sequence[Any], place: Any, strip: float, direction: str
) -> None:
    """Trials whose score is beyond the axis, at its edge."""
    if trials:
        inward = -0.25 * _STRIP if direction == "min" else 0.25 * _STRIP
        ax.plot(
            [place(trial) for trial in trials],
            [strip + inward] * len(trials),
            transform=ax.get_xaxis_transform(),
            ls="",
            marker=_far_marker(direction),
            ms=5,
            color="black",
            zorder=3,
            label=_far_label(trials, direction),
            gid="far",
        )


def _far_marker(direction: str) -> str:
    return "^" if direction == "min" else "v"


def _far_label(trials: Sequence[Any], direction: str) -> str:
    worst = max if direction == "min" else min
    return (
        f"{len(trials)} beyond the axis "
        f"(up to {worst(trial.score for trial in trials):.3g})"
    )


def _key(
    marker: str,
    color: Any,
    label: str,
    size: float = 6,
    line: bool = False,
    width: float = 1.2,
) -> Any:
    return Line2D(
        [],
        [],
        ls="-" if line else "",
        lw=width,
        marker=marker,
        ms=size,
        color=color,
        mec=color if marker in ("x", "*") else "black",
        mew=1.6 if marker == "x" else 0.5,
        label=label,
    )


def _legend(
    figure: Figure, ax: Axes | None = None, handles: Any = None
) -> None:
    if ax is not None:
        handles, _ = ax.get_legend_handles_labels()
    figure.legend(
        handles=handles,
        loc="outside lower center",
        # More have no room side by side.
        ncols=len(handles) if len(handles) < 6 else 3,
        frameon=False,
        fontsize=_TEXT,
        labelcolor="black",
    )
