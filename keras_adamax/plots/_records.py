"""Reading, checking and writing the long form that the callbacks write."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_adamax import _atomic_files, record_files
from keras_adamax import records as _blocks
from keras_adamax.record_columns import COLUMNS, TIMES, Columns
from keras_adamax.record_files import excerpt

_TEXTS = ("variable", "quantity")

# Endings of the files that records are written to.
RECORD_FORMATS = (".csv", ".npz")

Source = str | os.PathLike[str] | Mapping[str, Any] | Columns


def read_records(
    source: Source, run: int | None = None
) -> dict[str, np.ndarray]:
    """Reads records from a file, or checks those of a callback.

    A row is one value: of one variable, or, where `variable` is empty, of
    all weights together or a scalar of Keras's `logs`.

    Args:
        source: Path of a CSV file that a logger wrote, or of a `.npz` file
            that `write_records` wrote; or the `records` of a logger: a
            mapping of the columns `run`, `epoch`, `batch`, `step`,
            `variable`, `quantity` and `value` to sequences of equal length.
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
    return load(source, run).to_dict()


def write_records(records: Source, path: str | os.PathLike[str]) -> None:
    """Writes records to a CSV file, or to a compact `.npz` file.

    The `.npz` file of a large model is some ten times smaller than the CSV
    file, and is read in a tenth of the time. Nothing is lost: the CSV file
    that is written from it equals the first one. Loggers write CSV files.

    Args:
        records: The `records` of a logger, or the path of a file.
        path: File to write; `.csv` or `.npz`. An existing one is replaced.

    Raises:
        ValueError: If the records are malformed, or the ending of `path` is
            another.
        OSError: If `path` cannot be written.

    Example:
        >>> write_records("run.csv", "run.npz")
        >>> records = read_records("run.npz")
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in RECORD_FORMATS:
        raise ValueError(
            f"A file of records must end in {', '.join(RECORD_FORMATS)}. "
            f"Received: {path}."
        )
    write(load(records), path)


def write(columns: Columns, path: Path) -> None:
    """Writes records to a file whose ending is one of the formats."""
    if path.suffix.lower() == ".npz":
        record_files.write_npz(columns, path)
        return
    blocks = _blocks.to_blocks(columns)
    _atomic_files.write(path, lambda temporary: _blocks.save(blocks, temporary))


def load(source: Source, run: int | None = None) -> Columns:
    """Reads and checks records, as `read_records` does."""
    if isinstance(source, Columns):
        columns = source
    elif isinstance(source, Mapping):
        columns = _from_mapping(source)
    elif isinstance(source, str | os.PathLike):
        columns = _from_file(Path(source))
    else:
        raise TypeError(
            "Records must be the path of a CSV file or a mapping of columns "
            "to arrays, such as the `records` of a logger. "
            f"Received: {type(source).__name__}."
        )
    if run is None:
        return columns
    chosen = columns.moments[columns.moment, 0] == run
    if not chosen.any():
        runs = np.unique(columns.moments[:, 0])
        have = ", ".join(map(str, runs)) or "none"
        raise ValueError(
            f"There are no records of run {run}. Recorded runs: {have}."
        )
    return columns.rows(chosen)


def _from_mapping(source: Mapping[str, Any]) -> Columns:
    missing = [name for name in COLUMNS if name not in source]
    if missing:
        raise ValueError(
            f"Records must have the columns {', '.join(COLUMNS)}. "
            f"Missing: {', '.join(missing)}."
        )
    arrays = {name: np.asarray(source[name]) for name in COLUMNS}
    shapes = {name: column.shape for name, column in arrays.items()}
    if len(set(shapes.values())) > 1 or arrays["run"].ndim != 1:
        raise ValueError(
            "The columns of records must be one-dimensional and of equal "
            f"length. Received: {shapes}."
        )
    for name, column in arrays.items():
        if name in _TEXTS:
            good = column.dtype.kind in "UT" or all(
                isinstance(text, str) for text in column.tolist()
            )
            want, dtype = "strings", np.str_
        elif name in TIMES:
            good, want, dtype = column.dtype.kind in "iu", "integers", np.int64
        else:
            good, want, dtype = column.dtype.kind in "fiu", "numbers", float
        if column.size and not good:
            raise ValueError(
                f"The column `{name}` of records must hold {want}. "
                f"Received: dtype={column.dtype}."
            )
        arrays[name] = column.astype(dtype, copy=False)
    *times, variable, quantity, value = arrays.values()
    columns = Columns.of(times, variable, quantity, value)
    _check(columns, lambda row: f"Row {row} of the records")
    return columns


def _from_file(path: Path) -> Columns:
    if record_files.is_npz(path):
        columns = record_files.read_npz(path)
        _check(columns, lambda row: f"{path}, row {row}")
        return columns
    try:
        columns, torn = record_files.read_csv(path)
    except record_files.BadRecords as error:
        raise ValueError(f"{path}, {error}") from None
    _check(
        columns,
        lambda row: f"{path}, line {record_files.line_of_row(path, row)}",
    )
    if torn is not None:
        warnings.warn(
            f"{path}, line {torn}: the last line has no line "
            "ending, so it was cut off (as in a crash). It is left out.",
            stacklevel=4,
        )
    return columns


def _check(columns: Columns, where: Callable[[int], str]) -> None:
    """Refuses what no logger writes; of other quantities anything may come."""
    for place, name in enumerate(TIMES):
        if (columns.moments[:, place] < 0).any():
            wrong = columns.moments[columns.moment, place] < 0
            _refuse(columns, wrong, name, "must not be negative", where)
    rules = [
        # The slack is for rates that were summed up in float32.
        ("clip_rate", 1 + 1e-6, "of a rate must be in the range [0, 1]"),
        ("spike_rate", 1 + 1e-6, "of a rate must be in the range [0, 1]"),
        ("clipped_share", 1 + 1e-6, "of a share must be in the range [0, 1]"),
        ("gradient_norm", np.inf, "of a norm must not be negative"),
        ("update_norm", np.inf, "of a norm must not be negative"),
        ("nonfinite_elements", np.inf, "of elements must not be negative"),
        ("spikes", np.inf, "of spikes must not be negative"),
        ("weight_delta", np.inf, "of a norm must not be negative"),
        ("weight_delta_ratio", np.inf, "of a norm must not be negative"),
    ]
    if (number := columns.number("")) >= 0:
        wrong = columns.quantity == number
        _refuse(columns, wrong, "quantity", "must not be empty", where)
    value = columns.value
    for quantity, high, rule in rules:
        low = -1e-6 if high < np.inf else 0
        # NaN compares false, so it passes: it is a value that can be recorded.
        wrong = (value < low) | (value > high)
        if wrong.any():
            wrong &= columns.quantity == columns.number(quantity)
            _refuse(columns, wrong, "value", rule, where)


def _refuse(
    columns: Columns,
    wrong: np.ndarray,
    name: str,
    rule: str,
    where: Callable[[int], str],
) -> None:
    if not wrong.any():
        return
    row = int(np.argmax(wrong))
    received = columns.rows(np.array([row])).to_dict()[name][0]
    raise ValueError(
        f"{where(row)}: `{name}` {rule}. Received: {excerpt(str(received))}."
    )
