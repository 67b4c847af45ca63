"""PyTorch: one variable after another."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed

Tensor = Any


def measure(
    function: Callable[..., Tensor],
    pack: Callable[..., Tensor],
    previous: Sequence[Tensor],
    current: Sequence[Tensor],
    step: Tensor,
) -> Tensor:
    """`pack([function(p, c), ...], step)`, over pairs of values."""
    with torch.no_grad():
        return pack(
            [
                function(p, c, in_blocks=True)
                for p, c in zip(previous, current, strict=True)
            ],
            step,
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
    with torch.no_grad():
        for target, value in zip(kept, current, strict=True):
            target.copy_(value)
    return packed


def after(event: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The values, made known only when `event` has been computed."""
    del event  # what is asked for twice is computed twice
    return values


def count_integers(values: Tensor, length: int) -> Tensor:
    """How often each of `0, ..., length - 1` occurs."""
    return torch.bincount(values, minlength=length)


def place_like(value: Tensor, other: Tensor) -> Tensor:
    """`value` on the device of `other`."""
    return value.to(other.device)


def process_index() -> int:
    """Which of the processes that train the model together this is."""
    return distributed.get_rank() if _has_processes() else 0


def gather(number: int) -> list[int]:
    """The numbers of all processes, once all have come here."""
    if not _has_processes():
        return [number]
    numbers: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(numbers, number)
    return numbers


def _has_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized()
