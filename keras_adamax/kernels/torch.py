"""torch: sparse COO gradients, no autograd, a branch on the host."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch

Tensor = Any


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


def assign_rows(
    optimizer: keras.optimizers.Optimizer,
    variable: Any,
    indices: Tensor,
    values: Tensor,
) -> None:
    """Writes some rows of a variable in place."""
    del optimizer
    value = variable.value
    value.index_copy_(0, indices, values.to(value.dtype))


def is_finite(gradients: Sequence[Any]) -> Tensor:
    """Whether all elements of all gradients are finite."""
    values = [rows(g)[1] if is_sparse(g) else g for g in gradients]
    return torch.stack([torch.isfinite(value).all() for value in values]).all()


def apply_if(
    finite: Tensor,
    optimizer: keras.optimizers.Optimizer,
    apply: Callable[[list, list], None],
    gradients: list,
    variables: list,
    skipped_steps: keras.Variable,
) -> None:
    """Calls `apply(gradients, variables)` or counts a skipped step."""
    del optimizer
    if finite:
        apply(gradients, variables)
    else:
        skipped_steps.assign_add(1)
