"""Writing files so that a reader sees the old one or the new one, whole."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(
    path: Path, write: Callable[[Path], None], durable: bool = True
) -> None:
    """Writes a file under another name, and renames it when it is complete.

    Args:
        path: Where the file shall be.
        write: Writes the whole file to the path it is given, which is in the
            same folder and has the same suffixes.
        durable: Whether it shall survive a loss of power, too, which costs a
            synchronization with the disk. Defaults to `True`.
    """
    # Each process has its own; the suffixes tell Keras the format.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        if durable:
            _synchronize(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable and os.name == "posix":
        _synchronize(path.parent)


def _synchronize(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
