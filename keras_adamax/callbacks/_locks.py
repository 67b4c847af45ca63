"""One writer of a file at a time, in all processes of the machine."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a locked file could not be replaced
    fcntl = None


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until nobody else holds the file, which is made if need be.

    Whoever replaces the file does so last: others hold the new one then.

    Args:
        path: Path of the file.
    """
    if fcntl is None:
        yield
        return
    descriptor = _lock(path)
    try:
        yield
    finally:
        os.close(descriptor)  # that unlocks it


def _lock(path: Path) -> int:
    assert fcntl is not None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Some network file systems have no locks: better without.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever had it before may have put another file in its place.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
