"""Which process runs an attempt, and whether that process still lives.

A process of this machine is looked up by its id, so that a search that was
killed here goes on at once. Of a process elsewhere nothing is known: there
the heartbeats decide.
"""

import functools
import hashlib
import os
import socket
import uuid
from pathlib import Path
from typing import Any

# The attempts that run in this process.
_running_here: set[str] = set()


def claim() -> dict[str, Any]:
    """Says that this process runs an attempt, until `release`."""
    token = uuid.uuid4().hex
    _running_here.add(token)
    return {
        "machine": _machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "token": token,
    }


def release(owner: dict[str, Any]) -> None:
    """Says that the attempt does not run any more."""
    _running_here.discard(owner["token"])


def is_elsewhere(owner: dict[str, Any]) -> bool:
    """Whether the attempt runs on another machine, or in another container."""
    return owner["machine"] != _machine()


def is_surely_dead(owner: dict[str, Any]) -> bool:
    """Whether that attempt runs nowhere any more, for all one can know here."""
    if is_elsewhere(owner):
        return False
    if owner["pid"] == os.getpid() and owner["started"] == _start_time(
        os.getpid()
    ):
        return owner["token"] not in _running_here
    if os.name != "posix":  # elsewhere a look at a process would end it
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _start_time(owner["pid"])
    # A zombie's parent has not looked yet; it does nothing any more.
    return now is None or now != owner["started"]


@functools.cache
def _machine() -> str:
    parts = [socket.gethostname()]
    # Containers may share a host name, but have process ids of their own.
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(
                os.readlink(path)
                if os.path.islink(path)
                else Path(path).read_text().strip()
            )
        except OSError:
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _start_time(pid: int) -> str | None:
    """When a process started; "" where the system does not say.

    `None` if the process is gone, or is a zombie.
    """
    if not os.path.isdir("/proc/self"):
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return None
    state, *others = fields.split()
    return None if state in "ZX" else others[18]
