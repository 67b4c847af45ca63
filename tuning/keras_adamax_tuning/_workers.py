"""Several processes on this machine. None of them is special.

The parent starts them, waits, reports, and hands signals on. What they share
is the database and the output folder, as if each ran on a machine of its own.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_adamax_tuning import _signals, _user_errors
from keras_adamax_tuning._errors import (
    ConsecutiveFailuresError,
    StorageError,
)

_SECONDS_BETWEEN_LOOKS = 1.0
# Exit codes of a worker.
_INTERRUPTED, _FAILED = 130, 2
# Errors that a worker hands to its parent, beside those of the user's own
# functions: what a user can mend.
_ERRORS = (
    ConsecutiveFailuresError,
    ImportError,
    OSError,
    StorageError,
    TypeError,
    ValueError,
)


class WorkersDiedError(RuntimeError):
    """All workers of a search died before it was over."""


def run_workers(
    work: Callable[[Any], None],
    settings: Any,
    count: int,
    look: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Runs `work(settings)` in `count` processes, until all have ended.

    Args:
        work: Function of a module; it is imported in each process.
        settings: Its argument; it is pickled.
        count: How many processes.
        look: Called about each second, and at the end.
        say: Takes a line for the user.

    Raises:
        KeyboardInterrupt: On SIGINT or SIGTERM, after the workers stopped.
        Exception: The first error of a worker that is no accident.
        WorkersDiedError: If all workers died.
    """
    _check_importable(settings)
    context = multiprocessing.get_context("spawn")
    workers: dict[int, Any] = {}
    inboxes: dict[int, Any] = {}
    with _environment(count):
        for number in range(1, count + 1):
            inboxes[number], outbox = context.Pipe(duplex=False)
            worker = context.Process(
                target=_run,
                args=(work, settings, outbox, os.getpid()),
                name=f"worker {number}",
            )
            with _signals.held_back():
                worker.start()
            workers[number] = worker
            outbox.close()
    try:
        failure = _wait(workers, inboxes, look, say)
    except BaseException:
        _stop(workers, say)
        raise
    look()
    if failure is not None:
        raise failure


def _check_importable(settings: Any) -> None:
    main = sys.modules["__main__"]
    for name, value in vars(settings).items():
        try:
            pickle.dumps(value)
            if getattr(value, "__module__", "") == "__main__" and not (
                hasattr(main, "__file__")
            ):
                raise TypeError("it is defined in a notebook or a prompt")
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"`{name}` must be something that other processes can "
                "import, with more than one worker: a function of a module, "
                f"or data. Received: {name}={value!r} ({error})."
            ) from error


def _wait(
    workers: dict[int, Any],
    inboxes: dict[int, Any],
    look: Callable[[], None],
    say: Callable[[str], None],
) -> BaseException | None:
    running = dict(workers)
    failure: BaseException | None = None
    finished = stopped = 0
    while running:
        multiprocessing.connection.wait(
            [worker.sentinel for worker in running.values()],
            timeout=_SECONDS_BETWEEN_LOOKS,
        )
        _signals.check()
        for number, worker in list(running.items()):
            if worker.is_alive():
                continue
            worker.join()
            del running[number]
            if worker.exitcode == 0:
                finished += 1
            elif worker.exitcode == _FAILED and inboxes[number].poll():
                said = inboxes[number].recv()
                failure = failure or _user_errors.unpack(
                    f"worker {number}", *said
                )
            else:
                stopped += worker.exitcode == _INTERRUPTED
                say(
                    f"worker {number} (process {worker.pid}) ended early: "
                    f"{_cause(worker.exitcode)}; its trial will be tried "
                    f"again, {len(running)} of {len(workers)} workers go on"
                )
        if failure is not None:
            # The others have the same arguments, so the same error is ahead
            # of them, or they know of it: they end by themselves.
            _stop(running, say)
            return failure
        look()
    if stopped == len(workers):
        raise KeyboardInterrupt("all workers were stopped")
    if not finished:
        return WorkersDiedError(
            f"All {len(workers)} workers died before the search was over. "
            "Run the same again to go on; if they were killed for lack of "
            "memory, with fewer workers. (A script that starts workers needs "
            'its `if __name__ == "__main__":`.)'
        )
    return None


def _stop(workers: dict[int, Any], say: Callable[[str], None]) -> None:
    """Stops the workers as Ctrl-C does, and waits; a second one kills them."""
    alive = [worker for worker in workers.values() if worker.is_alive()]
    for worker in alive:
        # On Windows there is no other way than to end it.
        worker.terminate()
    try:
        for worker in alive:
            worker.join()
    except KeyboardInterrupt:
        say("killing the workers; their trials will be tried again")
        for worker in alive:
            worker.kill()
        for worker in alive:
            worker.join()


def _cause(exitcode: int) -> str:
    if exitcode == _INTERRUPTED:
        return "stopped by a signal"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"killed by signal {-exitcode}"


def _run(
    work: Callable[[Any], None], settings: Any, outbox: Any, parent: int
) -> None:
    """The main function of a worker."""
    try:
        _signals.handle_in_worker(parent)
        work(settings)
    except KeyboardInterrupt:
        _leave(_INTERRUPTED)
    except (Exception, SystemExit) as error:
        mendable = isinstance(error, _ERRORS) or (
            # Fewer workers may have memory enough.
            not isinstance(error, MemoryError)
            and _user_errors.place_of(error) is not None
        )
        if not mendable:
            raise
        outbox.send(_user_errors.pack(error))
        _leave(_FAILED)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


@contextlib.contextmanager
def _environment(workers: int) -> Iterator[None]:
    """Divides the cores among the workers, unless the user has done so.

    Workers that each take all cores wait for one another's threads.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    threads = str(max(1, cores // workers))
    wanted = {
        "OMP_NUM_THREADS": threads,  # PyTorch
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,  # NumPy
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": threads,
        "NPROC": threads,  # JAX
        "KERAS_BACKEND": keras.backend.backend(),
    }
    before = dict(os.environ)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in wanted:
            if name not in before:
                del os.environ[name]
