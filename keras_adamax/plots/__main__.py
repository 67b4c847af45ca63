"""Figures from the command line: `python -m keras_adamax.plots --help`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from keras_adamax import plots
from keras_adamax.plots._figures import check_output

_KINDS = {
    "report": ("loss", "val_loss", "clip_rate")
    + ("weight_delta", "weight_delta_ratio"),
    "clip-rates": ("clip_rate",),
    "weight-changes": ("weight_delta", "weight_delta_ratio"),
    "training": ("loss", "val_loss", "clip_rate", "weight_delta_ratio"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: Sequence of strings. Defaults to `sys.argv[1:]`.

    Returns:
        0, or 2 with a line on standard error for wrong use.
    """
    parser = argparse.ArgumentParser(
        prog="python -m keras_adamax.plots",
        description="Draws what ClipRateLogger and WeightDeltaLogger recorded.",
    )
    parser.add_argument("records", type=Path, help="CSV file of a logger")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.png"),
        help="file to write: .png, .pdf or .svg (default: report.png)",
    )
    parser.add_argument(
        "--kind",
        choices=_KINDS,
        default="report",
        help="which figure (default: report, which is all of them)",
    )
    parser.add_argument("--title", help="heading (default: the file's name)")
    parser.add_argument(
        "--run", type=int, help="only this call of fit; 0 is the first"
    )
    options = parser.parse_args(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _draw(options)
            failure = None
        except (OSError, ValueError, ImportError) as error:
            failure = error
    for warning in caught:
        _say(parser, "warning", warning.message)
    if failure is not None:
        _say(parser, "error", failure)
        return 2
    return 0


def _draw(options: argparse.Namespace) -> None:
    output = check_output(options.output)
    records = plots.read_records(options.records, run=options.run)
    wanted = _KINDS[options.kind]
    recorded = sorted(set(records["quantity"].tolist()))
    if not set(wanted) & set(recorded):
        raise ValueError(
            f"{options.records} holds nothing to draw: it needs one of "
            f"{', '.join(wanted)}. Recorded: {', '.join(recorded) or 'none'}."
        )
    title = options.records.name if options.title is None else options.title
    if options.kind == "report":
        plots.save_report(records, output, title=title)
        return
    draw = {
        "clip-rates": plots.plot_clip_rates,
        "weight-changes": plots.plot_weight_changes,
        "training": plots.plot_training,
    }[options.kind]
    draw(records, title=title).savefig(output, dpi=150, facecolor="white")


def _say(
    parser: argparse.ArgumentParser, kind: str, what: Warning | Exception | str
) -> None:
    line = " ".join(str(what).split())
    print(f"{parser.prog}: {kind}: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
