"""What callbacks ask of the devices: one file for each backend.

How far weights moved, reduced where they are; and which process this is.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from keras_adamax import backends

Tensor = Any


class Device(Protocol):
    """What each module of this folder has."""

    def measure(
        self,
        function: Callable[..., Tensor],
        pack: Callable[..., Tensor],
        previous: Sequence[Tensor],
        current: Sequence[Tensor],
        step: Tensor,
    ) -> Tensor:
        """`pack([function(p, c), ...], step)`, over pairs of values.

        Without a copy of the differences, and without waiting for the result.
        """
        ...

    def measure_and_keep(
        self,
        function: Callable[..., Tensor],
        pack: Callable[..., Tensor],
        kept: list[Tensor],
        current: Sequence[Tensor],
        step: Tensor,
    ) -> Tensor:
        """`measure` of what is kept, which becomes a copy of `current`."""
        ...

    def after(self, event: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        """The values, made known only when `event` has been computed."""
        ...

    def count_integers(self, values: Tensor, length: int) -> Tensor:
        """How often each of `0, ..., length - 1` occurs."""
        ...

    def place_like(self, value: Tensor, other: Tensor) -> Tensor:
        """`value` on the devices of `other`."""
        ...

    def process_index(self) -> int:
        """Which of the processes that train the model together this is."""
        ...

    def gather(self, number: int) -> list[int]:
        """The numbers of all processes, once all have come here."""
        ...


def load() -> Device:
    """The module of the running backend, imported on the first call."""
    return cast("Device", backends.module_of(__name__))
