"""Figures of what has been found, one for each question."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from _training import report
from _training.report import ProblemResults
from _training.tasks import CLEAN

# What the figures with lines show: more would hide one another.
SHOWN = {
    "AdamaxClipped": ("#0072b2", "-"),
    "AdamaxClipped, paper's beta_2": ("#0072b2", ":"),
    "AdamaxClipped, gate": ("#d55e00", "-"),
    "Adam": ("0.6", "-"),
    "Adam, global_clipnorm 1": ("black", "-"),
    "Adam, global_clipnorm 0.1": ("black", ":"),
    "AdaGC": ("#009e73", "-"),
    "ZClip": ("#cc79a7", "-"),
}
WORST_SHOWN = 10.0


def _new(rows: int, columns: int, width: float, height: float):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot.subplots(
        rows,
        columns,
        figsize=(width, height),
        squeeze=False,
        layout="constrained",
    )


def _save(figure, title: str, path: Path) -> None:
    from matplotlib import pyplot

    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"Wrote {path}")


def draw_ratios(problems: Sequence[ProblemResults], path: Path) -> None:
    """Where does each method win and lose?"""
    from matplotlib.colors import LogNorm

    cases = [(p, case) for p in problems for case in p.cases]
    found = [report.ratios(x, x) for x in (report.best(p, c) for p, c in cases)]
    methods = list({m: None for x in found for m in x})
    table = np.array(
        [[x.get(method, np.nan) for x in found] for method in methods]
    )
    figure, axes = _new(
        1, 1, max(10.0, 2.8 + 0.55 * len(cases)), 1.8 + 0.27 * len(methods)
    )
    axis = axes[0, 0]
    axis.imshow(
        np.minimum(table, WORST_SHOWN),
        norm=LogNorm(1, WORST_SHOWN),
        cmap="cividis",
        aspect="auto",
    )
    for (row, column), ratio in np.ndenumerate(table):
        if np.isnan(ratio):
            continue
        axis.text(
            column,
            row,
            f"{ratio:.2f}" if ratio < WORST_SHOWN else f"{ratio:.0f}",
            ha="center",
            va="center",
            fontsize=6.5,
            color="black" if ratio > WORST_SHOWN**0.5 else "white",
        )
    labels = [f"{p.name}, {case}" for p, case in cases]
    axis.set_xticks(
        range(len(cases)), labels, rotation=40, ha="right", fontsize=7
    )
    axis.set_yticks(range(len(methods)), methods, fontsize=7)
    title = (
        "Where does each method win and lose? Median test loss over that of "
        "the case's best method,\neach at the learning rate that validation "
        "data chooses for the case"
    )
    _save(figure, title, path)


def draw_shares(problem: ProblemResults, path: Path) -> None:
    """How many spoilt batches does a method stand?"""
    from matplotlib.ticker import FuncFormatter

    factors = sorted(
        {
            float(case.rsplit(" x", 1)[1])
            for case in problem.cases
            if " % x" in case
        }
    )
    if not factors or CLEAN not in problem.cases:
        return
    figure, axes = _new(1, len(factors), 5.2 * len(factors), 4.6)
    for axis, factor in zip(axes[0], factors, strict=True):
        ending = f" % x{factor:g}"
        cases = {
            float(case.removesuffix(ending)): report.best(problem, case)
            for case in problem.cases
            if case.endswith(ending)
        } | {0.0: report.best(problem, CLEAN)}
        ticks = sorted(cases)
        for method, (color, style) in SHOWN.items():
            points = [
                (i, cases[share][method])
                for i, share in enumerate(ticks)
                if method in cases[share]
            ]
            if not points:
                continue
            at = [i for i, _ in points]
            axis.plot(
                at,
                [x.test for _, x in points],
                color=color,
                linestyle=style,
                marker="o",
                markersize=3,
                label=method,
            )
            axis.fill_between(
                at,
                [x.low for _, x in points],
                [x.high for _, x in points],
                color=color,
                alpha=0.1,
                linewidth=0,
            )
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.tick_params(which="both", labelsize=7)
        axis.set_xticks(range(len(ticks)), [f"{x:g}" for x in ticks])
        axis.set_xlabel("spoilt batches, %")
        axis.set_title(f"inputs x{factor:g}, labels random", fontsize=10)
        axis.grid(color="0.92")
    axes[0, 0].set_ylabel("test loss")
    axes[0, 0].legend(fontsize=7, frameon=False)
    title = (
        f"How many spoilt batches does a method stand? {problem.name}: "
        "medians and 95 % intervals"
    )
    _save(figure, title, path)


def draw_rates(problem: ProblemResults, path: Path) -> None:
    """How well must the learning rate be chosen?"""
    cases = list(problem.cases)
    columns = min(4, len(cases))
    rows = -(-len(cases) // columns)
    figure, axes = _new(rows, columns, 3.1 * columns, 2.5 * rows + 0.8)
    for axis, case in zip(axes.flat, cases, strict=False):
        for method, (color, style) in SHOWN.items():
            if method not in problem.cases[case]:
                continue
            losses = report.as_losses(problem.cases[case][method]["test"])
            axis.plot(
                problem.plan["learning_rates"],
                np.median(losses, axis=1),
                color=color,
                linestyle=style,
                label=method,
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(case, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(color="0.92")
    for axis in axes.flat[len(cases) :]:
        axis.remove()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=7,
        frameon=False,
    )
    title = (
        f"How well must the learning rate be chosen? {problem.name}: median "
        "test loss by learning rate"
    )
    _save(figure, title, path)


def draw_sensitivity(problems: Sequence[ProblemResults], path: Path) -> None:
    """What does one learning rate for everything cost?"""
    found = report.sensitivity(problems)
    if not found:
        return
    order = sorted(found, key=lambda method: found[method][1])
    figure, axes = _new(1, 1, 8.0, 1.4 + 0.24 * len(order))
    axis = axes[0, 0]
    shown = [min(found[m][1], 100.0) for m in order]
    axis.barh(
        range(len(order)),
        shown,
        color=[SHOWN.get(m, ("0.75",))[0] for m in order],
    )
    for row, method in enumerate(order):
        rate, ratio, where = found[method]
        axis.text(
            shown[row] * 1.03,
            row,
            f"{ratio:.3g} at {rate:g}: {where}",
            va="center",
            fontsize=6.5,
        )
    axis.set_xscale("log")
    axis.set_xlim(1, max(shown) * 12)
    axis.set_yticks(range(len(order)), order, fontsize=7)
    axis.invert_yaxis()
    title = (
        "What does one learning rate for everything cost? Worst ratio of the "
        "median test loss\nto that of the best method of a case"
    )
    _save(figure, title, path)


def draw(problems: Sequence[ProblemResults], folder: Path) -> None:
    """All figures."""
    draw_ratios(problems, folder / "training_where.png")
    draw_sensitivity(problems, folder / "training_sensitivity.png")
    for problem in problems:
        name = problem.name
        draw_shares(problem, folder / f"training_shares_{name}.png")
        draw_rates(problem, folder / f"training_rates_{name}.png")
