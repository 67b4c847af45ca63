"""Draws the figures of the site and of README that need no training.

    python docs/make_figures.py

writes `docs/figures/*.svg`, each in colours for a light and for a dark page.
`spoilt` is drawn from `benchmarks/results/training_digits.json`; the others
are diagrams, or a few lines of arithmetic.

The figures of runs have commands of their own:

    python examples/first_steps.py               # first_steps.png, on JAX
    python examples/quickstart.py --output OUT   # OUT/training.png, both
                                                 # scaled to 1100 pixels
    python benchmarks/training.py --output benchmarks/results
    python benchmarks/optimizer_step.py --output benchmarks/results

`tensorboard.png` was taken by hand, in a browser.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Style(NamedTuple):
    """Colours of a page."""

    name: str
    ink: str
    faint: str
    page: str
    box: str
    colors: tuple[str, ...]


LIGHT = Style(
    "light",
    "#222222",
    "#8a8a8a",
    "#ffffff",
    "#eef1fb",
    ("#3f51b5", "#c2185b", "#ef6c00", "#00897b", "#757575"),
)
DARK = Style(
    "dark",
    "#e6e6ee",
    "#9a9aa8",
    "#1e2129",
    "#2f3547",
    ("#9fa8ff", "#ff80ab", "#ffb74d", "#4db6ac", "#bdbdbd"),
)


def new_axes(style: Style, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in the colours of the page."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_facecolor(style.page)
    axes = figure.subplots()
    axes.set_facecolor(style.page)
    axes.tick_params(colors=style.ink)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(style.faint)
    axes.xaxis.label.set_color(style.ink)
    axes.yaxis.label.set_color(style.ink)
    axes.title.set_color(style.ink)
    return figure, axes


def spoilt(style: Style) -> Figure:
    """Test loss over the share of spoilt batches."""
    results = json.loads((RESULTS / "training_digits.json").read_text("utf-8"))
    cases = ["clean"] + [f"{p} % x30" for p in ("0.1", "1", "5", "10", "30")]
    labels = ["none", "0.1 %", "1 %", "5 %", "10 %", "30 %"]
    methods = {
        "Adam": "Adam",
        "AdamaxClipped": "AdamaxClipped()",
        "Adam, global_clipnorm 1": "Adam, global_clipnorm=1",
        "AdamaxClipped, gate": "AdamaxClipped(spike_threshold=0.2)",
    }
    colors = (style.colors[4], style.colors[2], style.colors[3])
    figure, axes = new_axes(style, 6.0, 3.7)
    for method, label, color in zip(
        methods, methods.values(), (*colors, style.colors[0]), strict=True
    ):
        # One learning rate, the best on clean validation data.
        clean = results["cases"]["clean"][method]["validation"]
        rate = int(np.argmin(np.median(np.array(clean, "float64"), axis=1)))
        losses = np.array(
            [results["cases"][case][method]["test"][rate] for case in cases],
            "float64",
        )
        is_ours = method.endswith("gate")
        axes.plot(
            labels,
            np.median(losses, axis=1),
            marker="o",
            linewidth=3.5 if is_ours else 1.8,
            color=color,
            label=label,
            zorder=3 if is_ours else 2,
        )
        axes.fill_between(
            labels,
            losses.min(axis=1),
            losses.max(axis=1),
            color=color,
            alpha=0.12,
            linewidth=0,
        )
    axes.set_yscale("log")
    axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2])
    axes.set_yticklabels(["0.05", "0.1", "0.2", "0.5", "1", "2"])
    axes.minorticks_off()
    axes.grid(axis="y", color=style.faint, alpha=0.25)
    axes.set_xlabel("share of the batches that are spoilt")
    axes.set_ylabel("test loss")
    axes.legend(
        loc="upper left", frameon=False, labelcolor=style.ink, fontsize=9
    )
    return figure


def bound(style: Style) -> Figure:
    """The gradient of one weight, and the bound that its past sets."""
    rng = np.random.default_rng(3)
    steps = np.arange(1, 161)
    gradients = 0.1 * rng.standard_normal(len(steps))
    gradients[[70, 115]] = [1.6, -2.4]
    u, bounds, clipped = 0.0, [], []
    for g in gradients:
        bounds.append(1.2 * u + 1e-4)
        clipped.append(np.clip(g, -bounds[-1], bounds[-1]))
        u = max(0.999 * u, abs(clipped[-1]))
    is_cut = np.abs(gradients) > np.array(bounds)
    figure, axes = new_axes(style, 6.0, 3.4)
    axes.vlines(
        steps,
        1e-5,
        np.abs(gradients),
        color=style.faint,
        linewidth=1,
        label="gradient, |g|",
    )
    axes.plot(
        steps,
        bounds,
        color=style.colors[0],
        linewidth=2.5,
        label="bound: 1.2 u + 0.0001",
    )
    axes.plot(
        steps[is_cut],
        np.abs(gradients)[is_cut],
        "x",
        color=style.colors[1],
        markersize=7,
        label="clipped to the bound",
    )
    axes.set_yscale("log")
    axes.set_ylim(1e-4 / 1.5, 6)
    axes.set_xlabel("step")
    axes.set_ylabel("size")
    axes.legend(
        loc="lower right",
        labelcolor=style.ink,
        facecolor=style.page,
        edgecolor=style.faint,
        framealpha=0.95,
    )
    return figure


def warm_up(style: Style) -> Figure:
    """How many steps a constant gradient is clipped."""
    figure, axes = new_axes(style, 6.0, 3.2)
    steps = np.arange(1, 56)
    bounds = 1e-4 * (1.2**steps - 1) / 0.2
    axes.plot(steps, bounds, color=style.colors[0], linewidth=2.5)
    axes.text(
        30,
        1e-2,
        "bound, while every step is clipped",
        color=style.colors[0],
    )
    for size, color in zip((1, 0.1, 0.01), style.colors[1:], strict=False):
        last = int(np.sum(bounds < size))
        axes.hlines(size, 0, last, color=color, linewidth=2)
        axes.plot([last], [size], "o", color=color)
        axes.text(
            1.5,
            size * 1.3,
            f"|g| = {size}: {last} steps",
            color=style.ink,
        )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylim(8e-5, 12)
    return figure


class Canvas:
    """Boxes and arrows, from the top down, on a page as wide as a phone."""

    def __init__(self, style: Style, height: float, width: float = 5.2):
        self.style = style
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        self.figure.set_facecolor(style.page)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.axis("off")

    def box(
        self,
        x: float,
        y: float,
        text: str,
        *,
        width: float = 2.2,
        height: float = 0.5,
        color: int | None = None,
        bold: bool = False,
    ) -> None:
        """Draws a box whose middle is (x, y)."""
        edge = self.style.faint if color is None else self.style.colors[color]
        self.axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=self.style.box,
                edgecolor=edge,
                linewidth=1.6,
            )
        )
        self.axes.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            color=self.style.ink,
            fontsize=10.5,
            fontweight="bold" if bold else "normal",
            linespacing=1.25,
        )

    def arrow(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        text: str = "",
        *,
        side: float = 0.1,
        both: bool = False,
    ) -> None:
        """Draws an arrow, with a text beside its middle."""
        self.axes.annotate(
            "",
            xy=end,
            xytext=start,
            arrowprops={
                "arrowstyle": "<|-|>" if both else "-|>",
                "color": self.style.faint,
                "linewidth": 1.6,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
        if text:
            self.text(
                (start[0] + end[0]) / 2 + side,
                (start[1] + end[1]) / 2,
                text,
                left=side >= 0,
            )

    def text(self, x: float, y: float, text: str, *, left: bool = True) -> None:
        """Writes a remark beside something."""
        self.axes.text(
            x,
            y,
            text,
            ha="left" if left else "right",
            va="center",
            color=self.style.ink,
            fontsize=9.5,
            style="italic",
            linespacing=1.2,
        )


def diagram_step(style: Style) -> Figure:
    """What happens to the gradients in one step."""
    canvas = Canvas(style, 7.2)
    rows = [
        ("gradients", None, ""),
        ("divide by the loss scale", None, "Keras"),
        ("NaN or infinity?", 1, "skip_nonfinite=True:\nleave out the step"),
        (
            "too many elements\nabove their bound?",
            1,
            "spike_threshold:\nleave out",
        ),
        ("accumulate micro-batches", None, "Keras"),
        ("clipnorm, clipvalue,\nglobal_clipnorm", None, "Keras"),
        ("weight decay", None, "Keras"),
        (
            "clip each element\nby its own past",
            0,
            "clip_multiplier,\nclip_epsilon",
        ),
        ("Adamax update", 0, "learning_rate, betas"),
        ("moving average (EMA),\nconstraints", None, "Keras"),
    ]
    for i, (text, color, remark) in enumerate(rows):
        y = 0.4 + 0.71 * i
        canvas.box(1.7, y, text, width=2.6, color=color, bold=color == 0)
        if remark:
            canvas.text(3.15, y, remark)
        if i:
            canvas.arrow((1.7, y - 0.46), (1.7, y - 0.26))
    return canvas.figure


def diagram_gate(style: Style) -> Figure:
    """States of the spike gate."""
    canvas = Canvas(style, 4.6)
    canvas.box(
        2.6,
        0.5,
        "not armed\nevery step is applied",
        width=2.8,
        height=0.65,
        color=4,
        bold=False,
    )
    canvas.box(2.6, 2.1, "armed", width=2.8, height=0.6, color=0, bold=True)
    canvas.box(
        2.6,
        3.9,
        "leave out the step,\ncount it",
        width=2.8,
        height=0.65,
        color=1,
    )
    canvas.arrow((2.0, 0.84), (2.0, 1.78))
    canvas.text(1.9, 1.3, "a step at or below\nthe threshold", left=False)
    canvas.arrow((2.0, 2.42), (2.0, 3.56))
    canvas.text(1.9, 3.0, "a step above\nthe threshold", left=False)
    canvas.arrow((3.2, 3.56), (3.2, 2.42))
    canvas.text(3.3, 3.0, "the next step")
    canvas.axes.annotate(
        "",
        xy=(4.02, 0.5),
        xytext=(4.02, 2.1),
        arrowprops={
            "arrowstyle": "-|>",
            "color": style.faint,
            "linewidth": 1.6,
            "connectionstyle": "arc3,rad=0.5",
        },
    )
    canvas.text(2.75, 1.3, "max_skipped_spikes\nin a row: apply it")
    return canvas.figure


def diagram_kernels(style: Style) -> Figure:
    """Which code updates the weights."""
    canvas = Canvas(style, 5.0)
    canvas.box(2.6, 0.4, "AdamaxClipped.apply", width=2.6, bold=True, color=0)
    canvas.arrow((2.6, 0.66), (2.6, 1.1))
    canvas.box(
        2.6,
        1.4,
        "the rule, written in keras.ops\n(specification, reference)",
        width=3.4,
        height=0.6,
    )
    canvas.text(0.15, 1.95, "the same arithmetic,\nfaster:")
    columns = (0.95, 2.6, 4.25)
    names = ("CPU, with\nGCC or Clang", "TensorFlow, JAX", "PyTorch")
    codes = (
        "C++: one pass\nover memory",
        "one function,\ncompiled by XLA",
        "GPU: torch.compile\nCPU: pieces in cache",
    )
    for x, name, code, color in zip(
        columns, names, codes, (0, 3, 2), strict=True
    ):
        canvas.arrow((2.6, 1.72), (x, 2.3))
        canvas.box(x, 2.6, name, width=1.55, height=0.6, color=color)
        canvas.arrow((x, 2.92), (x, 3.3))
        canvas.box(x, 3.65, code, width=1.6, height=0.7, color=color)
    canvas.text(
        0.15, 4.4, "No compiler, a GPU or a TPU: the second and third column."
    )
    canvas.text(0.15, 4.7, "KERAS_ADAMAX_KERNEL chooses by hand.")
    return canvas.figure


def diagram_state(style: Style) -> Figure:
    """What is saved, and how it finds its weights again."""
    canvas = Canvas(style, 4.7)
    canvas.box(
        1.35,
        0.95,
        "For each weight\n\nmomentum m\nnorm u\nrole, path, shape",
        width=2.4,
        height=1.5,
        color=0,
    )
    canvas.box(
        3.9,
        0.95,
        "For the optimizer\n\niterations, learning rate\nhyperparameters\n"
        "clip counts, spike gate",
        width=2.4,
        height=1.5,
        color=3,
    )
    canvas.arrow((1.35, 1.72), (2.4, 2.2))
    canvas.arrow((3.9, 1.72), (2.8, 2.2))
    canvas.box(2.6, 2.5, ".keras, .weights.h5, pickle", width=2.8)
    canvas.arrow((2.6, 2.76), (2.6, 3.1))
    canvas.box(
        2.6, 3.45, "do all paths match, one to one?", width=3.2, height=0.5
    )
    canvas.arrow((1.8, 3.72), (1.2, 4.1), "yes", side=-0.15)
    canvas.arrow((3.4, 3.72), (4.0, 4.1), "no", side=0.15)
    canvas.box(1.2, 4.38, "match by path", width=1.9, color=0)
    canvas.box(
        3.95,
        4.38,
        "by order, every shape\nchecked, or an error",
        width=2.3,
        color=1,
    )
    return canvas.figure


def diagram_search(style: Style) -> Figure:
    """Who writes what in a search."""
    canvas = Canvas(style, 4.3)
    for i, x in enumerate((0.95, 2.6, 4.25)):
        canvas.box(x, 0.5, f"worker {i}", width=1.4, color=0, bold=True)
        canvas.arrow((x - 0.1, 0.78), (0.55 + 0.35 * x, 2.28), both=True)
        canvas.arrow((x + 0.1, 0.78), (2.85 + 0.35 * x, 2.28))
    canvas.box(
        1.4,
        2.7,
        "database\n(Optuna study)\ntrials, scores, heartbeats",
        width=2.45,
        height=0.8,
        color=3,
    )
    canvas.box(
        3.85,
        2.7,
        "output folder\nweights, histories,\nbest.keras",
        width=2.1,
        height=0.8,
        color=2,
    )
    canvas.text(0.2, 3.6, "Every worker asks the database for its next trial.")
    canvas.text(0.2, 3.95, "There is no chief process that could die.")
    return canvas.figure


FIGURES: dict[str, Callable[[Style], Figure]] = {
    "spoilt": spoilt,
    "bound": bound,
    "warm_up": warm_up,
    "diagram_step": diagram_step,
    "diagram_gate": diagram_gate,
    "diagram_kernels": diagram_kernels,
    "diagram_state": diagram_state,
    "diagram_search": diagram_search,
}


def save(figure: Figure, path: Path) -> None:
    """Writes an SVG that is the same each time."""
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    with matplotlib.rc_context(
        {"svg.hashsalt": "keras-adamax", "font.family": "DejaVu Sans"}
    ):
        figure.savefig(
            path, metadata=metadata, facecolor=figure.get_facecolor()
        )


def main() -> None:
    """Draws all figures, or those that are named."""
    parser = argparse.ArgumentParser(description="Draw the site's figures.")
    parser.add_argument("names", nargs="*", help="default: all of them")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "figures"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or FIGURES:
        for style in (LIGHT, DARK):
            path = arguments.output / f"{name}-{style.name}.svg"
            save(FIGURES[name](style), path)
            print(path)


if __name__ == "__main__":
    main()
