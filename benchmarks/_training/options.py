"""What the scripts that train have in common on the command line."""

import argparse
from collections.abc import Sequence

from _harness import options

from _training.problems import PROBLEMS


def make_parser(
    description: str | None, problems: Sequence[str]
) -> argparse.ArgumentParser:
    """A parser with the problems and the options of output.

    Args:
        description: What the script says of itself.
        problems: Those that it runs if nobody says so.
    """
    parser = options.make_parser(
        description, only="jax", has_bars=False, needs_output=True
    )
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=list(problems)
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="run nothing, report what is there",
    )
    return parser
