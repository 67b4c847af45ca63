"""The memory of a process: what is resident now, and at most since a mark."""

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.M)
    if not found:
        raise RuntimeError(f"{_STATUS} has no {field}.")
    return int(found[1]) * 1024


class HostMemory:
    """Of the process. Only Linux can forget a peak.

    Elsewhere it is the peak since the process started.
    """

    def __init__(self) -> None:
        self._is_linux = sys.platform == "linux"
        self._start = self._peak()

    def _peak(self) -> int:
        if self._is_linux:
            return _status("VmHWM")
        import resource  # not on Windows

        # In bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def mark(self) -> None:
        """Measures from what is there now."""
        self.forget()
        self._start = self._peak()

    def forget(self) -> None:
        """Forgets the peak so far, where that can be."""
        if self._is_linux:
            _CLEAR_REFS.write_text("5")

    def peak(self) -> int:
        """The most bytes that were not forgotten, above those at the mark.

        What an allocator keeps for later, and compiled code, is part of it.
        """
        return self._peak() - self._start


class TorchMemory:
    """Of torch's allocator on CUDA."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self._start = 0

    def mark(self) -> None:
        """As of `HostMemory`."""
        self.forget()
        self._start = self._cuda.memory_allocated()

    def forget(self) -> None:
        """As of `HostMemory`."""
        self._cuda.synchronize()
        self._cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """As of `HostMemory`."""
        self._cuda.synchronize()
        return self._cuda.max_memory_allocated() - self._start


class JaxMemory:
    """Of JAX's allocator, which never forgets a peak."""

    def __init__(self) -> None:
        import jax

        self._device = jax.devices()[0]
        self._start = 0

    def mark(self) -> None:
        """As of `HostMemory`."""
        self._start = self._device.memory_stats()["bytes_in_use"]

    def forget(self) -> None:
        """It cannot."""

    def peak(self) -> int:
        """As of `HostMemory`."""
        most = self._device.memory_stats()["peak_bytes_in_use"]
        return most - self._start


def meter(
    backend: str, accelerator: str | None
) -> HostMemory | TorchMemory | JaxMemory:
    """What measures the memory where the optimizers run.

    Args:
        backend: Keras's backend.
        accelerator: Its name, or `None` for the CPU.
    """
    if accelerator is not None and backend == "torch":
        return TorchMemory()
    if accelerator is not None and backend == "jax":
        return JaxMemory()
    return HostMemory()
