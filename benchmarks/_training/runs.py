"""Makes the runs of a problem that are not in its file yet."""

import importlib.metadata
from collections.abc import Collection, Mapping
from pathlib import Path

from _harness.machine import describe_machine

from _training.optimizer import Optimizer
from _training.protocol import Plan, make_runs
from _training.store import Store
from _training.tasks import Problem


def complete(
    path: Path,
    problem: Problem,
    methods: Mapping[str, Optimizer],
    plan: Plan,
    quick: bool,
    cases: Collection[str] = (),
    again: bool = False,
) -> None:
    """Runs case by case, with all methods: a stopped run has whole cases.

    Args:
        path: The JSON file of the results.
        problem: What is trained.
        methods: By the names of tables.
        plan: Of the runs.
        quick: What the file says of itself.
        cases: Those to run; all where there are none.
        again: Whether to run what is there already.
    """
    header = {
        "benchmark": "training",
        "problem": problem.name,
        "steps": problem.steps,
        "target": problem.target,
        "machine": f"{describe_machine()}, optax "
        + importlib.metadata.version("optax"),
        "quick": quick,
    }
    store = Store(path, header, plan, list(problem.cases))
    compiled = {}
    for case, conditions in problem.cases.items():
        if cases and case not in cases:
            continue
        for name, method in methods.items():
            if store.has(case, name) and not again:
                continue
            if name not in compiled:
                compiled[name] = make_runs(problem, method, plan)
            found = compiled[name](conditions)
            store.add(case, name, found)
            print(
                f"{problem.name}, {case}, {name}: {found['seconds']} s",
                flush=True,
            )
