"""What a process of a search says to who watches it."""

import multiprocessing
import sys


def note(text: str) -> None:
    """Prints a line on standard error, with the worker's name if it has one."""
    process = multiprocessing.current_process()
    who = "" if process.name == "MainProcess" else f"{process.name}: "
    print(f"{who}{text}", file=sys.stderr, flush=True)
