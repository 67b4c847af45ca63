"""Which rows a heat map has: some variables, groups of them, the outliers."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from keras_adamax import _validation
from keras_adamax.plots import _labels
from keras_adamax.plots._tables import Table
from keras_adamax.record_columns import Columns

# More rows than this get no name each.
MAX_ROWS = 40
# Rates below it are all alike.
_LOW_RATE = 0.005

GroupBy = Literal["auto", "block", "kind"] | None


class Peak(NamedTuple):
    """Where a variable stands out.

    Attributes:
        row: Row of the variable.
        step: Step of the record.
        begin: Step at which the values begin to be so.
        end: Step at which they end to be so.
        value: The value there, which may be NaN.
        usual: The median of the variable's values.
        factor: How many times it is larger than usual, against how many times
            the other variables are in the same record.
    """

    row: int
    step: int
    begin: int
    end: int
    value: float
    usual: float
    factor: float


class Selection(NamedTuple):
    """What to draw of the variables.

    Attributes:
        patterns: Of a variable's path one must be found; none: all variables.
        group_by: How heat maps join variables to rows.
        top: How many variables to draw, or `None` for all.
    """

    patterns: tuple[re.Pattern[str], ...] = ()
    group_by: GroupBy = "auto"
    top: int | None = None

    @classmethod
    def of(
        cls,
        variables: str | Sequence[str] | None = None,
        group_by: GroupBy = "auto",
        top: int | None = None,
    ) -> "Selection":
        """Checks the arguments of a figure.

        Raises:
            TypeError: If one is of another type.
            ValueError: If one has another value.
        """
        if variables is None:
            variables = ()
        elif isinstance(variables, str):
            variables = (variables,)
        try:
            patterns = tuple(map(re.compile, variables))
        except (re.error, TypeError) as error:
            raise ValueError(
                "`variables` must be a regular expression or several of them. "
                f"Received: variables={variables!r} ({error})."
            ) from None
        if group_by not in ("auto", "block", "kind", None):
            raise ValueError(
                '`group_by` must be "auto", "block", "kind" or None. '
                f"Received: group_by={group_by!r}."
            )
        if top is not None:
            top = _validation.check_integer(
                "top", top, minimum=1, alternatives=" or None"
            )
        return cls(patterns, group_by, top)

    def filter(self, columns: Columns) -> Columns:
        """Leaves out the variables that no pattern is found in.

        Raises:
            ValueError: If a pattern is found in none.
        """
        if not self.patterns or not len(columns):
            return columns
        paths = [name for name in columns.variables if name]
        for pattern in self.patterns:
            if not any(map(pattern.search, paths)):
                some = ", ".join(paths[:5]) + ", ..." * (len(paths) > 5)
                raise ValueError(
                    f"No variable matches {pattern.pattern!r}. "
                    f"Recorded: {some or 'none'}."
                )
        # What is of all variables together stays.
        keep = [
            not name or any(p.search(name) for p in self.patterns)
            for name in columns.variables
        ]
        return columns.rows(np.array(keep)[columns.variable])

    def limit(self, table: Table, is_rate: bool) -> Table:
        """Leaves the `top` variables that stand out most, those first."""
        if self.top is None or self.top >= len(table.variables):
            return table
        peaks = standing_out(table, self.top, is_rate)
        return table.rows([peak.row for peak in peaks])

    def groups(self, paths: Sequence[str]) -> tuple[str, list[str]]:
        """What the groups are, and each variable's; nothing without groups."""
        if not paths or self.group_by is None:
            return "", []
        if self.group_by == "auto" and len(paths) <= MAX_ROWS:
            return "", []
        if self.group_by == "kind":
            return "kind", kinds(paths)
        return "block", blocks(paths)


def kinds(paths: Sequence[str]) -> list[str]:
    """The kind of each variable: kernel, bias, gamma and so on."""
    return _merged([path.rpartition("/")[2] for path in paths])


def blocks(paths: Sequence[str]) -> list[str]:
    """The block of each variable.

    A block is a folder, as deep as `MAX_ROWS` allows. Where even the first
    level has more of them, neighbours are joined.
    """
    folder = _labels.common_folder(paths)
    folders = [path.removeprefix(folder).split("/")[:-1] for path in paths]
    if not any(folders):
        return _merged(list(paths))
    names = ["/".join(f[:1]) for f in folders]
    for depth in range(2, max(map(len, folders)) + 1):
        deeper = ["/".join(f[:depth]) for f in folders]
        if len(set(deeper)) > MAX_ROWS:
            break
        names = deeper
    return _merged([(folder + name).removesuffix("/") for name in names])


def _merged(names: Sequence[str]) -> list[str]:
    """Joins neighbours until there are `MAX_ROWS` names at most."""
    unique = list(dict.fromkeys(names))
    size = -(-len(unique) // MAX_ROWS)
    if size <= 1:
        return list(names)
    joined = {}
    for start in range(0, len(unique), size):
        part = unique[start : start + size]
        label = f"{part[0]} to {part[-1].rpartition('/')[2]}"
        joined |= dict.fromkeys(part, label if len(part) > 1 else part[0])
    return [joined[name] for name in names]


def grouped(table: Table, groups: Sequence[str]) -> Table:
    """A row for each group: the largest value of its variables."""
    rows = {name: row for row, name in enumerate(dict.fromkeys(groups))}

    def largest(values: np.ndarray) -> np.ndarray:
        result = np.full((len(rows), values.shape[1]), np.nan)
        for name, row in zip(groups, values, strict=True):
            # Not `maximum`, to which NaN would be larger than all.
            result[rows[name]] = np.fmax(result[rows[name]], row)
        return result

    result = table.replace(list(rows), largest)
    return dataclasses.replace(result, known=())


def standing_out(table: Table, count: int, is_rate: bool) -> list[Peak]:
    """The variables that stand out most, and where.

    A value stands out if it is larger than the variable's usual value, and if
    the other variables are not larger than usual in the same record: one
    layer's explosion, not a batch that shakes all layers. NaN and infinity
    come before everything else, the first of them first.
    """
    values = table.values
    if not values.size:
        return []
    begins = np.concatenate([part.edges[:-1] for part in table.parts])
    ends = np.concatenate([part.edges[1:] for part in table.parts])
    scores = _scores(values, is_rate)
    usual = _median(np.where(np.isfinite(values), values, np.nan), 1)
    best = np.argmax(scores, axis=1)
    if not is_rate:
        for row, column in _first_bad(table).items():
            scores[row, column:] = np.inf
            best[row] = column
    rows = np.arange(len(values))
    order = np.lexsort((ends[best], -scores[rows, best]))
    # A rate that is usually 0 is not infinitely larger in one record.
    floor = _LOW_RATE if is_rate else 1e-99
    with np.errstate(over="ignore", invalid="ignore"):
        times = values / np.maximum(usual, floor)[:, None]
        factors = times / np.maximum(_median(times, 0), 1e-99)
    peaks = []
    for row in order[:count].tolist():
        at = int(best[row])
        first, last = _burst(scores[row], at)
        if np.isfinite(values[row, at]):
            at = first + int(np.argmax(values[row, first : last + 1]))
        peaks.append(
            Peak(
                row,
                int(ends[at]),
                int(begins[first]),
                int(ends[last]),
                float(values[row, at]),
                float(usual[row]),
                float(factors[row, at]),
            )
        )
    return peaks


def _burst(scores: np.ndarray, at: int) -> tuple[int, int]:
    """The columns around `at` that stand out at least half as much."""
    low = scores < scores[at] / 2
    before, after = np.flatnonzero(low[:at]), np.flatnonzero(low[at:])
    first = int(before[-1]) + 1 if before.size else 0
    last = at + int(after[0]) - 1 if after.size else len(scores) - 1
    return first, max(first, last)


def _scores(values: np.ndarray, is_rate: bool) -> np.ndarray:
    known = np.isfinite(values)
    if is_rate:
        x = np.sqrt(np.where(known, np.maximum(values, 0), np.nan))
    elif (values[known] < 0).any():
        x = np.where(known, values, np.nan)
    else:
        positive = known & (values > 0)
        x = np.log10(np.where(positive, values, 1))
        x[~positive] = np.nan
    if x.shape[1] > 2:
        x = x - _median(x, 1)[:, None]
    x = x - _median(x, 0)
    spread = _median(np.abs(x), 0)
    # In the warm-up the variables lie far apart; elsewhere they may be equal.
    typical = _median(spread[None], 1)
    scores = x / (spread + np.maximum(typical, 1e-9))
    return np.where(np.isnan(scores), -np.inf, scores)


def _first_bad(table: Table) -> dict[int, int]:
    """Row to the first column that is not finite, after some that are."""
    found: dict[int, int] = {}
    start = 0
    for part in table.parts:
        bad = ~np.isfinite(part.values)
        # Where all is missing, the run had no such variable.
        rows = bad.any(axis=1) & ~bad.all(axis=1)
        for row in np.flatnonzero(rows).tolist():
            found.setdefault(row, start + int(np.argmax(bad[row])))
        start += part.values.shape[1]
    return found


def _median(values: np.ndarray, axis: int) -> np.ndarray:
    """The lower median without NaN, silently NaN where there is nothing else.

    `np.nanmedian` warns of that, and warnings are global.
    """
    ordered = np.sort(values, axis=axis)
    count = (~np.isnan(values)).sum(axis=axis, keepdims=True)
    middle = np.maximum(count - 1, 0) // 2
    return np.take_along_axis(ordered, middle, axis=axis).squeeze(axis)
