"""Figures of a search. Importing this module needs matplotlib.

Each function takes the trials of a search, as `OptunaOracle.logical_trials`
gives them, and returns a `matplotlib.figure.Figure`. None of them touches
matplotlib's global state.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "Figures need matplotlib, which is not installed. "
        "Run: pip install matplotlib"
    ) from error

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_adamax.plots._marks import GREY, SMALL, TEXT, WIDEST
from keras_adamax_tuning.results import figure_parts as parts
from keras_adamax_tuning.results.axes import axes_of, shorten
from keras_adamax_tuning.results.importance import FEWEST_TRIALS, importances
from keras_adamax_tuning.study.trials import best_of

_EVALUATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "PED-ANOVA": (
        "PED-ANOVA: for being among the best tenth",
        {"color": parts.BLUE},
    ),
    "fANOVA": (
        "fANOVA: for the score (only what every trial has)",
        {"color": "#F0C35E", "hatch": "////"},
    ),
}
_NOTHING_VARIED = "No hyperparameter took more than one value."


def plot_scores(
    trials: Sequence[Any], objective: str = "score", direction: str = "min"
) -> Figure:
    """Draws the score of each trial, and the best so far as a line.

    Pruned trials stand at their last score; failed ones, which have none,
    in a strip of their own.

    Args:
        trials: Sequence of `Trial`.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> figure = plot_scores(oracle.logical_trials(), "val_loss")
        >>> figure.axes[0].get_xlabel()
        'trial'
    """
    title = f"{objective} of each trial"
    known = parts.scored(trials, "completed", "pruned")
    failed = [trial for trial in trials if trial.state == "failed"]
    if not known and not failed:
        return parts.say_instead(title, "No trial has ended yet.")
    figure = parts.new_figure(8, 4.2, title)
    ax = figure.subplots()
    parts.prepare(ax)
    near, far = parts.near_and_far(known, direction)
    strip = parts.set_score_axis(ax, near, direction, bool(failed or far))
    completed = parts.scored(near, "completed")
    numbers = [trial.number for trial in (*known, *failed)]
    if completed:
        gather = np.minimum if direction == "min" else np.maximum
        ordered = sorted(
            parts.scored(known, "completed"), key=lambda trial: trial.number
        )
        best_so_far = gather.accumulate([trial.score for trial in ordered])
        ax.step(
            [*(trial.number for trial in ordered), max(numbers)],
            [*best_so_far, best_so_far[-1]],
            where="post",
            color="black",
            lw=1.6,
            zorder=2,
            label="best so far",
            gid="best so far",
        )
    for state, look in (
        ("completed", parts.COMPLETED),
        ("pruned", parts.PRUNED),
    ):
        here = parts.scored(near, state)
        places, heights = [t.number for t in here], [t.score for t in here]
        parts.draw_points(ax, places, heights, look, state, state)
    parts.draw_in_strip(
        ax,
        {
            "failed": [(trial.number, trial) for trial in failed],
            "far": [(trial.number, trial) for trial in far],
        },
        strip,
        direction,
    )
    best = best_of(trials, direction)
    if best is not None:
        label = f"best: {best.score:.5g} (trial {best.number})"
        parts.draw_points(ax, [best.number], [best.score], parts.BEST, label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    margin = 0.02 * (max(numbers) - min(numbers)) + 0.5
    ax.set_xlim(min(numbers) - margin, max(numbers) + margin)
    ax.set_xlabel("trial", fontsize=TEXT, color="black")
    parts.label_score_axis(ax, objective, direction)
    parts.draw_legend(figure, ax.get_legend_handles_labels()[0])
    return figure


def plot_hyperparameters(
    trials: Sequence[Any],
    hyperparameters: Iterable[Any] = (),
    objective: str = "score",
    direction: str = "min",
) -> Figure:
    """Draws the score against each hyperparameter that was searched.

    The scale is the one that was searched on: a logarithm where the space
    has one. Dark points are late trials, so that one sees where the sampler
    went.

    Args:
        trials: Sequence of `Trial`.
        hyperparameters: KerasTuner's hyperparameters,
            `oracle.hyperparameters.space`, for ranges and scales.
            Defaults to `()`: as the values suggest.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> figure = plot_hyperparameters(
        ...     oracle.logical_trials(), oracle.hyperparameters.space
        ... )
    """
    title = f"{objective} against each hyperparameter"
    axes = axes_of(trials, hyperparameters)
    known = parts.scored(trials, "completed", "pruned")
    failed = [trial for trial in trials if trial.state == "failed"]
    if not axes:
        return parts.say_instead(title, _NOTHING_VARIED)
    if not (known or failed):
        return parts.say_instead(title, "No trial has a score yet.")
    columns = min(len(axes), 3 if len(axes) <= 9 else 4)
    rows = -(-len(axes) // columns)
    figure = parts.new_figure(max(2.7 * columns, 5.4), 2.3 * rows + 1.0, title)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for ax in grid.flat:
        parts.prepare(ax)
    best = best_of(trials, direction)
    last = max(trial.number for trial in (*known, *failed)) or 1
    near, far = parts.near_and_far(known, direction)
    # One call, because the panels share their y axis.
    strip = parts.set_score_axis(
        grid[0, 0], near, direction, bool(failed or far)
    )
    for ax, axis in zip(grid.flat, axes, strict=False):
        for state, marker in (("completed", "o"), ("pruned", "s")):
            here = axis.pairs(parts.scored(near, state))
            ax.scatter(
                [place for place, _ in here],
                [trial.score for _, trial in here],
                c=[parts.RANKS(trial.number / last) for _, trial in here],
                marker=marker,
                s=20,
                linewidths=0.5,
                edgecolors="black",
                alpha=0.75,
                zorder=3,
            )
        outside = {"failed": axis.pairs(failed), "far": axis.pairs(far)}
        parts.draw_in_strip(ax, outside, strip, direction)
        for place, trial in axis.pairs([best] if best is not None else []):
            parts.draw_points(ax, [place], [trial.score], parts.BEST, "best")
        parts.set_value_axis(ax, axis)
        used = len(axis.pairs([*known, *failed]))
        name = shorten(axis.label, WIDEST)
        if used < len(known) + len(failed):
            name += f"\n(only in {used} trials)"
        ax.set_xlabel(name, fontsize=TEXT, color="black")
    for ax in grid[:, 0]:
        parts.label_score_axis(ax, objective, direction)
    for ax in grid.flat[len(axes) :]:
        ax.remove()
    point = {"marker": "o", "mec": "black", "mew": 0.5}
    handles = [
        parts.key("first trial", **point, color=parts.RANKS(0.0)),
        parts.key("last trial", **point, color=parts.RANKS(1.0)),
    ]
    if parts.scored(known, "pruned"):
        look = {**point, "marker": "s", "color": parts.RANKS(0.5)}
        handles.append(parts.key("pruned", **look))
    if failed:
        handles.append(parts.key("failed", **parts.FAILED))
    if far:
        label = parts.far_label(far, direction)
        handles.append(parts.key(label, **parts.far_look(direction)))
    if best is not None:
        handles.append(parts.key(f"best (trial {best.number})", **parts.BEST))
    parts.draw_legend(figure, handles)
    return figure


def plot_parallel_coordinates(
    trials: Sequence[Any],
    hyperparameters: Iterable[Any] = (),
    objective: str = "score",
    direction: str = "min",
) -> Figure:
    """Draws each completed trial as a line through all hyperparameters.

    The better a trial, the darker its line; the best one is in red. A
    conditional hyperparameter that a trial did not use is passed below its
    axis.

    Args:
        trials: Sequence of `Trial`.
        hyperparameters: As for `plot_hyperparameters`. Defaults to `()`.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> figure = plot_parallel_coordinates(oracle.logical_trials())
    """
    title = "Hyperparameters and score of each completed trial"
    axes = axes_of(trials, hyperparameters)
    completed = parts.scored(trials, "completed")
    if not axes:
        return parts.say_instead(title, _NOTHING_VARIED)
    if not completed:
        return parts.say_instead(title, "No trial has a score yet.")
    near, far = parts.near_and_far(completed, direction)
    scale = parts.score_axis(near, objective)
    figure = parts.new_figure(max(6.0, 1.05 * len(axes) + 2.2), 5.2, title)
    ax = figure.subplots()
    ax.set_facecolor("white")
    ax.spines[:].set_visible(False)
    sign = 1 if direction == "min" else -1
    ordered = sorted(completed, key=lambda trial: -sign * trial.score)
    has_gaps = False
    for rank, trial in enumerate(ordered):
        heights = [axis.height_of(trial) for axis in axes]
        has_gaps |= None in heights
        # A far one ends just beyond the axis.
        end = 1.04 if direction == "min" else -0.04
        if trial not in far:
            end = scale.fraction(trial.score)
        look: dict[str, Any] = {
            "color": parts.RANKS(rank / max(1, len(ordered) - 1)),
            "lw": 1.0,
            "alpha": 0.8,
            "zorder": 2,
        }
        if trial is ordered[-1]:
            look = {"color": parts.RED, "lw": 2.4, "zorder": 3}
        ax.plot(
            range(len(axes) + 1),
            [*(-0.15 if one is None else one for one in heights), end],
            solid_joinstyle="round",
            gid=f"trial:{trial.number}",
            **look,
        )
    for place, axis in enumerate((*axes, scale)):
        parts.label_parallel_axis(ax, place, axis)
    if has_gaps:
        ax.axhspan(-0.19, -0.11, color="0.93", lw=0, zorder=0)
        ax.annotate(
            "not used",
            (0, -0.15),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=SMALL,
            color=GREY,
        )
    ax.set_xlim(-0.25, len(axes) + 0.75)
    ax.set_ylim(-0.2 if has_gaps else -0.06, 1.06)
    ax.set_yticks([])
    ax.xaxis.tick_top()
    names = [*(axis.label for axis in axes), objective]
    parts.draw_names(ax, range(len(names)), names)
    handles = [
        parts.key("worst", ls="-", lw=1.2, color=parts.RANKS(0.0)),
        parts.key("good", ls="-", lw=1.2, color=parts.RANKS(1.0)),
        parts.key(
            f"best (trial {ordered[-1].number})",
            ls="-",
            lw=2.4,
            color=parts.RED,
        ),
    ]
    if far:
        handles.append(parts.key(parts.far_label(far, direction)))
    parts.draw_legend(figure, handles)
    return figure


def plot_importance(
    trials: Sequence[Any],
    hyperparameters: Iterable[Any] = (),
    objective: str = "score",
    direction: str = "min",
) -> Figure:
    """Draws how much each hyperparameter mattered, by Optuna's evaluators.

    PED-ANOVA, and fANOVA where scikit-learn is installed. With fewer than
    10 completed trials the figure says that they are too few.

    Args:
        trials: Sequence of `Trial`.
        hyperparameters: As for `plot_hyperparameters`. Defaults to `()`.
        objective: String. Name of the score. Defaults to `"score"`.
        direction: `"min"` or `"max"`. Defaults to `"min"`.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> figure = plot_importance(oracle.logical_trials())
    """
    title = f"Importance for {objective}"
    axes = axes_of(trials, hyperparameters)
    completed = parts.scored(trials, "completed")
    found = importances(
        parts.without_extremes(completed, direction), axes, direction
    )
    if not found:
        said = (
            f"Importance needs at least {FEWEST_TRIALS} completed trials; "
            f"there are {len(completed)}."
        )
        if len(completed) >= FEWEST_TRIALS:
            said = "All trials have the same score: nothing mattered."
        return parts.say_instead(title, said if axes else _NOTHING_VARIED)
    main = next(iter(found.values()))
    names = sorted(main, key=lambda name: main[name])
    labels = {axis.name: shorten(axis.label, WIDEST) for axis in axes}
    figure = parts.new_figure(8, 0.32 * len(names) + 2.2, title)
    ax = figure.subplots()
    parts.prepare(ax)
    height = 0.8 / len(found)
    for number, (evaluator, shares) in enumerate(found.items()):
        label, look = _EVALUATORS[evaluator]
        here = [place for place, name in enumerate(names) if name in shares]
        shift = height * (len(found) / 2 - 0.5 - number)
        ax.barh(
            [place + shift for place in here],
            [shares[names[place]] for place in here],
            height=height * 0.92,
            label=label,
            edgecolor="black",
            linewidth=0.5,
            zorder=2,
            **look,
        )
    ax.grid(axis="x", color="0.9", lw=0.6, zorder=0)
    ax.set_yticks(
        range(len(names)),
        [labels[name] for name in names],
        fontsize=TEXT,
        parse_math=False,
    )
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_xlim(left=0)
    words = (
        f"share of importance for {objective} (sum 1), "
        f"{len(completed)} completed trials"
    )
    if len(found) > 1:
        tenth = len(completed) // 10
        words += (
            "\nThe two may differ: fANOVA says what explains all scores, bad "
            "ones included,\nPED-ANOVA what the best tenth have in common "
            f"({tenth} trial{'s' * (tenth > 1)} here).\n"
            "With fewer than 100 completed trials, take both as a hint."
        )
    ax.set_xlabel(words, fontsize=TEXT)
    parts.draw_legend(figure, ax.get_legend_handles_labels()[0])
    return figure
