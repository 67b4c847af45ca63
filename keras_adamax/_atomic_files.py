"""Files that appear whole or not at all, whoever else writes them.

Each is written under another name in the same folder, and renamed. That name
is random: processes of two machines, or of two containers, that share a folder
may have the same process id. It also says which process writes, so that what
a killed one has left can be told from what a living one is writing.
"""

import contextlib
import errno
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from keras_adamax import _processes

# So long after any other change in the folder nobody goes on with a file. It
# decides where the writer's machine is another one.
_SECONDS_UNTIL_ABANDONED = 86400
_NAME = re.compile(r"\.([0-9a-f]{16})-(\d+)-(\d*)-[0-9a-f]{16}\.(.+)")
# What file systems without hard links answer to one (FAT, SMB, some of FUSE).
_NO_HARD_LINKS = {
    errno.EPERM,
    errno.EACCES,
    errno.EINVAL,
    errno.EMLINK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}


def write(
    path: Path, write_file: Callable[[Path], object], durable: bool = True
) -> None:
    """Writes a file under another name, and renames it when it is complete.

    Args:
        path: Where the file shall be.
        write_file: Writes the whole file to the path it is given, which is in
            the same folder and has the same suffixes.
        durable: Whether it shall survive a loss of power, too, which costs a
            synchronization with the disk. Defaults to `True`.
    """
    with _temporary(path) as temporary:
        write_file(temporary)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    if durable:
        sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Makes `data` the content of a file, all of it or nothing of it."""
    write(path, lambda temporary: temporary.write_bytes(data))


def create(path: Path, data: bytes) -> None:
    """Makes a file with the content `data`, unless it exists.

    Of several processes that do so at the same moment one wins. The file is
    whole for the others when this returns, even if the winner was killed.

    Raises:
        OSError: If it cannot be written.
    """
    with _temporary(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)
        try:
            # Unlike a rename it fails where another process was first.
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _create_without_links(path, data)
    sync_folder(path.parent)


def _create_without_links(path: Path, data: bytes) -> None:
    # A folder is never renamed to one that has content. The first one stays,
    # so that it decides for ever.
    first = path.with_name(f".{path.name}.first")
    with temporary_folder(first) as folder:
        (folder / path.name).write_bytes(data)
        sync(folder / path.name)
        try:
            os.rename(folder, first)
        except OSError:
            if not (first / path.name).exists():
                raise
    if not path.exists():
        replace(path, (first / path.name).read_bytes())


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


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, to be renamed to it.

    What is not renamed is removed at the end, and what killed processes have
    left of theirs at the beginning.
    """
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    remove_leftovers(path)
    pid = os.getpid()
    started = _processes.start_time(pid) or ""
    writer = f"{_processes.machine()}-{pid}-{started}-{secrets.token_hex(8)}"
    # The suffixes tell Keras the format.
    temporary = path.with_name(f".{writer}.{path.name}")
    try:
        yield temporary
    finally:
        _remove(temporary)


def remove_leftovers(path: Path) -> None:
    """Removes what writers of `path` left that do not live any more."""
    if not path.parent.is_dir():
        return
    others = []
    for entry in path.parent.iterdir():
        match = _NAME.fullmatch(entry.name)
        if match is None or match[4] != path.name:
            continue
        machine, pid, started = match[1], int(match[2]), match[3]
        if machine != _processes.machine():
            others.append(entry)
        elif _processes.has_ended(pid, started):
            _remove(entry)
    if others:
        # This machine's clock may be wrong, and a file may have any time.
        times = {entry: _changed(entry) for entry in path.parent.iterdir()}
        newest = max((t for t in times.values() if t < math.inf), default=0.0)
        end = min(newest, time.time()) - _SECONDS_UNTIL_ABANDONED
        for entry in others:
            if times.get(entry, math.inf) < end:
                _remove(entry)


def _changed(path: Path) -> float:
    """When it, or what is in it, was changed; infinity if it has gone."""
    try:
        inner = path.iterdir() if path.is_dir() else ()
        return max(p.stat().st_mtime for p in (path, *inner))
    except OSError:  # another process has renamed or removed it
        return math.inf


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    # Another process may have cleaned up, too.
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
