"""What the scripts that train have in common on the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from _training.problems import PROBLEMS


def make_parser(
    description: str | None, problems: Sequence[str]
) -> argparse.ArgumentParser:
    """A parser with the problems and the options of output.

    Args:
        description: What the script says of itself.
        problems: Those that it runs if nobody says so.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=list(problems)
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="run nothing, report what is there",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="see that everything runs: few steps, few runs, few methods",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder for JSON, tables and figures",
    )
    return parser
