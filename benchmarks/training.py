"""What is the optimizer worth under spiky gradients, against its peers?

Trains small models with every method of `_training/methods.py`, as
`_training/protocol.py` says, on the problems of `_training/problems.py`, with
and without spoilt batches. Each problem's results are in a JSON file of their
own; what is there already is not run again, so that a run can be stopped at
any time and continued with the same command. Tables and figures are made of
these files alone (`--report`). Needs JAX, optax, scikit-learn and matplotlib:
the extra `benchmark`. Rerun with

    python benchmarks/training.py --output benchmarks/results
"""

import argparse
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

from _harness.machine import describe_machine
from _harness.results import write_json
from _training import cost, figures, report, runs
from _training.methods import (
    GATE,
    METHODS,
    QUICK_METHODS,
    QUICK_METHODS_ELSEWHERE,
)
from _training.options import make_parser
from _training.problems import PROBLEMS, QUICK_PROBLEM
from _training.protocol import QUICK, Plan


def parse() -> argparse.Namespace:
    """The options."""
    parser = make_parser(__doc__, list(PROBLEMS))
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS)
    )
    parser.add_argument(
        "--cases", nargs="+", help="default: all that a problem has"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="run the chosen methods though their results are there",
    )
    return parser.parse_args()


def path_of(folder: Path, name: str) -> Path:
    """The file of a problem's results."""
    return folder / f"training_{name}.json"


def methods_for(problem: str, options: argparse.Namespace) -> list[str]:
    """Which methods to run on a problem."""
    if not options.quick:
        return options.methods
    quick = QUICK_METHODS
    if problem != QUICK_PROBLEM:
        quick = QUICK_METHODS_ELSEWHERE
    return [method for method in options.methods if method in quick]


def measure_cost(options: argparse.Namespace) -> None:
    """Times the steps of all methods."""
    path = path_of(options.output, "cost")
    if path.exists():
        return
    methods = METHODS
    if options.quick:
        methods = {name: METHODS[name] for name in (cost.BASELINE, GATE)}
    found = cost.measure(methods, 2 if options.quick else 15)
    header = {"machine": describe_machine(), "quick": options.quick}
    write_json({"header": header, "methods": found}, path)


def main() -> None:
    """Trains, and reports."""
    options = parse()
    print(describe_machine())
    if not options.report:
        for name in options.problems:
            runs.complete(
                path_of(options.output, name),
                PROBLEMS[name](),
                {m: METHODS[m] for m in methods_for(name, options)},
                QUICK if options.quick else Plan(),
                options.quick,
                options.cases or (),
                options.again,
            )
        measure_cost(options)
    files = [path_of(options.output, name) for name in options.problems]
    problems = [report.load(file) for file in files if file.exists()]
    path = options.output / "training.md"
    path.write_text(report.write(problems, GATE), "utf-8")
    print(f"Wrote {path}")
    figures.draw(problems, options.output)


if __name__ == "__main__":
    main()
