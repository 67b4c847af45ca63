"""The results of a problem in a JSON file, so that a run can go on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _training.protocol import Plan

Results = dict[str, dict[str, Any]]


class Store:
    """What has been found by now: by case and method.

    Args:
        path: The JSON file; what it has of another plan is refused.
        header: What to write beside: the problem and the machine.
        plan: Of the runs.
        order: Of the cases in the file.

    Raises:
        ValueError: If the file is of another plan.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        plan: Plan,
        order: Sequence[str],
    ):
        self.path = path
        self._order = list(order)
        self.cases: dict[str, Results] = {}
        # As JSON has it: without tuples.
        self._plan = json.loads(json.dumps(plan._asdict()))
        self._header = header
        if path.exists():
            found = json.loads(path.read_text("utf-8"))
            if found["plan"] != self._plan:
                raise ValueError(
                    "Results of another plan cannot be continued. "
                    f"Received: plan={self._plan}, but {path} has "
                    f"{found['plan']}. Choose another `--output`."
                )
            self._header = found["header"]
            self.cases = found["cases"]

    def has(self, case: str, method: str) -> bool:
        """Whether these runs were made."""
        return method in self.cases.get(case, {})

    def add(self, case: str, method: str, found: dict[str, Any]) -> None:
        """Adds the runs of a method in a case, and writes the file."""
        self.cases.setdefault(case, {})[method] = found
        cases = ",\n".join(
            f"{json.dumps(name)}: {{\n"
            + ",\n".join(
                f"{json.dumps(method)}: {json.dumps(runs)}"
                for method, runs in methods.items()
            )
            + "\n}"
            for name, methods in sorted(
                self.cases.items(), key=lambda x: self._order.index(x[0])
            )
        )
        text = (
            f'{{"header": {json.dumps(self._header)},\n'
            f'"plan": {json.dumps(self._plan)},\n'
            f'"cases": {{\n{cases}\n}}}}\n'
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text, "utf-8")
        partial.replace(self.path)
