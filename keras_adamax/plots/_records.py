"""Reading and checking the long form that the callbacks write."""

import csv
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("run", "epoch", "batch", "step", "variable", "quantity", "value")
_INTEGERS = COLUMNS[:4]
_TEXTS = ("variable", "quantity")

Records = dict[str, np.ndarray]
Source = str | os.PathLike[str] | Mapping[str, Any]


def read_records(source: Source, run: int | None = None) -> Records:
    """Reads records from a CSV file, or checks those of a callback.

    A row is one value: of one variable, or, where `variable` is empty, of
    all weights together or a scalar of Keras's `logs`.

    Args:
        source: Path of a CSV file that a logger wrote, or the `records` of
            a logger: a mapping of the columns `run`, `epoch`, `batch`,
            `step`, `variable`, `quantity` and `value` to sequences of
            equal length.
        run: Integer or None. Keep only the rows of this call of `fit`
            (0 is the first). Defaults to `None`, which keeps all.

    Returns:
        A dictionary of the seven columns as 1-D NumPy arrays: int64 for the
        first four, strings for `variable` and `quantity`, float64 for
        `value`.

    Raises:
        ValueError: If a column is missing or something in it is malformed,
            with the file's name and the line; if there is no run `run`.
        TypeError: If `source` is neither a path nor a mapping.
        OSError: If the file cannot be read.

    A last line without a line ending was cut off in the middle, as a crash
    leaves it: it is left out, with a warning.

    Example:
        >>> records = read_records(
        ...     {
        ...         "run": [0, 0],
        ...         "epoch": [0, 1],
        ...         "batch": [50, 50],
        ...         "step": [50, 100],
        ...         "variable": ["", ""],
        ...         "quantity": ["clip_rate", "clip_rate"],
        ...         "value": [0.84, 0.02],
        ...     }
        ... )
        >>> float(records["value"].max())
        0.84
    """
    if isinstance(source, Mapping):
        records = _from_mapping(source)
    elif isinstance(source, str | os.PathLike):
        records = _from_file(Path(source))
    else:
        raise TypeError(
            "Records must be the path of a CSV file or a mapping of columns "
            "to arrays, such as the `records` of a logger. "
            f"Received: {type(source).__name__}."
        )
    if run is not None:
        chosen = records["run"] == run
        if not chosen.any():
            have = ", ".join(map(str, np.unique(records["run"]))) or "none"
            raise ValueError(
                f"There are no records of run {run}. Recorded runs: {have}."
            )
        records = {name: column[chosen] for name, column in records.items()}
    return records


def _from_mapping(source: Mapping[str, Any]) -> Records:
    missing = [name for name in COLUMNS if name not in source]
    if missing:
        raise ValueError(
            f"Records must have the columns {', '.join(COLUMNS)}. "
            f"Missing: {', '.join(missing)}."
        )
    records = {name: np.asarray(source[name]) for name in COLUMNS}
    shapes = {name: column.shape for name, column in records.items()}
    if len(set(shapes.values())) > 1 or records["run"].ndim != 1:
        raise ValueError(
            "The columns of records must be one-dimensional and of equal "
            f"length. Received: {shapes}."
        )
    for name, column in records.items():
        if name in _TEXTS:
            good = column.dtype.kind in "UT" or all(
                isinstance(text, str) for text in column.tolist()
            )
            want, dtype = "strings", np.str_
        elif name in _INTEGERS:
            good, want, dtype = column.dtype.kind in "iu", "integers", np.int64
        else:
            good, want, dtype = column.dtype.kind in "fiu", "numbers", float
        if column.size and not good:
            raise ValueError(
                f"The column `{name}` of records must hold {want}. "
                f"Received: dtype={column.dtype}."
            )
        records[name] = column.astype(dtype)
    _check(records, lambda row: f"Row {row} of the records")
    return records


def _from_file(path: Path) -> Records:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    try:
        text = data[:whole].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: this is not UTF-8 text, so not a file "
            "that a logger wrote."
        ) from None
    rows, lines = _rows(path, text)

    def where(row: int) -> str:
        return f"{path}, line {lines[row]}"

    columns = {
        name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)
    }
    records = {
        name: np.array(column, dtype=np.str_)
        if name in _TEXTS
        else _numbers(name, column, where)
        for name, column in columns.items()
    }
    _check(records, where)
    if whole < len(data):
        line = data.count(b"\n") + 1
        warnings.warn(
            f"{path}, line {line}: the last line has no line "
            "ending, so it was cut off (as in a crash). It is left out.",
            stacklevel=3,
        )
    return records


def _rows(path: Path, text: str) -> tuple[list[list[str]], list[int]]:
    """The rows below the header, and the line that each one ends on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines = [], []
    try:
        header = next(reader, [])
        if tuple(header) != COLUMNS:
            raise ValueError(
                f"{path}, line 1: the header must be {','.join(COLUMNS)}. "
                f"Received: {_excerpt(','.join(header))}."
            )
        for row in reader:
            if len(row) == len(COLUMNS):
                rows.append(row)
                lines.append(reader.line_num)
            elif row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: a row must have "
                    f"{len(COLUMNS)} fields. Received: {len(row)} "
                    f"({_excerpt(','.join(row))})."
                )
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: this is not CSV ({error})."
        ) from None
    return rows, lines


def _numbers(
    name: str, column: Sequence[str], where: Callable[[int], str]
) -> np.ndarray:
    """Converts a column in one call; looks for the culprit if that fails."""
    dtype = np.int64 if name in _INTEGERS else np.float64
    try:
        return np.array(column, dtype=np.str_).astype(dtype)
    except (ValueError, OverflowError):
        for row, text in enumerate(column):
            try:
                np.array([text]).astype(dtype)
            except (ValueError, OverflowError):
                kind = "an integer" if name in _INTEGERS else "a number"
                raise ValueError(
                    f"{where(row)}: `{name}` must be {kind}. "
                    f"Received: {_excerpt(text)}."
                ) from None
        raise


def _check(records: Records, where: Callable[[int], str]) -> None:
    quantity, value = records["quantity"], records["value"]
    # NaN compares false, so it passes: it is a value that can be recorded.
    rate = (quantity == "clip_rate") | (quantity == "spike_rate")
    norm = (quantity == "weight_delta") | (quantity == "weight_delta_ratio")
    rules = [
        (name, records[name] < 0, "must not be negative") for name in _INTEGERS
    ]
    rules += [
        ("quantity", quantity == "", "must not be empty"),
        # The slack is for rates that were summed up in float32.
        (
            "value",
            rate & ((value < -1e-6) | (value > 1 + 1e-6)),
            "of a rate must be in the range [0, 1]",
        ),
        (
            "value",
            (quantity == "spikes") & (value < 0),
            "of spikes must not be negative",
        ),
        ("value", norm & (value < 0), "of a norm must not be negative"),
    ]
    for name, wrong, rule in rules:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{where(row)}: `{name}` {rule}. "
                f"Received: {_excerpt(str(records[name][row]))}."
            )


def _excerpt(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[:length] + "...")
