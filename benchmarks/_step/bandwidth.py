"""How fast this machine moves memory, as a measure for optimizer steps.

On the CPU all cores run NumPy side by side over arrays that no cache holds,
each over its own part. Three patterns, counted as what the program asks for,
in bytes for each float32 element:

- "scale", `a *= s`: read and written in place, 8 bytes,
- "copy", `a = b`: 8 bytes,
- "add", `a = b + c`: 12 bytes.

In the last two a processor may first read the lines that it overwrites, which
is not counted. An optimizer updates in place, as "scale" does, so that nothing
hidden happens there. The bandwidth is the best of all that was measured: what
the machine can do, not what it did on average. On an accelerator, "scale" and
"add" run there.

A step of Adamax reads gradient, weight and two moments and writes all but the
first: `BYTES_PER_WEIGHT` for float32, if nothing is read or written twice.
Small weights stay in the cache between two steps, so that they may reach more
than the bandwidth of the memory.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES_PER_WEIGHT = 7 * 4
BYTES_PER_ELEMENT = {"scale": 8, "copy": 8, "add": 12}
# What runs each once, and returns when it is done.
Patterns = dict[str, Callable[[], object]]


def fraction(elements: int, seconds: float, bandwidth: float) -> float:
    """Which part of the bandwidth a step reaches.

    Args:
        elements: Number of float32 weights that the step updates.
        seconds: What it takes.
        bandwidth: Bytes per second.
    """
    return BYTES_PER_WEIGHT * elements / seconds / bandwidth


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _elements() -> int:
    """So many that an array is eight times as large as the last cache."""
    cache = 0
    if "SC_LEVEL3_CACHE_SIZE" in getattr(os, "sysconf_names", {}):
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    return max(256 * 2**20, min(8 * cache, 2**30)) // 4


def _best(run: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest run, after one that is not counted."""
    run()
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _rates(
    patterns: Patterns, elements: int, repetitions: int
) -> dict[str, float]:
    """Bytes per second of each pattern."""
    return {
        name: BYTES_PER_ELEMENT[name] * elements / _best(run, repetitions)
        for name, run in patterns.items()
    }


def measure_cpu(
    elements: int | None = None, repetitions: int = 8
) -> dict[str, float]:
    """Bytes per second of each pattern, by all cores together."""
    elements = elements or _elements()
    cores = _cores()
    parts = [
        slice(elements * i // cores, elements * (i + 1) // cores)
        for i in range(cores)
    ]
    a, b, c = (np.full(elements, x, "float32") for x in (1.0, 2.0, 3.0))
    factor = np.float32(0.999)
    works: dict[str, Callable[[slice], object]] = {
        "scale": lambda part: np.multiply(a[part], factor, out=a[part]),
        "copy": lambda part: np.copyto(a[part], b[part]),
        "add": lambda part: np.add(b[part], c[part], out=a[part]),
    }
    with ThreadPoolExecutor(cores) as pool:
        patterns: Patterns = {
            name: lambda work=work: list(pool.map(work, parts))
            for name, work in works.items()
        }
        return _rates(patterns, elements, repetitions)


def _torch_patterns(elements: int) -> Patterns:
    import torch

    a, b, c = (torch.ones(elements, device="cuda") for _ in range(3))

    def scale() -> None:
        a.mul_(0.999)
        torch.cuda.synchronize()

    def add() -> None:
        torch.add(b, c, out=a)
        torch.cuda.synchronize()

    return {"scale": scale, "add": add}


def _jax_patterns(elements: int) -> Patterns:
    import jax
    import jax.numpy as jnp

    scaled = jax.jit(lambda x: x * 0.999, donate_argnums=0)
    added = jax.jit(lambda x, y: x + y)
    a, b, c = (jnp.ones(elements) for _ in range(3))

    def scale() -> None:
        nonlocal a
        a = scaled(a).block_until_ready()

    return {"scale": scale, "add": lambda: added(b, c).block_until_ready()}


def measure(
    backend: str, accelerator: str | None, quick: bool = False
) -> dict[str, float]:
    """Bytes per second of each pattern, where the optimizers run.

    Args:
        backend: Keras's backend.
        accelerator: Its name, or `None` for the CPU.
        quick: Whether only to see that it runs.

    Raises:
        RuntimeError: If there is an accelerator, and no way to measure it.
    """
    if accelerator is None:
        return measure_cpu(2**16 if quick else None)
    on_device = {"torch": _torch_patterns, "jax": _jax_patterns}
    if backend not in on_device:
        raise RuntimeError(
            "The bandwidth of an accelerator can be measured with "
            f"{' and '.join(on_device)}. Received: backend={backend!r}. Hide "
            "the accelerator to benchmark the CPU."
        )
    elements = 2**28
    return _rates(on_device[backend](elements), elements, 20)
