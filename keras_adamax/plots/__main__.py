"""Figures from the command line: `python -m keras_adamax.plots --help`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_adamax import plots
from keras_adamax.plots import _records
from keras_adamax.plots._figures import check_output
from keras_adamax.plots._rows import Selection
from keras_adamax.record_columns import Columns

_KINDS = {
    "report": ("loss", "val_loss", "clip_rate", "gradient_norm")
    + ("weight_delta", "weight_delta_ratio"),
    "clip-rates": ("clip_rate",),
    "gradients": ("gradient_norm", "clipped_share", "update_norm"),
    "weight-changes": ("weight_delta", "weight_delta_ratio"),
    "training": ("loss", "val_loss", "clip_rate", "weight_delta_ratio"),
}
_GROUPS = {"auto": "auto", "block": "block", "kind": "kind", "none": None}
_EXAMPLES = """\
examples:
  a report                  %(prog)s run.csv
  of the attention alone    %(prog)s run.csv --variables attention --top 20
  a row for kernels, one for biases, ...
                            %(prog)s run.csv --group-by kind
  two runs in one figure    %(prog)s before.csv after.csv -o both.png
  two calls of fit          %(prog)s run.csv run.csv --run 0 --run 1
  a compact file, and back  %(prog)s run.csv -o run.npz
                            %(prog)s run.npz -o run.csv
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: Sequence of strings. Defaults to `sys.argv[1:]`.

    Returns:
        0, or 2 with a line on standard error for wrong use.
    """
    parser = _make_parser()
    options = parser.parse_args(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _run(options)
            failure = None
        except (OSError, ValueError, ImportError) as error:
            failure = error
    for warning in caught:
        _say(parser, "warning", warning.message)
    if failure is not None:
        _say(parser, "error", failure)
        return 2
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keras_adamax.plots",
        description="Draws what ClipRateLogger and WeightDeltaLogger recorded.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "records",
        type=Path,
        nargs="+",
        help="CSV file of a logger, or .npz file; several are compared",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.png"),
        help="file to write: .png, .pdf or .svg (default: report.png); "
        ".npz or .csv writes the records in that format",
    )
    parser.add_argument(
        "--kind",
        choices=_KINDS,
        default="report",
        help="which figure (default: report, which is all of them)",
    )
    parser.add_argument("--title", help="heading (default: the file's name)")
    parser.add_argument(
        "--run",
        type=int,
        action="append",
        default=[],
        help="only this call of fit; 0 is the first; once, or for each file",
    )
    parser.add_argument(
        "--variables",
        metavar="PATTERN",
        action="append",
        help="only variables in whose path this regular expression is found; "
        "may be given several times",
    )
    parser.add_argument(
        "--group-by",
        choices=_GROUPS,
        default="auto",
        help="rows of the heat maps (default: auto, which is blocks if there "
        "are more than 40 variables)",
    )
    parser.add_argument(
        "--top", type=int, metavar="N", help="only N variables that stand out"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    paths, runs = options.records, options.run or [None]
    if len(runs) == 1:
        runs = runs * len(paths)
    if len(runs) != len(paths):
        raise ValueError(
            "`--run` must be given once, or for each file. "
            f"Received: {len(runs)} runs and {len(paths)} files."
        )
    is_figure = options.output.suffix.lower() not in _records.RECORD_FORMATS
    if is_figure:
        check_output(options.output)
    elif len(paths) > 1:
        raise ValueError(
            f"{options.output} can hold the records of one file. "
            f"Received: {len(paths)} files."
        )
    columns = [
        _records.load(path, run) for path, run in zip(paths, runs, strict=True)
    ]
    if not is_figure:
        selected = Selection.of(options.variables).filter(columns[0])
        _records.write(selected, options.output)
    elif len(paths) > 1:
        _compare(options, columns, runs)
    else:
        _draw(options, columns[0])


def _rows(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "variables": options.variables,
        "group_by": _GROUPS[options.group_by],
        "top": options.top,
    }


def _draw(options: argparse.Namespace, records: Columns) -> None:
    (path,) = options.records
    wanted = _KINDS[options.kind]
    recorded = {records.quantities[n] for n in np.unique(records.quantity)}
    if options.kind == "report":
        # Also what plots do not know, if it is of variables.
        has_name = np.array([*map(bool, records.variables), False])
        named = records.quantity[has_name[records.variable]]
        wanted += tuple(records.quantities[n] for n in np.unique(named))
    if not recorded.intersection(wanted):
        raise ValueError(
            f"{path} holds nothing to draw: it needs one of "
            f"{', '.join(wanted)}. "
            f"Recorded: {', '.join(sorted(recorded)) or 'none'}."
        )
    title = path.name if options.title is None else options.title
    if options.kind == "report":
        plots.save_report(
            records, options.output, title=title, **_rows(options)
        )
        return
    if options.kind == "training":
        figure = plots.plot_training(records, title=title)
    else:
        plot = {
            "clip-rates": plots.plot_clip_rates,
            "gradients": plots.plot_gradients,
            "weight-changes": plots.plot_weight_changes,
        }[options.kind]
        figure = plot(records, title=title, **_rows(options))
    figure.savefig(options.output, dpi=150, facecolor="white")


def _compare(
    options: argparse.Namespace,
    columns: Sequence[Columns],
    runs: Sequence[int | None],
) -> None:
    if options.kind != "report":
        raise ValueError(
            f"`--kind {options.kind}` draws one file. "
            f"Received: {len(columns)} files."
        )
    figure = plots.plot_comparison(
        dict(zip(_names(options.records, runs), columns, strict=True)),
        title=options.title,
        **_rows(options),
    )
    figure.savefig(options.output, dpi=150, facecolor="white")


def _names(paths: Sequence[Path], runs: Sequence[int | None]) -> list[str]:
    """Short names that differ."""
    suffixes = ["" if run is None else f", run {run}" for run in runs]
    stems = [path.stem for path in paths]
    ways = [
        stems,
        [stem + suffix for stem, suffix in zip(stems, suffixes, strict=True)],
        [f"{path}{end}" for path, end in zip(paths, suffixes, strict=True)],
    ]
    for names in ways:
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(ways[-1], 1)]


def _say(
    parser: argparse.ArgumentParser, kind: str, what: Warning | Exception | str
) -> None:
    line = " ".join(str(what).split())
    print(f"{parser.prog}: {kind}: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
