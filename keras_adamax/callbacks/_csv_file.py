"""The CSV file that loggers append to, several of them to one if need be."""

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from keras_adamax import _atomic_files
from keras_adamax.callbacks import _locks
from keras_adamax.records import (
    HEADER,
    Block,
    Moment,
    from_lines,
    to_lines,
)

# The scalars that were written last to each file, so that two loggers on one
# file do not both write the loss of one moment.
_last_scalars: dict[Path, tuple[Moment, set[str]]] = {}

_TAIL = 2**15


class Tail(NamedTuple):
    """The end of a file: the number of its last run, and some of its names."""

    run: int | None
    variables: tuple[str, ...]


class CsvFile:
    """Appends records, each with one write, so that lines are never torn.

    Several loggers may write to one file, also of several processes: they
    wait for one another (on Windows they do not).

    The file is opened for each record only: nothing stays open that a copy
    of the logger would share or a crash would lose.

    Args:
        path: Path of the file.
        owner: Name of the logger, for messages.
    """

    def __init__(self, path: str | os.PathLike, owner: str):
        self.path = Path(os.path.abspath(path))
        self._owner = owner
        self._pending = b""
        self._has_warned = False

    def prepare(self) -> Tail:
        """Makes sure that records can be appended.

        Missing folders are made, and a last line that a crash has torn is
        removed.

        Raises:
            ValueError: If the file holds something else.
            OSError: If it cannot be written.
        """
        self._pending = b""
        self._has_warned = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise OSError(errno.EINVAL, "This is no regular file")
            with open(self.path, "ab"):
                pass
            self._write_header()
            return self._read_tail()
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{self._owner} cannot write its records there: "
                f"{error.strerror}. Free or change the place, or give another "
                "`filename`",
                str(self.path),
            ) from error

    def _write_header(self) -> None:
        header = HEADER.encode()
        with _locks.exclusive(self.path):
            with open(self.path, "rb") as file:
                start = file.read(2**12)
            if header.startswith(start):  # new, or torn in the header
                _atomic_files.replace(self.path, header)
                return
        first, _, _ = start.partition(b"\n")
        if first.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r") != header.rstrip():
            raise ValueError(
                f"{self._owner} cannot append to {self.path}: the file does "
                "not hold records. Its first line must be "
                f"{HEADER.rstrip()!r}. Received: "
                f"{first[:80].decode(errors='replace')!r}. Give another "
                "`filename`."
            )

    def _read_tail(self) -> Tail:
        with _locks.exclusive(self.path):
            size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                start = max(0, size - _TAIL)
                file.seek(start)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                self._keep_first(start + whole)
        # Without the header, or the line that the window cuts.
        text = self._decode(data[data.find(b"\n") + 1 : whole])
        blocks = from_lines(text, f"{self.path} (at its end)")
        if not blocks:
            return Tail(None, ())
        run = self._last_run()
        names = {
            key.variable: None
            for block in blocks
            if block.moment.run == blocks[-1].moment.run
            for key in block.keys
            if key.variable
        }
        return Tail(run, tuple(names))

    def _last_run(self) -> int:
        # The largest may stand anywhere: a run that was resumed is written
        # behind those that were begun meanwhile.
        with open(self.path, "rb") as file:
            numbers = {line.partition(b",")[0] for line in file}
        return max(int(number) for number in numbers if number.isdigit())

    def _decode(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._owner} cannot append to {self.path}: the file does "
                f"not hold records, but {error}. Give another `filename`."
            ) from error

    def size(self) -> int | None:
        """The number of bytes in the file, if it has not been taken away."""
        return self.path.stat().st_size if self.path.exists() else None

    def pending(self) -> str:
        """Lines that could not be written so far."""
        return self._pending.decode()

    def read(self) -> list[Block]:
        """All records in the file."""
        _, _, text = self._decode(self.path.read_bytes()).partition("\n")
        return from_lines(text, str(self.path), first_line=2)

    def keep(self, condition: Callable[[Moment], bool]) -> list[Block]:
        """Removes rows, and returns those that stay; all in one rename."""
        with _locks.exclusive(self.path):
            blocks = self.read()
            kept = [block for block in blocks if condition(block.moment)]
            if len(kept) < len(blocks):
                text = HEADER + "".join(map(to_lines, kept))
                _atomic_files.replace(self.path, text.encode())
        return kept

    def _keep_first(self, size: int) -> None:
        with open(self.path, "rb") as file:
            data = file.read(size)
        _atomic_files.replace(self.path, data)

    def restore(self, size: int, pending: str, run: int) -> bool:
        """Removes a run's rows after the first `size` bytes.

        Args:
            size: Bytes that the file had when a backup was made.
            pending: Lines that were still to write then.
            run: The run. What others have written since stays.

        Returns:
            Whether that was possible: the file may be gone, or another one.
        """
        with _locks.exclusive(self.path):
            data = self.path.read_bytes()
            if len(data) < size or data[size - 1 : size] != b"\n":
                return False
            later = from_lines(
                self._decode(data[size:]), f"{self.path} (at its end)"
            )
            kept = [block for block in later if block.moment.run != run]
            if len(kept) < len(later):
                text = "".join(map(to_lines, kept))
                _atomic_files.replace(self.path, data[:size] + text.encode())
        self._pending = pending.encode()
        return True

    def append(self, block: Block) -> None:
        """Writes the values of a moment, and what could not be written before.

        A scalar of all weights together or of the logs is written once a
        moment, however many loggers bring it. If the disk does not take the
        lines, there is one warning, and they are written when it does.
        """
        lines = to_lines(self._new_rows(block))
        self._pending += lines.encode()
        self.flush()

    def _new_rows(self, block: Block) -> Block:
        moment, written = _last_scalars.get(self.path, (None, set()))
        if moment is not None and block.moment < moment:
            return block  # of a batch between two records
        if moment != block.moment:
            written = set()
        rows = [
            (key, value)
            for key, value in zip(block.keys, block.values, strict=True)
            if key.variable or key.quantity not in written
        ]
        written |= {key.quantity for key in block.keys if not key.variable}
        _last_scalars[self.path] = (block.moment, written)
        if len(rows) == len(block.keys):
            return block
        return Block(
            block.moment,
            tuple(key for key, _ in rows),
            tuple(value for _, value in rows),
        )

    def forget_scalars(self) -> None:
        """A new `fit` begins: nothing has been written in it."""
        _last_scalars.pop(self.path, None)

    def flush(self) -> None:
        """Tries to write what is still to write."""
        if not self._pending:
            return
        try:
            self._append_whole(self._pending)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{self._owner} cannot write to {self.path}: {error}. "
                    "Training goes on. The records are kept in memory and are "
                    "written as soon as the file takes them.",
                    stacklevel=2,
                )
            return
        self._pending = b""

    def _append_whole(self, data: bytes) -> None:
        with (
            _locks.exclusive(self.path),
            open(self.path, "a+b", buffering=0) as file,
        ):
            descriptor = file.fileno()
            before = os.fstat(descriptor).st_size
            if before == 0:  # somebody has moved the file away
                data = HEADER.encode() + data
            left = data
            try:
                while left:  # once, unless the disk is about to be full
                    left = left[self._write(descriptor, left) :]
            except OSError:
                file.seek(before)
                if data.startswith(file.read()):  # and all of it is ours
                    os.ftruncate(descriptor, before)
                raise

    @staticmethod
    def _write(descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def sync(self) -> None:
        """Waits until the file is on the disk."""
        if self.path.exists():
            _atomic_files.sync(self.path)
