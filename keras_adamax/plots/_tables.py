"""From long form to tables: one axis of time, variables by records."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from keras_adamax.plots._records import Records


@dataclasses.dataclass(frozen=True)
class Clock:
    """Where each run lies on the common time axis.

    Further calls of `fit` continue the optimizer's steps. Where the steps
    start again (a new optimizer), the run is shifted behind the one before.
    """

    begins: dict[int, int]
    shifts: dict[int, int]
    end: int

    @classmethod
    def of(cls, records: Records) -> "Clock":
        begins, shifts = {}, {}
        shift = end = 0
        for run in np.unique(records["run"]).tolist():
            here = records["run"] == run
            # A spike is no update: the step of its row is the one before.
            updates = here & (records["quantity"] != "spike_rate")
            here = updates if updates.any() else here
            steps, batches = records["step"][here], records["batch"][here]
            first = int(np.lexsort((batches, steps))[0])
            start = int(steps[first])
            # The first record covers the batches before it. With gradient
            # accumulation there are fewer steps than batches: hence `max`.
            begin = max(0, start - int(batches[first]))
            if begins and start + shift <= end:
                shift = end - begin
            begins[run] = max(begin + shift, end if begins else 0)
            shifts[run] = shift
            end = int(steps.max()) + shift
        return cls(begins, shifts, end)

    @property
    def begin(self) -> int:
        return min(self.begins.values(), default=0)

    @property
    def shifted(self) -> bool:
        return any(self.shifts.values())


@dataclasses.dataclass(frozen=True)
class Part:
    """What one run recorded of one quantity.

    `steps` and `summary` belong together, as do `edges` and the columns of
    `values`: column i covers the steps from `edges[i]` to `edges[i + 1]`.
    """

    run: int
    begin: int
    steps: np.ndarray
    summary: np.ndarray
    edges: np.ndarray
    values: np.ndarray


class Series(NamedTuple):
    """One run of one variable; of the summary if `variable` is empty."""

    variable: str
    run: int
    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """One quantity over all runs; rows in the order they were recorded."""

    quantity: str
    variables: list[str]
    parts: list[Part]

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def values(self) -> np.ndarray:
        """All runs side by side: variables by records."""
        empty = np.empty((len(self.variables), 0))
        return np.hstack([empty, *(part.values for part in self.parts)])

    def unchanged(self) -> list[int]:
        """Rows of the variables whose recorded values are all exactly 0."""
        known = np.isfinite(self.values)
        moved = known & (self.values != 0)
        return np.flatnonzero(known.any(axis=1) & ~moved.any(axis=1)).tolist()

    def summaries(self) -> Iterator[Series]:
        """The values of all weights together, or of a scalar of `logs`."""
        for part in self.parts:
            yield Series("", part.run, part.steps, part.summary)

    def series(self) -> Iterator[Series]:
        """The values of each variable."""
        for row, variable in enumerate(self.variables):
            for part in self.parts:
                yield Series(
                    variable, part.run, part.edges[1:], part.values[row]
                )

    def cells(self, clock: Clock, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """The table from end to end of the clock, with NaN in the gaps.

        Args:
            clock: The time axis to fill.
            limit: About how many columns to make at most. Where there are
                more, a column is the mean of as many neighbouring records as
                it takes (NaN only where all are).

        Returns:
            Edges of the columns, and variables by columns.
        """
        count = sum(part.values.shape[1] for part in self.parts)
        width = max(1, -(-count // limit))
        gap = np.full((len(self.variables), 1), np.nan)
        edges, columns = [np.array([clock.begin])], []
        for part in self.parts:
            if not part.values.size:
                continue
            if part.begin > edges[-1][-1]:
                edges.append(part.edges[:1])
                columns.append(gap)
            cuts = np.arange(0, part.values.shape[1], width)
            edges.append(np.append(part.edges[cuts[1:]], part.edges[-1]))
            columns.append(_means(part.values, cuts))
        if clock.end > edges[-1][-1]:
            edges.append(np.array([clock.end]))
            columns.append(gap)
        return np.concatenate(edges), np.hstack(columns)


def _means(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    if len(cuts) == values.shape[1]:
        return values
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0), cuts, axis=1)
    number = np.add.reduceat(known.astype(int), cuts, axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def tabulate(records: Records, quantity: str, clock: Clock) -> Table:
    """The table of one quantity; of two equal records the later one holds."""
    chosen = records["quantity"] == quantity
    columns = {name: column[chosen] for name, column in records.items()}
    names = columns["variable"].tolist()
    variables = list(dict.fromkeys(name for name in names if name))
    number = {"": -1} | {name: row for row, name in enumerate(variables)}
    rows = np.array([number[name] for name in names], dtype=int)
    # The whole key: steps alone would merge two records between which no
    # update was applied.
    times = np.stack([columns[key] for key in ("step", "epoch", "batch")], 1)
    parts = []
    for run in np.unique(columns["run"]).tolist():
        here = columns["run"] == run
        grids = []
        for inside, height in (
            (here & (rows < 0), 1),
            (here & (rows >= 0), len(variables)),
        ):
            when, at = np.unique(times[inside], axis=0, return_inverse=True)
            grid = np.full((height, len(when)), np.nan)
            row = np.maximum(rows[inside], 0)
            grid[row, at.reshape(-1)] = columns["value"][inside]
            grids.append((when[:, 0] + clock.shifts[run], grid))
        (steps, summary), (ends, values) = grids
        begin = clock.begins[run]
        edges = np.concatenate([[begin], ends])
        parts.append(Part(run, begin, steps, summary[0], edges, values))
    return Table(quantity, variables, parts)
