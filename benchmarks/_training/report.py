"""Tables of what has been found: made of the JSON files alone."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from _training.tasks import CLEAN

Results = dict[str, dict[str, dict[str, Any]]]

RESAMPLES = 2000
# Differences below this say nothing: seeds differ by more.
WITHIN = 1.1


class Found(NamedTuple):
    """A method in a case, at one learning rate.

    Attributes:
        learning_rate: In the results' plan.
        test: Median test loss over seeds.
        low: Lower end of the 95 % interval of that median.
        high: Its upper end.
        diverged: Share of the runs at this learning rate that diverged.
        diverged_of_all: Likewise, of the whole grid.
        steps_to_target: Median over seeds; infinite where not reached.
    """

    learning_rate: float
    test: float
    low: float
    high: float
    diverged: float
    diverged_of_all: float
    steps_to_target: float


class ProblemResults(NamedTuple):
    """The results of a problem.

    Attributes:
        name: Of the problem.
        header: What the file says of itself.
        plan: Of the runs.
        cases: What every method found, by case and method.
    """

    name: str
    header: dict[str, Any]
    plan: dict[str, Any]
    cases: Results


def load(path: Path) -> ProblemResults:
    """Reads the file of a problem, without cases that lack a method so far."""
    found = json.loads(path.read_text("utf-8"))
    cases = found["cases"]
    methods = {method for runs in cases.values() for method in runs}
    return ProblemResults(
        found["header"]["problem"],
        found["header"],
        found["plan"],
        {case: runs for case, runs in cases.items() if set(runs) == methods},
    )


def as_losses(values: Any) -> np.ndarray:
    """An array of what JSON has; a loss that is not finite is infinite."""
    losses = np.array(values, np.float64)
    return np.where(np.isnan(losses), np.inf, losses)


def best_rate(runs: dict[str, Any], by: str = "validation") -> int:
    """The number of the learning rate that validation data chooses.

    Args:
        runs: Of a method in a case.
        by: "test" for what test data would choose.
    """
    return int(np.argmin(np.median(as_losses(runs[by]), axis=1)))


def at_rate(runs: dict[str, Any], plan: dict[str, Any], rate: int) -> Found:
    """What a method found at the learning rate of this number."""
    losses = as_losses(runs["test"])[rate]
    samples = np.random.default_rng(0).choice(losses, (RESAMPLES, len(losses)))
    # Without interpolation, which makes NaN of two infinities.
    low, high = np.quantile(
        np.median(samples, axis=1), [0.025, 0.975], method="inverted_cdf"
    )
    looks = as_losses(runs["looks_to_target"])[rate]
    diverged = np.array(runs["has_diverged"])
    return Found(
        learning_rate=plan["learning_rates"][rate],
        test=float(np.median(losses)),
        low=float(low),
        high=float(high),
        diverged=float(diverged[rate].mean()),
        diverged_of_all=float(diverged.mean()),
        steps_to_target=float(np.median(looks))
        * (runs["steps"] // plan["looks"]),
    )


def best(
    problem: ProblemResults, case: str, by: str = "validation"
) -> dict[str, Found]:
    """Every method of a case at the learning rate chosen for the case."""
    return {
        method: at_rate(runs, problem.plan, best_rate(runs, by))
        for method, runs in problem.cases[case].items()
    }


def best_by_test(problem: ProblemResults, case: str) -> dict[str, Found]:
    """Every method of a case at the learning rate that test data chooses."""
    return best(problem, case, by="test")


def at_clean_rate(problem: ProblemResults, case: str) -> dict[str, Found]:
    """Every method of a case at the learning rate chosen on clean data."""
    clean = problem.cases.get(CLEAN, {})
    return {
        method: at_rate(runs, problem.plan, best_rate(clean[method]))
        for method, runs in problem.cases[case].items()
        if method in clean
    }


def ratios(found: dict[str, Found], to: dict[str, Found]) -> dict[str, float]:
    """Every method's test loss over the smallest of `to`."""
    smallest = min(x.test for x in to.values())
    return {method: x.test / smallest for method, x in found.items()}


def sensitivity(
    problems: Sequence[ProblemResults],
) -> dict[str, tuple[float, float, str]]:
    """How much a method can lose with one learning rate for everything.

    Only cases that every method has run count.

    Returns:
        For each method the learning rate whose worst ratio of validation
        losses to the best method of a case is smallest, that ratio for test
        losses, and the case in which it occurs.
    """
    methods = {m for p in problems for c in p.cases.values() for m in c}
    cases = [
        (p, case)
        for p in problems
        for case, runs in p.cases.items()
        if set(runs) == methods
    ]
    if not cases:
        return {}

    def by_rate(kind):
        """Ratios: case, method (in order), learning rate."""
        table = []
        for problem, case in cases:
            medians = {
                method: np.median(as_losses(runs[kind]), axis=1)
                for method, runs in problem.cases[case].items()
            }
            rates = {
                method: best_rate(runs)
                for method, runs in problem.cases[case].items()
            }
            smallest = min(medians[m][rates[m]] for m in medians)
            table.append([medians[m] / smallest for m in sorted(methods)])
        return np.array(table)

    validation, test = by_rate("validation"), by_rate("test")
    learning_rates = cases[0][0].plan["learning_rates"]
    found = {}
    for number, method in enumerate(sorted(methods)):
        rate = int(np.argmin(validation[:, number].max(axis=0)))
        own = test[:, number, rate]
        problem, case = cases[int(np.argmax(own))]
        found[method] = (
            learning_rates[rate],
            float(own.max()),
            f"{problem.name}, {case}",
        )
    return found


def _number(x: float) -> str:
    return f"{x:.3g}" if np.isfinite(x) else "inf"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def loss_table(
    problem: ProblemResults,
    find: Callable[[ProblemResults, str], dict[str, Found]],
) -> str:
    """Test losses, a row for each method; bold within a tenth of the best.

    The best of a case is that at the learning rate chosen for the case.

    Args:
        problem: Its results.
        find: Chooses the learning rates: `best`, `at_clean_rate` or
            `best_by_test`.
    """
    cases = list(problem.cases)
    found = {case: find(problem, case) for case in cases}
    to = found
    if find is at_clean_rate:
        to = {case: best(problem, case) for case in cases}
    methods = {m: None for case in cases for m in problem.cases[case]}
    rows = []
    for method in methods:
        row = [method]
        for case in cases:
            if method not in found[case]:
                row.append("")
                continue
            x = found[case][method]
            text = _number(x.test)
            if ratios(found[case], to[case])[method] <= WITHIN:
                text = f"**{text}**"
            if find is best:
                text += f" ({_number(x.low)} to {_number(x.high)})"
            row.append(text)
        rows.append(row)
    return table(["test loss", *cases], rows)


def summary_table(problems: Sequence[ProblemResults]) -> str:
    """A row for each method: where it wins and loses, over all cases."""
    cases = [(p, case) for p in problems for case in p.cases]
    found = {(p.name, case): best(p, case) for p, case in cases}
    clean = {(p.name, case): at_clean_rate(p, case) for p, case in cases}
    sensitivities = sensitivity(problems)
    rows = []
    for method in {m: None for x in found.values() for m in x}:
        own = {key: x for key, x in found.items() if method in x}
        to_best = {key: ratios(x, x)[method] for key, x in own.items()}
        to_clean = {
            key: ratios(clean[key], x)[method]
            for key, x in own.items()
            if method in clean[key]
        }
        diverged = [x[method].diverged_of_all for x in own.values()]
        row = [
            method,
            str(sum(x <= WITHIN for x in to_best.values())),
            str(len(to_best)),
            _number(statistics.median(to_best.values())),
            worst(to_best),
            worst(to_clean),
            "",
            f"{100 * statistics.mean(diverged):.0f} %",
        ]
        if method in sensitivities:
            rate, ratio, where = sensitivities[method]
            row[6] = f"{_number(ratio)} at {rate:g} ({where})"
        rows.append(row)
    return table(
        [
            "method",
            f"cases within {WITHIN} of the best",
            "of",
            "median ratio",
            "worst ratio",
            "worst ratio at the learning rate for clean data",
            "sensitivity",
            "diverged, of the whole grid",
        ],
        rows,
    )


def worst(found: dict[tuple[str, str], float]) -> str:
    """The largest of the ratios, and its problem and case."""
    if not found:
        return ""
    worst = max(found, key=found.__getitem__)
    return f"{_number(found[worst])} ({', '.join(worst)})"


def target_table(problem: ProblemResults) -> str:
    """Steps to the target, at the learning rate chosen for each case."""
    cases = list(problem.cases)
    found = {case: best(problem, case) for case in cases}
    methods = {m: None for case in cases for m in problem.cases[case]}
    rows = [
        [
            method,
            *(
                _number(found[case][method].steps_to_target)
                if method in found[case]
                else ""
                for case in cases
            ),
        ]
        for method in methods
    ]
    target = problem.header["target"]
    return table([f"steps to {target:g}", *cases], rows)


def gate_table(problem: ProblemResults, gate: str) -> str:
    """What the gate leaves out, at the learning rate chosen for each case."""
    rows = []
    for case, methods in problem.cases.items():
        if gate not in methods:
            continue
        runs = methods[gate]
        rate = best_rate(runs)
        rows.append(
            [
                case,
                f"{100 * runs['left_out_spoilt'][rate]:.3g} %",
                f"{100 * runs['left_out_good'][rate]:.3g} %",
            ]
        )
    return table(["left out by the gate", "of spoilt", "of other"], rows)


def write(problems: Sequence[ProblemResults], gate: str) -> str:
    """All tables, as Markdown.

    Args:
        problems: The results.
        gate: The name of the method with the gate.
    """
    parts = ["## All cases", summary_table(problems)]
    for problem in problems:
        parts += [
            f"## {problem.name}",
            "At the learning rate chosen for each case:",
            loss_table(problem, best),
            "At the learning rate chosen on clean data:",
            loss_table(problem, at_clean_rate),
            "At the learning rate that the test data itself would choose, "
            "which nobody can know: what choosing costs",
            loss_table(problem, best_by_test),
            target_table(problem),
            gate_table(problem, gate),
        ]
    return "\n\n".join(parts) + "\n"
