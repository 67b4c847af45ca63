"""Files of records: CSV, which callbacks append to, and compact `.npz`."""

import csv
import dataclasses
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_adamax import _atomic_files
from keras_adamax.record_columns import (
    COLUMNS,
    TIMES,
    Builder,
    Coded,
    Columns,
)

HEADER = ",".join(COLUMNS) + "\n"

_CHUNK = 2**18
_LARGEST = 2**63 - 1
_VERSION = 1


class BadRecords(ValueError):
    """What a file holds is no record.

    Args:
        line: Number of the line.
        reason: What is wrong with it, as a sentence.
    """

    def __init__(self, line: int, reason: str):
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


# CSV


class Csv(NamedTuple):
    """A CSV file's rows, and the line that a crash has cut, if it has."""

    columns: Columns
    torn: int | None


def read_csv(path: str | os.PathLike) -> Csv:
    """Reads a CSV file; a last line without a line ending is left out.

    Raises:
        BadRecords: If a line is not a record.
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        pieces = _Pieces(file)
        columns = _parse(_without_header(iter(pieces)), 2)
    return Csv(columns, pieces.line if pieces.rest else None)


def parse_csv(text: str, first_line: int = 1) -> Columns:
    """Reads lines of CSV without the header.

    Args:
        text: The lines; the last may lack its line ending.
        first_line: Number of the first line.

    Raises:
        BadRecords: If a line is not a record.
    """
    if text and not text.endswith("\n"):
        text += "\n"
    return _parse(_Pieces(io.BytesIO(text.encode())), first_line)


class _Pieces:
    """A file in pieces of whole lines.

    Attributes:
        line: Number of the first line that was not given out.
        rest: In the end, what stands behind the last line ending.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.line = 1
        self.rest = b""

    def __iter__(self) -> Iterator[bytes]:
        while data := self._file.read(_CHUNK):
            data = self.rest + data
            end = data.rfind(b"\n") + 1
            self.rest = data[end:]
            if end:
                self.line += data.count(b"\n", 0, end)
                yield data[:end]


def _without_header(pieces: Iterator[bytes]) -> Iterator[bytes]:
    head, _, rest = next(pieces, b"").partition(b"\n")
    text = _decode(head.removeprefix(b"\xef\xbb\xbf"), 1).rstrip("\r")
    if tuple(next(csv.reader([text]), [])) != COLUMNS:
        raise BadRecords(
            1,
            f"the header must be {HEADER.rstrip()}. Received: {excerpt(text)}.",
        )
    if rest:
        yield rest
    yield from pieces


def _parse(pieces: Iterable[bytes], line: int) -> Columns:
    builder = Builder()
    for piece in _with_whole_fields(pieces):
        if not _add_plain(builder, piece):
            _add_any(builder, piece, line)
        line += piece.count(b"\n")
    return builder.columns()


def _with_whole_fields(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Joins pieces that end within quotes: a name may hold a line ending."""
    open_ones: list[bytes] = []
    quotes = 0
    for piece in pieces:
        open_ones.append(piece)
        quotes += piece.count(b'"')
        if quotes % 2 == 0:
            yield b"".join(open_ones)
            open_ones.clear()
    if open_ones:
        yield b"".join(open_ones)


def _add_plain(builder: Builder, piece: bytes) -> bool:
    """Reads lines without quotes at once; False if that is not possible.

    A `csv.reader` takes three times as long.
    """
    piece = piece.replace(b"\r\n", b"\n")
    if b'"' in piece or b"\r" in piece:
        return False
    # The line endings become fields of their own, to be found at their place.
    fields = piece.replace(b"\n", b",\n,").split(b",")
    width = len(COLUMNS) + 1
    count, rest = divmod(len(fields), width)
    if rest != 1 or fields[width - 1 :: width] != [b"\n"] * count:
        return False
    del fields[-1]
    try:
        builder.add(
            [_integers(fields[i::width]) for i in range(len(TIMES))],
            _names(fields[len(TIMES) :: width]),
            _names(fields[len(TIMES) + 1 :: width]),
            np.fromiter(map(float, fields[width - 2 :: width]), float, count),
        )
    except ValueError:
        return False
    return True


def _integers(texts: Sequence[bytes]) -> np.ndarray:
    coded = Coded.of(texts)
    values = list(map(int, coded.names))
    if not all(abs(value) <= _LARGEST for value in values):
        raise ValueError
    return np.array(values, np.int64)[coded.numbers]


def _names(texts: Sequence[bytes]) -> Coded:
    coded = Coded.of(texts)
    return coded._replace(names=[name.decode() for name in coded.names])


def _add_any(builder: Builder, piece: bytes, first_line: int) -> None:
    """Reads lines one by one; says which one is no record."""
    text = _decode(piece, first_line)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[Any, ...]] = []
    try:
        for row in reader:
            if row:
                rows.append(_parse_row(row))
    except csv.Error as error:
        line = first_line - 1 + reader.line_num
        raise BadRecords(line, f"this is not CSV ({error}).") from None
    except ValueError as error:
        line = first_line - 1 + reader.line_num
        raise BadRecords(line, str(error)) from None
    if rows:
        *times, variable, quantity, value = zip(*rows, strict=True)
        builder.add(
            [np.array(column, np.int64) for column in times],
            Coded.of(variable),
            Coded.of(quantity),
            np.array(value),
        )


def _parse_row(row: Sequence[str]) -> tuple[Any, ...]:
    if len(row) != len(COLUMNS):
        raise ValueError(
            f"a row must have {len(COLUMNS)} fields. "
            f"Received: {len(row)} ({excerpt(','.join(row))})."
        )
    times = []
    for name, text in zip(TIMES, row, strict=False):
        try:
            times.append(int(text))
        except ValueError:
            times.append(_LARGEST + 1)
        if abs(times[-1]) > _LARGEST:
            raise ValueError(
                f"`{name}` must be an integer. Received: {excerpt(text)}."
            )
    try:
        value = float(row[-1])
    except ValueError:
        raise ValueError(
            f"`value` must be a number. Received: {excerpt(row[-1])}."
        ) from None
    return (*times, row[4], row[5], value)


def line_of_row(path: str | os.PathLike, number: int) -> int:
    """The line on which a row of a CSV file ends."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        next(reader)
        rows = (row for row in reader if row)
        for _ in range(number + 1):
            next(rows)
        return reader.line_num


def _decode(data: bytes, first_line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise BadRecords(
            line,
            "this is not UTF-8 text, so not a file that a logger wrote.",
        ) from None


def excerpt(text: str, length: int = 60) -> str:
    """The beginning of a text, in quotes."""
    return repr(text if len(text) <= length else text[:length] + "...")


# NumPy's format


def write_npz(columns: Columns, path: str | os.PathLike) -> None:
    """Writes a compact file, which replaces what is there."""
    arrays = dataclasses.asdict(columns)
    for names in ("variables", "quantities"):
        arrays[names] = np.array(arrays[names], np.str_)

    def write(temporary: Path) -> None:
        # An open file, because NumPy may add an ending to a name.
        with open(temporary, "wb") as file:
            np.savez_compressed(file, version=_VERSION, **arrays)

    _atomic_files.write(Path(path), write)


def is_npz(path: str | os.PathLike) -> bool:
    """Whether it is such a file, or a damaged one, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_npz(path: str | os.PathLike) -> Columns:
    """Reads a compact file.

    Raises:
        ValueError: If it holds something else.
        OSError: If it cannot be read.
    """
    try:
        # Opened here, because NumPy does not close a damaged one. No pickles:
        # a file of records must not run code.
        with (
            open(path, "rb") as opened,
            np.load(opened, allow_pickle=False) as file,
        ):
            arrays: dict[str, Any] = {
                field.name: file[field.name]
                for field in dataclasses.fields(Columns)
            }
            if int(file["version"]) > _VERSION:
                raise ValueError("a newer version of keras_adamax wrote it")
        for names in ("variables", "quantities"):
            arrays[names] = tuple(arrays[names].tolist())
        columns = Columns(**arrays)
        _check_numbers(columns)
    except (
        KeyError,
        ValueError,
        EOFError,
        # What zipfile has of a damaged header: compressions and encryptions
        # that it does not know.
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        raise ValueError(
            f"{path}: this is not a file of records, or it is damaged ({e})."
        ) from None
    return columns


def _check_numbers(columns: Columns) -> None:
    for name, size in (
        ("moment", len(columns.moments)),
        ("variable", len(columns.variables)),
        ("quantity", len(columns.quantities)),
    ):
        numbers = getattr(columns, name)
        good = numbers.dtype.kind in "iu" and numbers.shape == (len(columns),)
        if not good or ((numbers < 0) | (numbers >= size)).any():
            raise ValueError(f"`{name}` is malformed")
