"""What each benchmark says first, writes at its end, and exits with."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from _harness import bars
from _harness.machine import accelerator, describe_machine


def begin(
    benchmark: str, arguments: argparse.Namespace, **more: Any
) -> dict[str, Any]:
    """Prints the machine, and returns what every result file starts with.

    Args:
        benchmark: Name of the script.
        arguments: The options of its command line.
        **more: What else the file says.
    """
    machine = describe_machine()
    print(machine)
    return {
        "benchmark": benchmark,
        "command": sys.argv[1:],
        "backend": arguments.backend,
        "machine": machine,
        "quick": arguments.quick,
        **more,
    }


def begin_on_device(
    benchmark: str, arguments: argparse.Namespace, **more: Any
) -> dict[str, Any]:
    """As `begin`, with the "device" on which Keras computes."""
    device = accelerator() or "CPU"
    found = begin(benchmark, arguments, device=device, **more)
    print(f"{arguments.backend} on {device}")
    return found


def write_json(results: Mapping[str, Any], path: Path) -> None:
    """Writes results, and makes the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {path}")


def end(
    results: Mapping[str, Any],
    arguments: argparse.Namespace,
    name: str,
    judged: Iterable[Mapping[str, Any]] = (),
    draw: Callable[[Mapping[str, Any], Path], None] | None = None,
) -> None:
    """Writes the results where `--output` says, and exits as `--check` says.

    Args:
        results: What the file holds.
        arguments: The options of the command line.
        name: The names of the files, without their endings.
        judged: The bars, from `bars.judge` or `bars.judge_one`.
        draw: Draws the results into a PNG file.
    """
    if arguments.output:
        write_json(results, arguments.output / f"{name}.json")
        if draw is not None:
            draw(results, arguments.output / f"{name}.png")
    if arguments.check and bars.any_missed(judged):
        sys.exit("A bar is missed.")
