"""Which process runs an attempt, and whether that process still lives.

A process of this machine is looked up by its id, so that a search that was
killed here goes on at once. Of a process elsewhere nothing is known: there
the heartbeats decide.
"""

import os
import socket
import uuid
from typing import Any

from keras_adamax._processes import has_ended, start_time
from keras_adamax._processes import machine as _machine

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
        "started": start_time(os.getpid()),
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
    if owner["pid"] == os.getpid() and owner["started"] == start_time(
        os.getpid()
    ):
        return owner["token"] not in _running_here
    return has_ended(owner["pid"], owner["started"])


def surely_lives(owner: dict[str, Any]) -> bool:
    """Whether that attempt runs in another process of this machine.

    Its signs of life need not be looked at: they are late where the processor
    or a lock is taken for long. Where the system does not say when a process
    started, the process may be another one with the same id.
    """
    return (
        not is_elsewhere(owner)
        and owner["pid"] != os.getpid()
        and bool(owner["started"])
        and owner["started"] == start_time(owner["pid"])
    )
