"""The public figures. matplotlib is imported when one is drawn."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from keras_adamax.plots._records import Source, load
from keras_adamax.plots._rows import GroupBy, Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALL = Selection()
_FORMATS = (".png", ".pdf", ".svg")


def plot_clip_rates(
    records: Source,
    title: str | None = None,
    *,
    variables: str | Sequence[str] | None = None,
    group_by: GroupBy = "auto",
    top: int | None = None,
) -> "Figure":
    """Draws how often gradients were clipped, of each variable over time.

    Above, the rate of all weights as a line; below, a row for each variable
    whose colour is its rate. Both use a square-root scale, because the
    rates that matter late in training are some percent. A rate belongs to
    the steps since the record before. Hatched grey is "no data": nothing
    was counted (an excluded variable), or nothing recorded. Of more than 1000
    records, neighbours are merged into columns: the largest rate is shown.

    More than 40 variables are grouped by block, and the 8 that stand out are
    named below, with the step and the rate where they do.

    A triangle is a spike: a step that the spike gate left out. Above, it
    stands at the fraction of the elements that exceeded their bound; below,
    at the variables of which most did. A step that was left out is no update:
    the triangle stands at the update before it.

    The first dozens of steps are clipped nearly entirely: the bound starts
    at `clip_epsilon` and grows by at most `clip_multiplier` a step.

    Args:
        records: The `records` of a logger, or the path of a file.
        title: String or None. Heading of the figure. Defaults to `None`.
        variables: String, sequence of strings or None. Regular expressions;
            see `save_report`. Defaults to `None`.
        group_by: `"auto"`, `"block"`, `"kind"` or None. Rows of the heat
            map; see `save_report`. Defaults to `"auto"`.
        top: Integer or None. How many variables; see `save_report`. Defaults
            to `None`.

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
    selection = Selection.of(variables, group_by, top)
    return _figure(records, title, "clip_rates", selection)


def plot_gradients(
    records: Source,
    title: str | None = None,
    *,
    variables: str | Sequence[str] | None = None,
    group_by: GroupBy = "auto",
    top: int | None = None,
) -> "Figure":
    """Draws how large the gradients were, and what the clipping took away.

    For an optimizer with `track_gradient_norms=True`. From above: the norm of
    the gradient before the clipping, on a log scale, all variables together
    in bold; the fraction of its square that the clipping took away, as a row
    for each variable; the norm of the updates; and, where there were any, how
    many elements were NaN or infinite. A norm belongs to the steps since the
    record before: it is the root mean square over them, so that one large
    gradient shows.

    Up to six variables have a line each. More of them are shown as a range,
    and the norms as a heat map, by block and with the variables that stand
    out, with the step and the norm where they do, if there are more than 40.

    Args:
        records: The `records` of a logger, or the path of a file.
        title: String or None. Heading of the figure. Defaults to `None`.
        variables: String, sequence of strings or None. Regular expressions;
            see `save_report`. Defaults to `None`.
        group_by: `"auto"`, `"block"`, `"kind"` or None. Rows of the heat
            maps; see `save_report`. Defaults to `"auto"`.
        top: Integer or None. How many variables; see `save_report`. Defaults
            to `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records are malformed.

    Example:
        >>> figure = plot_gradients("run.csv", top=5)
        >>> figure.savefig("gradients.png")
    """
    selection = Selection.of(variables, group_by, top)
    return _figure(records, title, "gradients", selection)


def plot_weight_changes(
    records: Source,
    title: str | None = None,
    *,
    variables: str | Sequence[str] | None = None,
    group_by: GroupBy = "auto",
    top: int | None = None,
) -> "Figure":
    """Draws how far the weights moved, absolutely and relative to their norm.

    Log scales; all weights together in bold. Up to six variables have a line
    each. More of them are shown as a range, and their ratios as a heat map,
    by block and with the variables that stand out if there are more than 40.
    A value of exactly 0, as of a frozen layer, has its own place: a
    strip marked "0" below the scale, white in the heat map; variables that
    never changed are named above the figure.

    Args:
        records: The `records` of a logger, or the path of a file.
        title: String or None. Heading of the figure. Defaults to `None`.
        variables: String, sequence of strings or None. Regular expressions;
            see `save_report`. Defaults to `None`.
        group_by: `"auto"`, `"block"`, `"kind"` or None. Rows of the heat
            map; see `save_report`. Defaults to `"auto"`.
        top: Integer or None. How many variables; see `save_report`. Defaults
            to `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records are malformed.

    Example:
        >>> figure = plot_weight_changes("run.csv")
        >>> figure.savefig("weight-changes.png")
    """
    selection = Selection.of(variables, group_by, top)
    return _figure(records, title, "weight_changes", selection)


def plot_training(records: Source, title: str | None = None) -> "Figure":
    """Draws loss, clip rate and weight change ratio over one time axis.

    Args:
        records: The `records` of a logger, or the path of a file;
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


def plot_comparison(
    runs: Mapping[str, Source],
    title: str | None = None,
    *,
    variables: str | Sequence[str] | None = None,
    group_by: GroupBy = "auto",
    top: int | None = None,
) -> "Figure":
    """Draws several runs over one time axis, to see where they differ.

    Loss, clip rate and weight change ratio of all weights are a line for each
    run. The heat maps of the runs stand below one another and have the same
    colours; the variables that stand out in a run are named below its map.

    Args:
        runs: Names of the runs, and their `records` or the paths of their
            files; two to six of them. Of a file with several calls of `fit`,
            `read_records("run.csv", run=1)` is one.
        title: String or None. Heading of the figure. Defaults to `None`.
        variables: String, sequence of strings or None. Regular expressions;
            see `save_report`. Defaults to `None`.
        group_by: `"auto"`, `"block"`, `"kind"` or None. Rows of the heat
            map; see `save_report`. Defaults to `"auto"`.
        top: Integer or None. How many variables; see `save_report`. Defaults
            to `None`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records are malformed, or there are not two to six
            runs.

    Example:
        >>> figure = plot_comparison({"before": "run.csv", "after": "run.npz"})
        >>> figure.savefig("comparison.png")
    """
    if not isinstance(runs, Mapping) or not 2 <= len(runs) <= 6:
        raise ValueError(
            "`runs` must be a dictionary of two to six names and records. "
            f"Received: {', '.join(map(str, runs)) or 'none'}."
        )
    selection = Selection.of(variables, group_by, top)
    columns = {name: load(source) for name, source in runs.items()}
    with _needs_matplotlib():
        from keras_adamax.plots import _comparison, _layouts, _sheet
    tables = {
        name: _layouts.Tables(one, selection) for name, one in columns.items()
    }
    comparison = _comparison.Comparison.of(tables)
    panels = _comparison.panels(comparison)
    return _sheet.make_figure(panels, comparison.clock, title)


def save_report(
    records: Source,
    path: str | os.PathLike[str],
    title: str | None = None,
    *,
    variables: str | Sequence[str] | None = None,
    group_by: GroupBy = "auto",
    top: int | None = None,
) -> "Figure":
    """Writes one figure with all that was recorded.

    Loss, clip rates, gradients and weight changes over one time axis; what was
    not recorded is left out.

    Args:
        records: The `records` of a logger, or the path of a file.
        path: File to write; `.png`, `.pdf` or `.svg`. An existing one is
            replaced.
        title: String or None. Heading of the figure. Defaults to `None`.
        variables: String, sequence of strings or None. Draw only variables in
            whose path one of these regular expressions is found. Defaults to
            `None`, which draws all.
        group_by: `"auto"`, `"block"`, `"kind"` or None. Rows of the heat
            maps: a row for each block of layers, or for each kind of variable
            (kernel, bias and so on), with the largest value in it; the
            variables that stand out have a map of their own below. `None`
            gives each variable a row. Defaults to `"auto"`, which groups more
            than 40 variables by block.
        top: Integer or None. Draw only so many variables, those that stand
            out most from their usual values and from the others. Defaults to
            `None`, which draws all.

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
    selection = Selection.of(variables, group_by, top)
    figure = _figure(records, title, "report", selection)
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
    kind: Literal[
        "clip_rates", "gradients", "weight_changes", "training", "report"
    ],
    selection: Selection = _ALL,
) -> "Figure":
    columns = load(records)
    with _needs_matplotlib():
        from keras_adamax.plots import _layouts, _sheet
    tables = _layouts.Tables(columns, selection)
    panels = getattr(_layouts, kind)(tables)
    return _sheet.make_figure(panels, tables.clock, title)


@contextlib.contextmanager
def _needs_matplotlib() -> Iterator[None]:
    """Around imports, which stand in functions: reading needs no extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ImportError(
            "Plots need matplotlib, which is not installed. "
            "Run: pip install matplotlib"
        ) from error
