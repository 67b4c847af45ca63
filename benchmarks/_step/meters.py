"""The memory of a process: what is in use now, and at most since a mark."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Meter:
    """Measures bytes above those of a mark.

    Attributes:
        now: Bytes in use.
        most: The most bytes that were in use since the last `forget`.
        forget: Forgets the peak so far, where that can be.
        marked: Bytes at the mark.
    """

    now: Callable[[], int]
    most: Callable[[], int]
    forget: Callable[[], object]
    marked: int = 0

    def mark(self) -> None:
        """Measures from what is there now."""
        self.forget()
        self.marked = self.now()

    def peak(self) -> int:
        """The most bytes that were not forgotten, above those at the mark.

        What an allocator keeps for later is part of it on the CPU, and so is
        compiled code.
        """
        return self.most() - self.marked


def _host_meter() -> Meter:
    """Of the process. Only Linux can forget a peak.

    Elsewhere it is the peak since the process started.
    """

    def most() -> int:
        if sys.platform != "linux":
            import resource  # not on Windows

            # In bytes on macOS.
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.M)
        if not found:
            raise RuntimeError(f"{_STATUS} has no VmHWM.")
        return int(found[1]) * 1024

    def forget() -> None:
        if sys.platform == "linux":
            _CLEAR_REFS.write_text("5")

    return Meter(most, most, forget)


def _torch_meter() -> Meter:
    """Of torch's allocator on CUDA."""
    from torch import cuda

    def most() -> int:
        cuda.synchronize()
        return cuda.max_memory_allocated()

    def forget() -> None:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()

    return Meter(cuda.memory_allocated, most, forget)


def _jax_meter() -> Meter:
    """Of JAX's allocator, which never forgets a peak."""
    import jax

    stats = jax.devices()[0].memory_stats
    return Meter(
        lambda: stats()["bytes_in_use"],
        lambda: stats()["peak_bytes_in_use"],
        lambda: None,
    )


def meter(backend: str, accelerator: str | None) -> Meter:
    """What measures the memory where the optimizers run.

    Args:
        backend: Keras's backend.
        accelerator: Its name, or `None` for the CPU.
    """
    on_device = {"torch": _torch_meter, "jax": _jax_meter}
    if accelerator is not None and backend in on_device:
        return on_device[backend]()
    return _host_meter()
