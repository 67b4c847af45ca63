"""The public figures. matplotlib is imported when one is drawn."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from keras_adamax.plots._records import Source, read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".pdf", ".svg")


def plot_clip_rates(records: Source, title: str | None = None) -> "Figure":
    """Draws how often gradients were clipped, of each variable over time.

    Above, the rate of all weights as a line; below, a row for each variable
    whose colour is its rate. Both use a square-root scale, because the
    rates that matter late in training are some percent. A rate belongs to
    the steps since the record before. Hatched grey is "no data": nothing
    was counted (an excluded variable), or nothing recorded. More than 1000
    records are merged into columns of their means.

    A triangle is a spike: a step that the spike gate left out. Above, it
    stands at the fraction of the elements that exceeded their bound; below,
    at the variables of which most did. A step that was left out is no update:
    the triangle stands at the update before it.

    The first dozens of steps are clipped nearly entirely: the bound starts
    at `clip_epsilon` and grows by at most `clip_multiplier` a step.

    Args:
        records: The `records` of a logger, or the path of its CSV file.
        title: String or None. Heading of the figure. Defaults to `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records are malformed.

    Example:
        >>> figure = plot_clip_rates(logger.records)
        >>> [ax.get_title("left") for ax in figure.axes]
        ['Clip rate of all weights', 'Clip rate of each variable']
    """
    return _figure(records, title, "clip_rates")


def plot_weight_changes(records: Source, title: str | None = None) -> "Figure":
    """Draws how far the weights moved, absolutely and relative to their norm.

    Log scales; all weights together in bold. Up to six variables have a line
    each. More of them are shown as a range, and the ratio of each as a heat
    map. A value of exactly 0, as of a frozen layer, has its own place: a
    strip marked "0" below the scale, white in the heat map; variables that
    never changed are named above the figure.

    Args:
        records: The `records` of a logger, or the path of its CSV file.
        title: String or None. Heading of the figure. Defaults to `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records are malformed.

    Example:
        >>> figure = plot_weight_changes("run.csv")
        >>> figure.savefig("weight-changes.png")
    """
    return _figure(records, title, "weight_changes")


def plot_training(records: Source, title: str | None = None) -> "Figure":
    """Draws loss, clip rate and weight change ratio over one time axis.

    Args:
        records: The `records` of a logger, or the path of its CSV file;
            from a file that two loggers share it draws what both wrote.
        title: String or None. Heading of the figure. Defaults to `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records are malformed.

    Example:
        >>> figure = plot_training("run.csv", title="digits")
        >>> figure.axes[-1].get_xlabel()
        'step (optimizer updates)'
    """
    return _figure(records, title, "training")


def save_report(
    records: Source,
    path: str | os.PathLike[str],
    title: str | None = None,
) -> "Figure":
    """Writes one figure with all that was recorded.

    Loss, clip rates and weight changes over one time axis; what was not
    recorded is left out.

    Args:
        records: The `records` of a logger, or the path of its CSV file.
        path: File to write; `.png`, `.pdf` or `.svg`. An existing one is
            replaced.
        title: String or None. Heading of the figure. Defaults to `None`.

    Returns:
        The `matplotlib.figure.Figure` that was written.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records are malformed, or the ending of `path` is
            another.
        OSError: If `path` cannot be written.

    Example:
        >>> figure = save_report("run.csv", "report.png")
    """
    path = check_output(path)
    figure = _figure(records, title, "report")
    figure.savefig(path, dpi=150, facecolor="white")
    return figure


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuses an ending that is none of the formats."""
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(
            f"A figure's file must end in {', '.join(_FORMATS)}. "
            f"Received: {path}."
        )
    return path


def _figure(
    records: Source,
    title: str | None,
    kind: Literal["clip_rates", "weight_changes", "training", "report"],
) -> "Figure":
    records = read_records(records)
    # Here, because matplotlib is an extra, which reading does not need.
    try:
        from keras_adamax.plots import _layouts, _sheet
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ImportError(
            "Plots need matplotlib, which is not installed. "
            "Run: pip install matplotlib"
        ) from error
    tables = _layouts.Tables(records)
    panels = getattr(_layouts, kind)(tables)
    return _sheet.make_figure(panels, tables.clock, title)
