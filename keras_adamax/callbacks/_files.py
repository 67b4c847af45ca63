"""Files that survive a crash: replaced in one rename, and on the disk."""

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Makes `data` the content of a file, all of it or nothing of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Waits until the file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until renames within the folder are on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        sync(folder)
