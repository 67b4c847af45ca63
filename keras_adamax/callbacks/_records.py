"""Records: rows of seven columns, in memory and as lines of CSV."""

import csv
import functools
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

COLUMNS = ("run", "epoch", "batch", "step", "variable", "quantity", "value")
HEADER = ",".join(COLUMNS) + "\n"


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
    return list(_blocks(_rows(text, source, first_line)))


def _rows(
    text: str, source: str, first_line: int
) -> Iterator[tuple[Moment, Key, float]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield _parse(row)
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{source}, line {first_line - 1 + reader.line_num}: this is not "
            f"a record of {', '.join(COLUMNS)} ({error}). Mend or move the "
            "file, or give another name."
        ) from error


def _parse(row: Sequence[str]) -> tuple[Moment, Key, float]:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} fields in place of {len(COLUMNS)}")
    moment = Moment(*(int(text) for text in row[:4]))
    return moment, Key(row[4], row[5]), float(row[6])


def _blocks(rows: Iterable[tuple[Moment, Key, float]]) -> Iterator[Block]:
    moment, keys, values = None, [], []
    for row_moment, key, value in rows:
        if row_moment != moment and moment is not None:
            yield Block(moment, tuple(keys), tuple(values))
            keys, values = [], []
        moment = row_moment
        keys.append(key)
        values.append(value)
    if moment is not None:
        yield Block(moment, tuple(keys), tuple(values))
