"""Several processes on this machine. None of them is special.

The parent starts them, waits, reports, and hands signals on. What they share
is the database and the output folder, as if each ran on a machine of its own.

Importing Keras takes most of a worker's start. The workers are therefore
started first of all, and import while the parent checks the search. They touch
nothing before it gives them their order.

Nothing here imports Keras, so that the command line can start workers before
it does.
"""

import contextlib
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keras_adamax_tuning.base import signals, user_errors
from keras_adamax_tuning.errors import ConsecutiveFailuresError, StorageError

_SECONDS_BETWEEN_LOOKS = 1.0
# Exit codes of a worker.
_INTERRUPTED, _FAILED = 130, 2
# Bytes that every pipe takes whole or not at all (POSIX's PIPE_BUF, less the
# length that `multiprocessing` puts before them): a worker that is killed while
# it sends leaves no part that its parent would wait for the rest of.
_PART = 500
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


class _Worker:
    """A process, and what it has said so far."""

    def __init__(self, process: Any, inbox: Any, orders: Any):
        self.process = process
        self._inbox = inbox
        self._orders = orders
        self.has_orders = False
        self._parts: list[bytes] = []
        self._is_open = True

    def order(self, *parts: bytes) -> None:
        """Lets it go on."""
        # One that has died is noticed by who waits for it.
        with contextlib.suppress(BrokenPipeError):
            for part in parts:
                self._orders.send_bytes(part)
        self.has_orders = True
        self._orders.close()

    def stop(self) -> None:
        """Ends it; if it has its order, as Ctrl-C does."""
        if self.has_orders:
            # On Windows there is no other way than to end it.
            self.process.terminate()
        else:
            # Signals wait until it has imported all, and there is nothing
            # that it would have to clean up.
            self.process.kill()

    def handles(self) -> list[Any]:
        """What becomes ready when it has ended, or has said something."""
        inboxes = [self._inbox] if self._is_open else []
        return [self.process.sentinel, *inboxes]

    def listen(self) -> None:
        """Reads what it has said: a pipe that is full would hold it up."""
        try:
            while self._is_open and self._inbox.poll():
                self._parts.append(self._inbox.recv_bytes())
        except (EOFError, OSError):  # it has ended
            self._is_open = False

    def failure(self) -> tuple[str, ...] | None:
        """What `_say` was given, if all of it has come."""
        if not self._parts or self._parts[-1]:
            return None
        return tuple(json.loads(b"".join(self._parts)))


class WorkersDiedError(RuntimeError):
    """All workers of a search died before it was over."""


@contextlib.contextmanager
def started(count: int, imports: str) -> Iterator[dict[int, _Worker]]:
    """Starts processes, which wait for `run_workers`.

    Those that still wait at the end of the block, because an error came first,
    are ended.

    Args:
        count: How many processes; for a single one, which is this process,
            none is started.
        imports: Name of a module that they import while they wait.
    """
    workers: dict[int, _Worker] = {}
    try:
        if count > 1:
            _start(workers, count, imports)
        yield workers
    finally:
        alive = [w for w in workers.values() if w.process.is_alive()]
        for worker in alive:
            worker.stop()
        _join(alive)


def _start(workers: dict[int, _Worker], count: int, imports: str) -> None:
    context = multiprocessing.get_context("spawn")
    with _environment(count):
        for number in range(1, count + 1):
            inbox, outbox = context.Pipe(duplex=False)
            received, orders = context.Pipe(duplex=False)
            process = context.Process(
                target=_run,
                args=(number, imports, received, outbox, os.getpid()),
                name=f"worker {number}",
            )
            with signals.held_back():
                process.start()
                workers[number] = _Worker(process, inbox, orders)
            received.close()
            outbox.close()


def run_workers(
    work: Callable[[Any, int], None],
    settings: Any,
    workers: dict[int, _Worker],
    look: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Runs `work(settings, number)` in processes, until all have ended.

    Args:
        work: Function of a module; it is imported in each process. `number`
            is the process's, from 1.
        settings: Its first argument; it is pickled.
        workers: What `started` gave for several.
        look: Called about each second, and at the end.
        say: Takes a line for the user.
    """
    if not workers:
        raise ValueError(
            "`workers` must hold a process at least. Received: workers={}. "
            "Call `work` in this process."
        )
    try:
        _order(workers, work, settings)
        failure = _wait(workers, look, say)
    except BaseException:
        _stop(workers, say)
        raise
    look()
    if failure is not None:
        raise failure


def _order(
    workers: dict[int, _Worker],
    work: Callable[[Any, int], None],
    settings: Any,
) -> None:
    # A function of its own: what is pickled may be large, and must be gone
    # while the workers run.
    #
    # The path comes first: what is pickled may be imported from there.
    order = (pickle.dumps(sys.path), pickle.dumps((work, settings)))
    for worker in workers.values():
        worker.order(*order)


def check_importable(settings: Any) -> None:
    """Checks that other processes can be given the fields of an object."""
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
    workers: dict[int, _Worker],
    look: Callable[[], None],
    say: Callable[[str], None],
) -> BaseException | None:
    running = dict(workers)
    failure: BaseException | None = None
    finished = stopped = 0
    while running:
        _listen(running.values())
        signals.check()
        for number, worker in list(running.items()):
            process = worker.process
            if process.is_alive():
                continue
            process.join()
            worker.listen()
            del running[number]
            said = worker.failure()
            if process.exitcode == 0:
                finished += 1
            elif process.exitcode == _FAILED and said is not None:
                failure = failure or user_errors.unpack(
                    f"worker {number}", *said
                )
            else:
                stopped += process.exitcode == _INTERRUPTED
                say(
                    f"worker {number} (process {process.pid}) ended early: "
                    f"{_cause(process.exitcode)}; its trial will be tried "
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


def _listen(workers: Iterable[_Worker]) -> None:
    """Waits until one of them has ended or said something, and reads that."""
    multiprocessing.connection.wait(
        [handle for worker in workers for handle in worker.handles()],
        timeout=_SECONDS_BETWEEN_LOOKS,
    )
    for worker in workers:
        worker.listen()


def _join(workers: Iterable[_Worker]) -> None:
    """Waits until all have ended, and listens: else they could wait, too."""
    while alive := [w for w in workers if w.process.is_alive()]:
        _listen(alive)
    for worker in workers:
        worker.process.join()


def _stop(workers: dict[int, _Worker], say: Callable[[str], None]) -> None:
    """Stops the workers as Ctrl-C does, and waits; a second one kills them."""
    alive = [w for w in workers.values() if w.process.is_alive()]
    for worker in alive:
        worker.stop()
    try:
        _join(alive)
    except KeyboardInterrupt:
        say("killing the workers; their trials will be tried again")
        for worker in alive:
            worker.process.kill()
        _join(alive)


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
    number: int, imports: str, orders: Any, outbox: Any, parent: int
) -> None:
    """The main function of a worker."""
    # What cannot be imported is said when it is asked for, if it ever is.
    with contextlib.suppress(Exception):
        importlib.import_module(imports)
    order = _wait_for_orders(orders, parent)
    if order is None:
        return
    try:
        signals.handle_in_worker(parent)
        # Nothing of it stays: it may hold all data.
        sys.path[:] = pickle.loads(order.pop(0))
        work, settings = pickle.loads(order.pop())
        work(settings, number)
    except KeyboardInterrupt:
        _leave(_INTERRUPTED)
    except (Exception, SystemExit) as error:
        mendable = isinstance(error, _ERRORS) or (
            # Fewer workers may have memory enough.
            not isinstance(error, MemoryError)
            and user_errors.place_of(error) is not None
        )
        if not mendable:
            raise
        _say(outbox, *user_errors.pack(error))
        _leave(_FAILED)


def _wait_for_orders(orders: Any, parent: int) -> list[bytes] | None:
    """The parts of the order; `None` if the parent is gone."""
    try:
        # A process that the parent has forked may hold the pipe open.
        while not orders.poll(_SECONDS_BETWEEN_LOOKS):
            if os.getppid() != parent:
                return None
        return [orders.recv_bytes(), orders.recv_bytes()]
    except (EOFError, OSError):
        return None


def _say(outbox: Any, *texts: str) -> None:
    """Sends texts to the parent, for `_Worker.failure`."""
    data = json.dumps(texts).encode()
    for start in range(0, len(data), _PART):
        outbox.send_bytes(data[start : start + _PART])
    outbox.send_bytes(b"")  # that was all


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
    }
    keras = sys.modules.get("keras")
    if keras is not None:  # else it is as Keras is configured
        wanted["KERAS_BACKEND"] = keras.backend.backend()
    before = dict(os.environ)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in wanted:
            if name not in before:
                del os.environ[name]
