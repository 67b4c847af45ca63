"""Rows of records as coded columns.

Each moment and each name is kept once, and a row holds their numbers: 900,000
rows take 20 MB, where a column of strings would take 300 MB.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

COLUMNS = ("run", "epoch", "batch", "step", "variable", "quantity", "value")
# Those that say when a row was recorded; all are integers.
TIMES = COLUMNS[:4]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Rows of records, coded.

    Attributes:
        moments: Run, epoch, batch and step of each moment; int64, 4 columns.
        variables: Names of the variables, empty for all of them together.
        quantities: Names of the quantities.
        moment: Number of each row's moment.
        variable: Number of each row's variable.
        quantity: Number of each row's quantity.
        value: Value of each row, float64.
    """

    moments: np.ndarray
    variables: tuple[str, ...]
    quantities: tuple[str, ...]
    moment: np.ndarray
    variable: np.ndarray
    quantity: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.value)

    def rows(self, chosen: np.ndarray) -> "Columns":
        """The rows that an index or a mask chooses."""
        return dataclasses.replace(
            self,
            moment=self.moment[chosen],
            variable=self.variable[chosen],
            quantity=self.quantity[chosen],
            value=self.value[chosen],
        )

    def number(self, quantity: str) -> int:
        """The number of a quantity, or -1."""
        try:
            return self.quantities.index(quantity)
        except ValueError:
            return -1

    def to_dict(self) -> dict[str, np.ndarray]:
        """The seven columns as arrays of equal length."""
        columns = {
            name: self.moments[self.moment, i] for i, name in enumerate(TIMES)
        }
        for name, names, numbers in (
            ("variable", self.variables, self.variable),
            ("quantity", self.quantities, self.quantity),
        ):
            # Without rows there may be no names to take from.
            columns[name] = np.array([*names, ""], np.str_)[numbers]
        columns["value"] = self.value.copy()
        return columns

    @classmethod
    def of(
        cls,
        times: Sequence[np.ndarray],
        variable: np.ndarray,
        quantity: np.ndarray,
        value: np.ndarray,
    ) -> "Columns":
        """Codes arrays of equal length; `times` are the first four."""
        builder = Builder()
        # In pieces: as Python strings a long column takes much memory.
        for start in range(0, len(value), 2**16):
            part = slice(start, start + 2**16)
            builder.add(
                [column[part] for column in times],
                Coded.of(variable[part].tolist()),
                Coded.of(quantity[part].tolist()),
                value[part],
            )
        return builder.columns()


class Coded(NamedTuple):
    """Names, each once, and the numbers of those that stand in each row."""

    names: list[Any]
    numbers: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Any]) -> "Coded":
        """Numbers names in the order in which they come."""
        numbers = _Numbers()
        rows = numbers.of(texts)
        return cls(list(numbers), rows)


class _Numbers(dict):
    def __missing__(self, name: Any) -> int:
        number = self[name] = len(self)
        return number

    def of(self, names: Sequence[Any]) -> np.ndarray:
        return np.fromiter(map(self.__getitem__, names), np.int32, len(names))


class Builder:
    """Collects rows, piece by piece."""

    def __init__(self):
        self._moments, self._variables = _Numbers(), _Numbers()
        self._quantities = _Numbers()
        self._parts: list[tuple[np.ndarray, ...]] = []

    def add(
        self,
        times: Sequence[np.ndarray],
        variable: Coded,
        quantity: Coded,
        value: np.ndarray,
    ) -> None:
        """Adds rows; `times` are the first four columns."""
        if not len(value):
            return
        table = np.stack(times, axis=1)
        # Many rows in succession have the same moment.
        starts = np.ones(len(table), bool)
        starts[1:] = (table[1:] != table[:-1]).any(axis=1)
        moments = self._moments.of([tuple(m) for m in table[starts].tolist()])
        self._parts.append(
            (
                moments[np.cumsum(starts) - 1],
                self._variables.of(variable.names)[variable.numbers],
                self._quantities.of(quantity.names)[quantity.numbers],
                np.asarray(value, np.float64),
            )
        )

    def columns(self) -> Columns:
        """All rows."""
        empty = (np.empty(0, np.int32),) * 3 + (np.empty(0),)
        parts = zip(empty, *self._parts, strict=True)
        moments = np.array(list(self._moments), np.int64)
        return Columns(
            moments.reshape(-1, len(TIMES)),
            tuple(self._variables),
            tuple(self._quantities),
            *map(np.concatenate, parts),
        )
