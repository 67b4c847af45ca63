"""What a step is about, as torch tensors: lists with an entry a variable."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# In a scope without state, values must not change in place.
from keras.src.backend.common.stateless_scope import in_stateless_scope

from keras_adamax import exact_totals
from keras_adamax.backends.step import Step

# Of a subclass, such as a distributed tensor, only torch knows the memory.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a part of it is a part of memory."""
    return type(tensor) in _PLAIN


def values_of(variables: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors of variables.

    Keras's `value` looks for scopes that change it, microseconds a variable.
    """
    if in_stateless_scope():
        return [variable.value for variable in variables]
    return [variable._value for variable in variables]


@dataclass
class Tensors:
    """Some of the variables of a step.

    Attributes:
        indices: Which of the optimizer's variables they are.
        gradients: Dense, of any float dtype and any layout.
        weights: To be updated in place; contiguous, as are the next two.
        momentums: First moment of each.
        norms: Infinity norm of each.
    """

    indices: list[int] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)
    momentums: list[torch.Tensor] = field(default_factory=list)
    norms: list[torch.Tensor] = field(default_factory=list)

    def add(
        self,
        index: int,
        gradient: torch.Tensor,
        weight: torch.Tensor,
        momentum: torch.Tensor,
        norm: torch.Tensor,
    ) -> None:
        """Adds a variable."""
        self.indices.append(index)
        self.gradients.append(gradient)
        self.weights.append(weight)
        self.momentums.append(momentum)
        self.norms.append(norm)


def sort(step: Step) -> tuple[dict[torch.device, Tensors], list[int]]:
    """The tensors of a step that can be updated in place, by their device.

    Returns:
        The tensors, and the positions in `step` of those that are no plain
        tensors, or lie in memory in another order than their elements.
    """
    if in_stateless_scope():
        return {}, list(range(len(step.indices)))
    plain: dict[torch.device, Tensors] = {}
    others = []
    for position, (index, gradient, *variables) in enumerate(
        zip(
            step.indices,
            step.gradients,
            step.weights,
            step.momentums,
            step.norms,
            strict=True,
        )
    ):
        # Keras's `value` takes microseconds for what does not matter here.
        weight, momentum, norm = (variable._value for variable in variables)
        device = weight.device
        if (
            type(gradient) in _PLAIN
            and type(weight) in _PLAIN
            and type(momentum) in _PLAIN
            and type(norm) in _PLAIN
            and gradient.layout is torch.strided
            and not gradient.is_neg()
            and gradient.is_floating_point()
            and gradient.shape == weight.shape
            and weight.is_contiguous()
            and momentum.is_contiguous()
            and norm.is_contiguous()
            and gradient.device == device
            and momentum.device == device
            and norm.device == device
        ):
            if device not in plain:
                plain[device] = Tensors()
            plain[device].add(index, gradient, weight, momentum, norm)
        else:
            others.append(position)
    return plain, others


def not_clipped(step: Step) -> list[bool] | None:
    """For each of the optimizer's variables; `None` where none is clipped.

    They change when a state is loaded, and are read then alone: reading waits
    for a device.
    """
    if not step.clip_gradients:
        return None
    if step.exclusions is None:
        return [False] * (1 + max(step.indices, default=0))
    value = step.exclusions.value
    known = step.kept.get("exclusions")
    if known is None or known[0] is not value or known[1] != value._version:
        flags = [flag > 0 for flag in value.tolist()]
        known = step.kept["exclusions"] = (value, value._version, flags)
    return known[2]


def small_groups(
    positions: Sequence[int], sizes: Sequence[int], limit: int
) -> Iterator[list[int]]:
    """Splits `positions` into lists whose `sizes` add up to `limit` at most."""
    group: list[int] = []
    filled = 0
    for i in positions:
        if group and filled + sizes[i] > limit:
            yield group
            group, filled = [], 0
        group.append(i)
        filled += sizes[i]
    if group:
        yield group


@functools.lru_cache(maxsize=256)
def integers(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A vector on a device, which nobody may change: it is kept.

    A copy from the host waits for all that the device was given before, and
    these are the same in every step. Of other models they are dropped in time.
    """
    return torch.tensor(values, dtype=torch.int64, device=device)


@functools.lru_cache(maxsize=256)
def constants(
    values: tuple[float, ...], dtype: str, device: torch.device
) -> torch.Tensor:
    """As `integers`, of any dtype."""
    return torch.tensor(values, dtype=getattr(torch, dtype), device=device)


def add_counts(
    step: Step,
    indices: Sequence[int],
    clipped: torch.Tensor,
    counted: Sequence[int],
) -> None:
    """Adds to the statistics of some of the optimizer's variables."""
    assert step.clip_counts is not None
    rows = step.clip_counts.value
    where = integers(tuple(indices), rows.device)
    rows.index_copy_(
        0,
        where,
        exact_totals.add_to_rows(
            rows.index_select(0, where),
            clipped.to(rows.device),
            integers(tuple(counted), rows.device),
        ),
    )
