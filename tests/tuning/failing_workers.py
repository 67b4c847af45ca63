"""Workers that fail in a way that is hard to tell; run as a script.

`python -m tests.tuning.failing_workers NAME FOLDER` runs two workers of the
function NAME, and prints what `run_workers` raised as JSON.
"""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

from keras_adamax_tuning.running import worker_processes

TEXT = "x" * 200_000 + " is the end"


def leaves_a_mark(folder, number):
    """It does not fail."""
    (folder / f"{number} {os.getpid()}").touch()


def long_text(settings, number):
    raise ValueError(TEXT)


def both_long_texts(settings, number):
    """Neither sends before both are about to."""
    (settings.folder / f"{os.getpid()}").touch()
    while len(list(settings.folder.iterdir())) < 2:
        time.sleep(0.01)
    raise ValueError(TEXT)


def long_traceback(settings, number):
    # One level for each cause, each with a text of its own.
    error = ValueError(TEXT[:50_000])
    for number in range(10):
        try:
            raise ValueError(f"{number}" * 50_000) from error
        except ValueError as new:
            error = new
    raise ValueError("the last of ten") from error


class Unpicklable(ValueError):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.lock = open(os.devnull)  # noqa: SIM115

    def __reduce__(self):
        raise TypeError("cannot be pickled")


def unpicklable(settings, number):
    raise Unpicklable("this", "that")


class Mute(ValueError):
    def __str__(self):
        raise RuntimeError("no text")


def mute(settings, number):
    raise Mute


def surrogates(settings, number):
    raise ValueError("\udcff a file's name")


def _is_first(settings):
    try:
        (settings.folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def killed_while_sending(settings, number):
    if not _is_first(settings):
        return
    say = worker_processes._say

    class Outbox:
        def __init__(self, outbox):
            self.outbox, self.count = outbox, 0

        def send_bytes(self, data):
            self.outbox.send_bytes(data)
            self.count += 1
            if self.count == 100:
                os.kill(os.getpid(), signal.SIGKILL)

    worker_processes._say = lambda outbox, *texts: say(Outbox(outbox), *texts)
    raise ValueError(TEXT)


def killed_with_a_child_that_lives(settings, number):
    """A data loader, say: it holds the pipe open."""
    if not _is_first(settings):
        return
    if os.fork() == 0:
        while not (settings.folder / "over").exists():
            time.sleep(0.05)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def main():
    name, folder = sys.argv[1], Path(sys.argv[2])
    # Of the module, so that the workers can import it.
    from tests.tuning import failing_workers

    said, raised = [], None
    try:
        with worker_processes.started(2, failing_workers.__name__) as workers:
            worker_processes.run_workers(
                getattr(failing_workers, name),
                types.SimpleNamespace(folder=folder),
                workers,
                lambda: None,
                said.append,
            )
    except Exception as error:
        raised = error
    (folder / "over").touch()
    notes = getattr(raised, "__notes__", [])
    print(json.dumps([type(raised).__name__, str(raised), notes, said]))


if __name__ == "__main__":
    main()
