"""PyTorch: sparse COO gradients, nothing traced."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch

from keras_adamax.backends import torch_tensors

Tensor = Any


def is_on_host(device: torch.device) -> bool:
    """Whether the host reads its memory without waiting."""
    return device.type == "cpu"


def no_gradient() -> contextlib.AbstractContextManager:
    """Keeps autograd from following the update."""
    return torch.no_grad()


def outside_of_graph() -> contextlib.AbstractContextManager:
    """There is no graph to leave."""
    return contextlib.nullcontext()


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """The variable's value on the host."""
    return keras.ops.convert_to_numpy(variable)


def is_sparse(gradient: Any) -> bool:
    """Whether `gradient` holds some rows only."""
    return isinstance(gradient, torch.Tensor) and gradient.is_sparse


def rows(gradient: torch.Tensor) -> tuple[Tensor, Tensor]:
    """Indices, shape `(n,)`, and values, shape `(n, ...)`."""
    if gradient.sparse_dim() != 1:
        raise ValueError(
            "A sparse gradient must hold whole rows: a sparse COO tensor with "
            f"sparse_dim=1. Received: sparse_dim={gradient.sparse_dim()}, "
            f"shape={tuple(gradient.shape)}."
        )
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def summed_rows(gradient: torch.Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, summed values, and which rows to count, shape `(n,)`."""
    indices, values = rows(gradient)
    return indices, values, torch.ones_like(indices, dtype=torch.bool)


def with_values(gradient: torch.Tensor, values: Tensor) -> torch.Tensor:
    """The same rows (as `rows` gives them) with other values."""
    return torch.sparse_coo_tensor(
        gradient.coalesce().indices(),
        values,
        gradient.shape,
        check_invariants=False,
        is_coalesced=True,
    )


def to_dense(gradient: torch.Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient as a dense tensor of `shape`."""
    del shape
    return gradient.to_dense()


def take_rows(variable: Any, indices: Tensor) -> Tensor:
    """Some rows of a variable, read without reading the others."""
    return torch.index_select(variable.value, 0, indices)


def assign_rows(variable: Any, indices: Tensor, values: Tensor) -> None:
    """Writes some rows of a variable in place."""
    value = variable.value
    value.index_copy_(0, indices, values.to(value.dtype))


def is_replicated() -> bool:
    """Whether each replica must be updated by itself: never."""
    return False


def can_sample(variable: Any) -> bool:
    """Whether some elements of a variable can be had without all of it."""
    return torch_tensors.is_plain(variable.value)


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """The gradients: what torch gives is the same for all replicas."""
    return list(gradients)


def constant(values: tuple[float, ...], dtype: str, other: Tensor) -> Tensor:
    """A vector of numbers, where `other` is."""
    return torch_tensors.constants(values, dtype, other.device)


@torch.compiler.disable
def call_untraced(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function outside of what `torch.compile` traces."""
    return function(*arguments)


@torch.compiler.disable
def value_if(
    condition: Tensor, function: Callable[[], Tensor], other: Tensor
) -> Tensor:
    """`function()` where the condition holds, else `other`."""
    # On a device, a branch would make the host wait.
    if is_on_host(condition.device):
        return function() if condition else other
    return torch.where(condition, function(), other)
