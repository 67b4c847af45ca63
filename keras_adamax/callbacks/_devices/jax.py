"""JAX: one program for all variables, in blocks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

Tensor = Any


def measure(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    previous: Sequence[Tensor],
    current: Sequence[Tensor],
    step: Tensor,
) -> Tensor:
    """`pack([function(p, c), ...], step)`, over pairs of values, fused."""
    # Blocks of a value that is spread over devices would gather all of it.
    is_spread = any(not x.sharding.is_fully_replicated for x in current)
    return _measure(
        function, pack, not is_spread, list(previous), list(current), step
    )


def measure_and_keep(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    kept: list[Tensor],
    current: Sequence[Tensor],
    step: Tensor,
) -> Tensor:
    """`measure` of what is kept, which becomes a copy of `current`."""
    packed = measure(function, pack, kept, current, step)
    kept[:] = _overwritten(kept, list(current))
    return packed


# They take the memory of what was kept.
@functools.partial(jax.jit, donate_argnums=0)
def _overwritten(kept: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    return [k.at[...].set(v) for k, v in zip(kept, values, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    in_blocks: bool,
    previous: list[Tensor],
    current: list[Tensor],
    step: Tensor,
) -> Tensor:
    parts: list[Tensor] = []
    event = step
    for values in zip(previous, current, strict=True):
        # One after another, so that XLA reuses what little memory each needs.
        parts.append(function(*after(event, *values), in_blocks=in_blocks))
        event = parts[-1]
    return pack(parts, step)


def after(event: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The values, made known only when `event` has been computed."""
    return jax.lax.optimization_barrier((*values, event))[:-1]


def count_integers(values: Tensor, length: int) -> Tensor:
    """How often each of `0, ..., length - 1` occurs."""
    return jnp.bincount(values, length=length)


def place_like(value: Tensor, other: Tensor) -> Tensor:
    """`value` on the devices of `other`."""
    return jax.device_put(value, other.sharding)


def process_index() -> int:
    """Which of the processes that train the model together this is."""
    return jax.process_index()


def gather(number: int) -> list[int]:
    """The numbers of all processes, once all have come here."""
    if jax.process_count() == 1:
        return [number]
    return multihost_utils.process_allgather(np.int32(number)).tolist()
