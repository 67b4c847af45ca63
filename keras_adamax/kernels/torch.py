"""torch: sparse COO gradients, no autograd, a branch on the host."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch

from keras_adamax.kernels import (
    DenseStep,
    _torch_compiled,
    _torch_eager,
    _torch_tensors,
)

Tensor = Any

CHOICES = ("auto", "compiled", "eager", "reference")


@torch.compiler.disable
def update_dense(step: DenseStep) -> None:
    """Updates the variables of `step` in place."""
    plain, others = _torch_tensors.sort(step)
    for device, tensors in plain.items():
        if device.type == "cpu" and _torch_compiled.serves(step.kernel):
            _torch_compiled.update(step, tensors)
        else:
            _torch_eager.update(step, tensors)
    for position in others:
        step.optimizer.update_step(
            step.gradients[position],
            step.weights[position],
            step.learning_rate,
        )


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


def is_replicated() -> bool:
    """Whether each replica must be updated by itself: never."""
    return False


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


def overwrite(kept: list[Tensor], values: Sequence[Tensor]) -> None:
    """Makes `kept` a copy of `values`, in the memory that it has."""
    with torch.no_grad():
        for target, value in zip(kept, values, strict=True):
            target.copy_(value)


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
