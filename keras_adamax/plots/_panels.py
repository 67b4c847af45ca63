"""The panels that the figures are made of."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from keras_adamax.plots import _marks, _scales
from keras_adamax.plots._sheet import Panel
from keras_adamax.plots._tables import Clock, Table

# Variables that get a line each; more of them get a heat map.
MAX_LINES = len(_marks.STYLES)
_WARM_UP = (
    "In the first dozens of steps many elements are clipped: the bound starts "
    "at clip_epsilon and grows by at most clip_multiplier a step, "
    "which acts as a warm-up."
)


# The scale of rates, for lines as for colours. Rates of some percent are the
# ones to read late in training: on a linear scale from 0 to 1 they would all
# look like 0. Signed, because axes reach a little below 0.
def _signed_root(rate: np.ndarray) -> np.ndarray:
    return np.sign(rate) * np.sqrt(np.abs(rate))


def _signed_square(root: np.ndarray) -> np.ndarray:
    return np.sign(root) * np.square(root)


def rate_axis(ax: Axes) -> None:
    """The scale of rates."""
    ax.set_yscale("function", functions=(_signed_root, _signed_square))
    ax.set_ylim(-0.001, 1.1)
    ax.yaxis.set_major_locator(FixedLocator(_scales.RATE_TICKS))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", color="0.9", lw=0.6, ls="-")


def loss_axis(ax: Axes, values: np.ndarray) -> None:
    """The scale of losses: a log scale if they span much."""
    known = _marks.finite(values)
    if known.size and 0 < 30 * known.min() <= known.max():
        _marks.log_axis(ax, known)
    ax.grid(axis="y", color="0.9", lw=0.6, ls="-")


def empty(what: str) -> Panel:
    """A panel that says that there is nothing to draw."""

    def draw(ax: Axes, clock: Clock) -> None:
        _marks.head(ax, what)
        ax.text(
            0.5,
            0.5,
            f"{what}: not recorded",
            ha="center",
            va="center",
            transform=ax.transAxes,
            color=_marks.GREY,
            fontsize=_marks.TEXT,
        )
        ax.yaxis.set_major_locator(NullLocator())

    return Panel(draw, 0.8)


def losses(loss: Table, val_loss: Table) -> Panel:
    """Training and validation loss; on a log scale if they span much."""

    def draw(ax: Axes, clock: Clock) -> None:
        _marks.head(ax, "Loss")
        tables = [table for table in (loss, val_loss) if table]
        everything = [
            series.values for table in tables for series in table.summaries()
        ]
        loss_axis(ax, np.concatenate(everything))
        handles: list[Artist] = []
        for table in tables:
            name = "validation" if table is val_loss else "training"
            style = _marks.STYLES[table is val_loss]
            style = style._replace(width=1.6, size=3.8)
            for series in table.summaries():
                _marks.line(ax, table.quantity, series, style)
            handles.append(_marks.key(name, style))
        ax.set_ylabel("loss")
        handles += _marks.gaps(ax, loss or val_loss)
        _marks.legend(ax, handles)

    return Panel(draw, 1.7)


def clip_rate(table: Table, spikes: Table) -> Panel:
    """The share of all elements that was clipped, as one line.

    Args:
        table: The clip rates.
        spikes: The rates of the steps that were left out: a mark for each.
    """

    def draw(ax: Axes, clock: Clock) -> None:
        # The note is for those who see the first steps.
        first = table.parts[0]
        early = first.begin == 0 and np.any(first.summary[:1] > 0)
        _marks.head(ax, "Clip rate of all weights", _WARM_UP if early else "")
        for series in table.summaries():
            style = _marks.SUMMARY._replace(width=1.8)
            _marks.line(ax, table.quantity, series, style)
        rate_axis(ax)
        ax.set_ylabel(_scales.CLIP_RATE.label)
        handles = _marks.gaps(ax, table)
        if spikes:
            for series in spikes.summaries():
                _marks.spikes(ax, "", series.run, series.steps, series.values)
            handles.insert(0, _marks.spike_key("spike, left out"))
        _marks.legend(ax, handles)

    return Panel(draw, 1.6)


def changes(table: Table, title: str, label: str, names: bool) -> Panel:
    """Norms on a log scale: the summary, and a line or a range beside it.

    Args:
        table: What was recorded.
        title: Heading of the panel.
        label: Label of its axis.
        names: Whether it gets a legend, and a sentence that names the
            variables that never changed.
    """

    def draw(ax: Axes, clock: Clock) -> None:
        few = len(table.variables) <= MAX_LINES
        note = _marks.note(table, unchanged=True) if names else ""
        _marks.head(ax, title, note)
        shown = [*table.summaries(), *(table.series() if few else [])]
        # Each variable has its own height in the strips; none hides another.
        zeros = _marks.ranked(shown, lambda values: values == 0)
        bad = _marks.ranked(shown, lambda values: ~np.isfinite(values))
        everything = [series.values for series in shown]
        everything.append(table.values.ravel())
        values = np.concatenate(everything)
        if _scales.is_signed(values):
            zeros = bad = {}
            ax.axhline(0, color="0.6", lw=0.8, zorder=1)
        else:
            _marks.log_axis(ax, values, bool(zeros), bool(bad))
        handles: list[Artist] = []
        if any(part.steps.size for part in table.parts):
            handles.append(_marks.key("all weights", _marks.SUMMARY))
        styles = {"": _marks.SUMMARY}
        if few:
            styles |= zip(table.variables, _marks.STYLES, strict=False)
            handles += [
                _marks.key(name, styles[variable])
                for variable, name in zip(
                    table.variables, _marks.short_names(table), strict=True
                )
            ]
        else:
            handles += _ranges(ax, table)
        for series in shown:
            name, values = series.variable, series.values
            _marks.line(ax, table.quantity, series, styles[name])
            if name in zeros:
                height = _marks.STRIP * (1 - zeros[name])
                _marks.flag(
                    ax,
                    table.quantity,
                    series,
                    values == 0,
                    height,
                    styles[name],
                )
            if name in bad:
                height = 1 - _marks.STRIP * bad[name]
                where = ~np.isfinite(values)
                _marks.flag(
                    ax, table.quantity, series, where, height, styles[name]
                )
        ax.set_ylabel(label)
        handles += _marks.gaps(ax, table)
        if names:
            _marks.legend(ax, handles)

    return Panel(draw, 2.1)


def _ranges(ax: Axes, table: Table) -> list[Artist]:
    """Shades where the variables lie, when there are many of them."""
    colors = ("#D6E6F2", "#8FBBDA")
    for part in table.parts:
        good = np.isfinite(part.values) & (part.values > 0)
        values = np.where(good, part.values, np.nan)
        some = good.any(axis=0)
        if not some.any():
            continue
        levels = np.full((4, values.shape[1]), np.nan)
        levels[:, some] = np.nanpercentile(
            values[:, some], (0, 10, 90, 100), axis=0
        )
        for lower, upper, color in zip((0, 1), (3, 2), colors, strict=True):
            ax.fill_between(
                part.edges[1:],
                levels[lower],
                levels[upper],
                color=color,
                lw=0.8,
                zorder=1,
            )
    return [
        Patch(color=colors[1], label="variables, middle 80 %"),
        Patch(color=colors[0], label="variables, all above 0"),
    ]
