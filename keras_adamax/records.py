"""Records: rows of seven columns, in memory and as lines of CSV.

The callbacks write them, the plots read them.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from keras_adamax.record_columns import COLUMNS, Columns
from keras_adamax.record_files import HEADER, BadRecords, parse_csv


class Moment(NamedTuple):
    """When a record was made.

    Attributes:
        run: Number of the call of `fit`.
        epoch: 0-based epoch.
        batch: Batches done in that epoch.
        step: Updates that the optimizer has applied.
    """

    run: int
    epoch: int
    batch: int
    step: int


class Key(NamedTuple):
    """What a value is of: a variable's path (or nothing) and a quantity."""

    variable: str
    quantity: str


class Block(NamedTuple):
    """The values of one moment."""

    moment: Moment
    keys: tuple[Key, ...]
    values: tuple[float, ...]


class Records:
    """Rows in memory, kept by moment: a row costs one float and little more."""

    def __init__(self, blocks: Iterable[Block] = ()):
        self.blocks = list(blocks)

    def __len__(self) -> int:
        return sum(len(block.keys) for block in self.blocks)

    def append(self, block: Block) -> None:
        """Adds the values of one moment."""
        self.blocks.append(block)

    @property
    def last_run(self) -> int | None:
        """The largest run number, or None where there is no row."""
        return max((block.moment.run for block in self.blocks), default=None)

    def keep(self, condition: Callable[[Moment], bool]) -> None:
        """Removes the rows of all moments that do not fulfil a condition."""
        self.blocks = [b for b in self.blocks if condition(b.moment)]

    def variables(self, run: int) -> tuple[str, ...]:
        """The variables of a run, in the order in which they came."""
        seen: dict[str, None] = {}
        for block in self.blocks:
            if block.moment.run == run:
                seen.update((key.variable, None) for key in block.keys)
        return tuple(name for name in seen if name)

    def columns(self) -> dict[str, np.ndarray]:
        """The seven columns as arrays of equal length."""
        counts = [len(block.keys) for block in self.blocks]
        moments = np.asarray(
            [block.moment for block in self.blocks], dtype=np.int64
        ).reshape(-1, len(Moment._fields))
        integers = np.repeat(moments, counts, axis=0)
        keys = [key for block in self.blocks for key in block.keys]
        values = [value for block in self.blocks for value in block.values]
        columns: dict[str, np.ndarray] = {
            name: integers[:, i].copy() for i, name in enumerate(Moment._fields)
        }
        columns["variable"] = np.asarray([k.variable for k in keys], np.str_)
        columns["quantity"] = np.asarray([k.quantity for k in keys], np.str_)
        columns["value"] = np.asarray(values, np.float64)
        return columns


def save(blocks: Iterable[Block], filename: str | os.PathLike) -> None:
    """Writes records to a CSV file, which is replaced."""
    with open(filename, "w", encoding="utf-8", newline="") as file:
        file.write(HEADER)
        file.writelines(map(to_lines, blocks))


def load(filename: str | os.PathLike) -> list[Block]:
    """Reads records from a CSV file.

    Raises:
        ValueError: If it does not hold records.
    """
    with open(filename, encoding="utf-8-sig", newline="") as file:
        header, _, lines = file.read().partition("\n")
    if header.rstrip() != HEADER.rstrip():
        raise ValueError(
            f"`filename` must be a CSV file with the columns "
            f"{HEADER.rstrip()}. Received: filename={str(filename)!r}, "
            f"which begins with {header[:80]!r}."
        )
    return from_lines(lines, str(filename), first_line=2)


def to_lines(block: Block) -> str:
    """The block as lines of CSV, each with a line ending."""
    start = ",".join(map(str, block.moment))
    return "".join(
        f"{start},{name},{float(value)!r}\n"
        for name, value in zip(
            _key_texts(block.keys), block.values, strict=True
        )
    )


@functools.lru_cache(maxsize=64)
def _key_texts(keys: tuple[Key, ...]) -> tuple[str, ...]:
    return tuple(f"{_quote(k.variable)},{_quote(k.quantity)}" for k in keys)


def _quote(text: str) -> str:
    if any(character in text for character in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


def from_lines(text: str, source: str, first_line: int = 1) -> list[Block]:
    """Reads lines without the header.

    Args:
        text: Whole lines.
        source: Where they come from, for the error.
        first_line: Number of the first line there.

    Raises:
        ValueError: If a line is not a record.
    """
    try:
        columns = parse_csv(text, first_line)
    except BadRecords as error:
        raise ValueError(
            f"{source}, line {error.line}: this is not a record of "
            f"{', '.join(COLUMNS)} ({error.reason.removesuffix('.')}). Mend or "
            "move the file, or give another name."
        ) from error
    return list(to_blocks(columns))


def to_blocks(columns: Columns) -> Iterator[Block]:
    """Rows in succession that have the same moment, as blocks."""
    if not len(columns):
        return
    # The same names come at each moment: all blocks share them.
    pair = columns.variable.astype(np.int64) * len(columns.quantities)
    pair += columns.quantity
    keys: dict[bytes, tuple[Key, ...]] = {}
    edges = np.flatnonzero(np.diff(columns.moment)) + 1
    for start, end in itertools.pairwise([0, *edges.tolist(), len(columns)]):
        code = pair[start:end].tobytes()
        if code not in keys:
            keys[code] = tuple(
                Key(columns.variables[v], columns.quantities[q])
                for v, q in zip(
                    columns.variable[start:end].tolist(),
                    columns.quantity[start:end].tolist(),
                    strict=True,
                )
            )
        moment = Moment(*columns.moments[columns.moment[start]].tolist())
        values = tuple(columns.value[start:end].tolist())
        yield Block(moment, keys[code], values)
