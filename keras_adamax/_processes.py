"""Whether another process still lives, as far as one can know here.

A process of this machine is looked up by its id. Of a process elsewhere
nothing is known.
"""

import functools
import hashlib
import os
import socket
from pathlib import Path


@functools.cache
def machine() -> str:
    """Names where process ids mean the same as here: 16 hexadecimal digits."""
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


def start_time(pid: int) -> str | None:
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


def has_ended(pid: int, started: str | None) -> bool:
    """Whether a process of this machine is gone.

    Args:
        pid: Its process id.
        started: What `start_time` returned while it lived.
    """
    if os.name != "posix":  # elsewhere a look at a process would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # Another user's: the system may hide when it started.
        return start_time(pid) not in (None, started)
    now = start_time(pid)
    # A zombie's parent has not looked yet; it does nothing any more.
    return now is None or now != started
