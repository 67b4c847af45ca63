"""A figure of ratios to Keras's Adamax."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COLORS = ("#0072b2", "#d55e00", "#009e73")


@dataclass(frozen=True)
class Panel:
    """One comparison.

    Attributes:
        title: Of the panel.
        rows: What stands at the left, by arm, from top to bottom.
        series: At most three; by label and arm, the spread of the ratios
            ("median", "lower_quartile", "upper_quartile").
        notes: What stands at the right, by arm.
        limits: The bars, by arm.
    """

    title: str
    rows: Mapping[str, str]
    series: dict[str, Mapping[str, Mapping[str, float]]]
    notes: dict[str, str]
    limits: Mapping[str, float]


def draw_ratios(
    panels: Sequence[Panel], title: str, notes: str, path: Path
) -> None:
    """Draws medians and quartiles of ratios, a panel for each comparison.

    Args:
        panels: From left to right, in two columns.
        title: Of the figure.
        notes: What the notes at the right say.
        path: The PNG file.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    rows = max(len(panel.rows) for panel in panels)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(7.5 * columns, (0.34 * rows + 0.9) * lines + 1.2),
        squeeze=False,
        layout="constrained",
    )
    every_label = sorted({x for panel in panels for x in panel.series})
    labels: dict[str, Any] = {}
    for panel, axis in zip(panels, axes.flat, strict=False):
        _draw_panel(panel, axis, every_label, labels)
        _set_ticks(axis)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.suptitle(title, fontsize=11)
    figure.legend(
        labels.values(),
        labels.keys(),
        title="time, as a ratio to Keras's Adamax: median of rounds, with "
        f"quartiles\nat the right: {notes}",
        title_fontsize=9,
        loc="outside lower center",
        ncols=len(labels),
        fontsize=9,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"Wrote {path}")


def _set_ticks(axis: Any) -> None:
    """Ratios on a logarithmic scale, where they are far from one another."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.margins(x=0.08)
    low, high = axis.get_xlim()
    if low <= 0 or high / low < 3:
        axis.xaxis.set_major_locator(MaxNLocator(8))
        return
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    steps = (1, 2, 5) if high / low > 30 else (1, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**power for power in range(-5, 6) for step in steps]
    axis.set_xticks([x for x in ticks if low <= x <= high])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.minorticks_off()


def _draw_panel(
    panel: Panel,
    axis: Any,
    every_label: Sequence[str],
    labels: dict[str, Any],
) -> None:
    row_of = {arm: row for row, arm in enumerate(panel.rows)}
    count = len(panel.series)
    colors = dict(zip(every_label, COLORS, strict=False))
    for number, (label, points) in enumerate(panel.series.items()):
        shift = 0.22 * (number - (count - 1) / 2)
        medians, low, high = (
            np.asarray([point[name] for point in points.values()])
            for name in ("median", "lower_quartile", "upper_quartile")
        )
        labels[label] = axis.errorbar(
            medians,
            [row_of[arm] + shift for arm in points],
            xerr=[medians - low, high - medians],
            fmt="o",
            markersize=4,
            capsize=2,
            color=colors[label],
        )
    for arm, limit in panel.limits.items():
        if arm in row_of:
            row = row_of[arm]
            (labels["bar"],) = axis.plot(
                [limit, limit], [row - 0.4, row + 0.4], color="black", lw=2
            )
    for arm, note in panel.notes.items():
        axis.annotate(
            note,
            (1.01, row_of[arm]),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axis.axvline(1.0, color="0.6", lw=1, zorder=0)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    axis.set_yticks(range(len(row_of)), panel.rows.values(), fontsize=8)
    axis.set_ylim(len(row_of) - 0.5, -0.5)
    axis.set_title(panel.title, fontsize=10, loc="left")
