"""The command line that all benchmarks share.

Keras reads its backend when it is imported. A script therefore calls `parse`
before it imports Keras.
"""

import argparse
import os
from pathlib import Path
from typing import Any

# How the optimizer is compiled; TensorFlow does it in two ways.
MODES = {"tensorflow": ("graph", "jit"), "jax": ("jit",), "torch": ("eager",)}


def make_parser(
    description: str | None,
    *,
    backend: str = "tensorflow",
    only: str | None = None,
    rounds: int | None = None,
    has_bars: bool = True,
    needs_output: bool = False,
) -> argparse.ArgumentParser:
    """A parser with the options that scripts have in common.

    Args:
        description: The script's docstring.
        backend: The backend if neither option nor environment names one.
        only: The only backend that the script runs on. There is no option
            for it then.
        rounds: The usual number of rounds; `None` if there are none.
        has_bars: Whether the script has limits to check.
        needs_output: Whether the script runs only with a folder for results.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if only is None:
        parser.add_argument(
            "--backend",
            choices=tuple(MODES),
            default=os.environ.get("KERAS_BACKEND", backend),
            help="default: the environment variable KERAS_BACKEND, "
            f"or else {backend}",
        )
    else:
        parser.set_defaults(backend=only)
    if rounds is not None:
        parser.add_argument(
            "--rounds",
            type=int,
            default=rounds,
            help="default: %(default)s, and fewer with `--quick`",
        )
    if has_bars:
        parser.add_argument(
            "--check",
            action="store_true",
            help="end with exit status 1 if a bar is missed",
        )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        required=needs_output,
        help="folder for result files"
        + ("" if needs_output else " (default: they are not written)"),
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="see that everything runs, on tiny sizes; judges no bar",
    )
    return parser


def add_mode(parser: argparse.ArgumentParser) -> None:
    """Adds the choice between TensorFlow's two modes."""
    parser.add_argument(
        "--mode",
        choices=MODES["tensorflow"],
        help="of TensorFlow (default: both)",
    )


def modes(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The modes to measure, one after another."""
    if arguments.mode and arguments.backend == "tensorflow":
        return (arguments.mode,)
    return MODES[arguments.backend]


def parse(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Reads the options, and tells Keras its backend.

    Args:
        parser: From `make_parser`.
        **quick: Defaults of options that change with `--quick`.
    """
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**quick)
        arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return arguments
