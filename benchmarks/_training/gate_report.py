"""Tables of the gate's forms: made of the JSON files alone."""

import math
import statistics
from pathlib import Path

from _training import report
from _training.report import ProblemResults

KINDS = {
    "forms": "Every form, 5 seeds; ratios to the best of all methods of "
    "`training.py` and of all forms",
    "confirmed": "Some forms and the strongest peers, 15 other seeds; ratios "
    "to the best of these",
}


def write(folder: Path) -> str:
    """All tables, as Markdown, of what there is in the folder."""
    parts = []
    for kind, title in KINDS.items():
        files = sorted(folder.glob(f"gate_{kind}_*.json"))
        if not files:
            continue
        problems = [report.load(file) for file in files]
        others = []
        if kind == "forms":
            paths = [folder / f"training_{p.name}.json" for p in problems]
            others = [report.load(path) for path in paths if path.exists()]
        parts += [f"## {title}", _summary(problems, others)]
        for problem in problems:
            parts += [
                f"### {problem.name}",
                "At the learning rate chosen for each case:",
                report.loss_table(problem, report.best),
                "At the learning rate chosen on clean data:",
                report.loss_table(problem, report.at_clean_rate),
            ]
    return "\n\n".join(parts) + "\n"


def _summary(
    problems: list[ProblemResults], others: list[ProblemResults]
) -> str:
    """A row for each method: its ratios, and what it leaves out."""
    found = {
        find: {
            (p.name, case): find(p, case) for p in problems for case in p.cases
        }
        for find in (report.best, report.at_clean_rate)
    }
    smallest = {
        key: min(x.test for x in methods.values())
        for key, methods in found[report.best].items()
    }
    for problem in others:
        for case in problem.cases:
            losses = [x.test for x in report.best(problem, case).values()]
            key = problem.name, case
            smallest[key] = min([*losses, smallest.get(key, math.inf)])
    columns = [
        "method",
        "median ratio",
        "worst ratio",
        "median ratio, learning rate for clean data",
        "worst ratio, learning rate for clean data",
        "left out of spoilt steps",
        "of other steps, at most",
    ]
    methods = {m: None for p in problems for c in p.cases.values() for m in c}
    rows = []
    for method in methods:
        row = [method]
        for cases in found.values():
            to_best = {
                key: runs[method].test / smallest[key]
                for key, runs in cases.items()
                if method in runs
            }
            row += [
                f"{statistics.median(to_best.values()):.2f}",
                report.worst(to_best),
            ]
        rows.append([*row, *_left_out(problems, method)])
    return report.table(columns, rows)


def _left_out(problems: list[ProblemResults], method: str) -> list[str]:
    spoilt, good = [], []
    for problem in problems:
        for case, methods in problem.cases.items():
            if method not in methods:
                continue
            runs = methods[method]
            rate = report.best_rate(runs)
            good.append(runs["left_out_good"][rate])
            if case[0].isdigit() and " x" in case:
                spoilt.append(runs["left_out_spoilt"][rate])
    share = f"{100 * statistics.mean(spoilt):.0f} %" if spoilt else ""
    return [share, f"{100 * max(good):.2g} %"]
