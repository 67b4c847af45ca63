"""From long form to tables: one axis of time, variables by records."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from keras_adamax.record_columns import Columns


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
    def of(cls, columns: Columns) -> "Clock":
        begins, shifts = {}, {}
        shift = end = 0
        recorded = _present(columns, columns.moment)
        # A spike is no update: the step of its row is the one before.
        is_spike = columns.quantity == columns.number("spike_rate")
        updates = _present(columns, columns.moment[~is_spike])
        runs, _, batches, steps = columns.moments.T
        for run in np.unique(runs[recorded]).tolist():
            here = recorded[runs[recorded] == run]
            applied = updates[runs[updates] == run]
            here = applied if applied.size else here
            first = here[np.lexsort((batches[here], steps[here]))[0]]
            start = int(steps[first])
            # The first record covers the batches before it. With gradient
            # accumulation there are fewer steps than batches: hence `max`.
            begin = max(0, start - int(batches[first]))
            if begins and start + shift <= end:
                shift = end - begin
            begins[run] = max(begin + shift, end if begins else 0)
            shifts[run] = shift
            end = int(steps[here].max()) + shift
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
    """One quantity over all runs; rows in the order they were recorded.

    `known` are the variables from which a reader must tell these ones.
    """

    quantity: str
    variables: list[str]
    parts: list[Part]
    known: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.parts)

    @property
    def values(self) -> np.ndarray:
        """All runs side by side: variables by records."""
        empty = np.empty((len(self.variables), 0))
        return np.hstack([empty, *(part.values for part in self.parts)])

    def replace(
        self,
        variables: Sequence[str],
        change: Callable[[np.ndarray], np.ndarray],
    ) -> "Table":
        """The table with other rows, which `change` makes of each part's."""
        parts = [
            dataclasses.replace(part, values=change(part.values))
            for part in self.parts
        ]
        return Table(self.quantity, list(variables), parts, self.known)

    def rows(self, chosen: Sequence[int]) -> "Table":
        """The table with some of its rows."""
        index = np.array(chosen, int)
        names = [self.variables[row] for row in chosen]
        return self.replace(names, lambda values: values[index])

    def unchanged(self) -> list[int]:
        """Rows of the variables whose recorded values are all exactly 0."""
        known = np.isfinite(self.values)
        moved = known & (self.values != 0)
        return np.flatnonzero(known.any(axis=1) & ~moved.any(axis=1)).tolist()

    def still(self) -> dict[int, int]:
        """Row to the step since which its values are exactly 0.

        Without those of `unchanged`, and of a single record.
        """
        if not self.variables or not self.parts[-1].values.size:
            return {}
        part = self.parts[-1]
        moved = part.values != 0  # NaN has moved
        since = moved.shape[1] - np.argmax(moved[:, ::-1], axis=1)
        since[~moved.any(axis=1)] = 0
        rows = np.flatnonzero(since < moved.shape[1] - 1)
        never = set(self.unchanged())
        return {
            row: int(part.edges[since[row]])
            for row in rows.tolist()
            if row not in never
        }

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
                more, a column is the largest of as many neighbouring records
                as it takes (NaN only where all are).

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
            columns.append(np.fmax.reduceat(part.values, cuts, axis=1))
        if clock.end > edges[-1][-1]:
            edges.append(np.array([clock.end]))
            columns.append(gap)
        return np.concatenate(edges), np.hstack(columns)


def tabulate(columns: Columns, quantity: str, clock: Clock) -> Table:
    """The table of one quantity; of two equal records the later one holds."""
    columns = columns.rows(columns.quantity == columns.number(quantity))
    # In the order in which they were recorded.
    numbers, first = np.unique(columns.variable, return_index=True)
    numbers = numbers[np.argsort(first)].tolist()
    numbers = [n for n in numbers if columns.variables[n]]
    row_of = np.full(len(columns.variables), -1)
    row_of[numbers] = np.arange(len(numbers))
    rows = row_of[columns.variable]
    runs, epochs, batches, steps = columns.moments.T
    parts = []
    for run in np.unique(runs[columns.moment]).tolist():
        here = runs[columns.moment] == run
        grids = []
        for inside, height in (
            (here & (rows < 0), 1),
            (here & (rows >= 0), len(numbers)),
        ):
            when = _present(columns, columns.moment[inside])
            # The whole key: steps alone would merge two records between which
            # no update was applied.
            order = np.lexsort((batches[when], epochs[when], steps[when]))
            when = when[order]
            place = np.zeros(len(columns.moments), int)
            place[when] = np.arange(len(when))
            grid = np.full((height, len(when)), np.nan)
            row = np.maximum(rows[inside], 0)
            grid[row, place[columns.moment[inside]]] = columns.value[inside]
            grids.append((steps[when] + clock.shifts[run], grid))
        (ends, summary), (map_ends, values) = grids
        begin = clock.begins[run]
        edges = np.concatenate([[begin], map_ends])
        parts.append(Part(run, begin, ends, summary[0], edges, values))
    names = [columns.variables[n] for n in numbers]
    return Table(quantity, names, parts, columns.variables)


def _present(columns: Columns, moments: np.ndarray) -> np.ndarray:
    """The numbers of the moments that occur."""
    return np.flatnonzero(np.bincount(moments, minlength=len(columns.moments)))
