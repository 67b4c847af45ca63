"""What all of the speed benchmarks do with their results."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")
COLORS = ("#0072b2", "#d55e00", "#009e73")


def make_parser(
    description: str | None, rounds: int
) -> argparse.ArgumentParser:
    """A parser with the backend, the rounds, and the options of output.

    Args:
        description: What the script says of itself.
        rounds: How many it makes if nobody says so.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=os.environ.get("KERAS_BACKEND", "tensorflow"),
        help="default: the environment variable KERAS_BACKEND",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"default: {rounds}, and 2 with `--quick`",
    )
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of output."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for JSON and figure (default: they are not written)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="end with exit status 1 if a bar is missed",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="see that everything runs, on tiny sizes; judges no bar",
    )


def write_json(results: Mapping[str, Any], path: Path) -> None:
    """Writes results, and makes the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {path}")


def draw_ratios(
    panels: Sequence[Mapping[str, Any]], title: str, notes: str, path: Path
) -> None:
    """Draws medians and quartiles of ratios, a panel for each comparison.

    Args:
        panels: Of each the "title", "rows" (what stands at the left of each
            row), "series" (at most three; label to row number to {"median",
            "lower_quartile", "upper_quartile"}), "notes" (row number to text
            at the right) and "limits" (row number to a bar).
        title: Of the figure.
        notes: What the notes at the right say.
        path: The PNG file.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    rows = max(len(panel["rows"]) for panel in panels)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(7.5 * columns, (0.34 * rows + 0.9) * lines + 1.2),
        squeeze=False,
        layout="constrained",
    )
    every_label = sorted({x for panel in panels for x in panel["series"]})
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
    panel: Mapping[str, Any],
    axis: Any,
    every_label: Sequence[str],
    labels: dict[str, Any],
) -> None:
    names = list(panel["rows"])
    count = len(panel["series"])
    colors = dict(zip(every_label, COLORS, strict=False))
    for number, (label, points) in enumerate(panel["series"].items()):
        shift = 0.22 * (number - (count - 1) / 2)
        at = [row + shift for row in points]
        medians = np.asarray([p["median"] for p in points.values()])
        low = np.asarray([p["lower_quartile"] for p in points.values()])
        high = np.asarray([p["upper_quartile"] for p in points.values()])
        labels[label] = axis.errorbar(
            medians,
            at,
            xerr=[medians - low, high - medians],
            fmt="o",
            markersize=4,
            capsize=2,
            color=colors[label],
        )
    for row, limit in panel["limits"].items():
        (labels["bar"],) = axis.plot(
            [limit, limit], [row - 0.4, row + 0.4], color="black", lw=2
        )
    for row, note in panel["notes"].items():
        axis.annotate(
            note,
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axis.axvline(1.0, color="0.6", lw=1, zorder=0)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_title(panel["title"], fontsize=10, loc="left")
