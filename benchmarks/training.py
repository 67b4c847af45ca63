"""What is the optimizer worth under spiky gradients, against its peers?

Trains small models with every method of `_training/methods.py`, as
`_training/protocol.py` says, on the problems of `_training/problems.py`, with
and without spoilt batches. Each problem's results are in a JSON file of their
own; what is there already is not run again, so that a run can be stopped at
any time and continued with the same command. Tables and figures are made of
these files alone (`--report`). Needs JAX, optax, scikit-learn and matplotlib:
the extras `jax` and `benchmark`. Rerun with

    python benchmarks/training.py --output benchmarks/results
"""

import argparse
import importlib.metadata
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

from _machine import describe_machine  # noqa: E402
from _training import report  # noqa: E402
from _training.methods import METHODS, QUICK_METHODS  # noqa: E402
from _training.problems import PROBLEMS, QUICK_PROBLEM  # noqa: E402
from _training.protocol import QUICK, Plan, make_runs  # noqa: E402
from _training.store import Store  # noqa: E402
from _training.tasks import Problem  # noqa: E402


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS)
    )
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
        help="folder for JSON and figures",
    )
    return parser.parse_args()


def path_of(folder: Path, name: str) -> Path:
    """The file of a problem's results."""
    return folder / f"training_{name}.json"


def train(
    problem: Problem, methods: list[str], options: argparse.Namespace
) -> None:
    """Makes the runs of a problem that are not there yet.

    Case by case, with all methods, so that a stopped run has whole cases.
    """
    plan = QUICK if options.quick else Plan()
    header = {
        "benchmark": "training",
        "problem": problem.name,
        "steps": problem.steps,
        "target": problem.target,
        "machine": f"{describe_machine()}, optax "
        + importlib.metadata.version("optax"),
        "quick": options.quick,
    }
    store = Store(path_of(options.output, problem.name), header, plan)
    compiled = {}
    for case, conditions in problem.cases.items():
        if options.cases and case not in options.cases:
            continue
        for method in methods:
            if store.has(case, method) and not options.again:
                continue
            if method not in compiled:
                compiled[method] = make_runs(problem, METHODS[method], plan)
            found = compiled[method](conditions)
            store.add(case, method, found)
            print(
                f"{problem.name}, {case}, {method}: {found['seconds']} s",
                flush=True,
            )


def main() -> None:
    """Trains, and reports."""
    options = parse()
    print(describe_machine())
    for name in options.problems:
        if options.report:
            continue
        methods = options.methods
        if options.quick and name != QUICK_PROBLEM:
            methods = [m for m in methods if m in QUICK_METHODS]
        train(PROBLEMS[name](), methods, options)
    files = [path_of(options.output, name) for name in options.problems]
    report.write([file for file in files if file.exists()], options.output)


if __name__ == "__main__":
    main()
