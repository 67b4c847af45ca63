"""torch: sparse COO gradients, no autograd, nothing traced."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch

from keras_adamax import spikes
from keras_adamax.kernels import (
    Changes,
    Step,
    _selection,
    _torch_compiled,
    _torch_device,
    _torch_eager,
    _torch_tensors,
)
from keras_adamax.update_rule import FLOAT32_MAX

Tensor = Any

CHOICES = ("auto", "compiled", "eager", "reference")


@torch.compiler.disable
def update_dense(step: Step) -> list[int]:
    """Updates the variables of `step` in place; gives the others' positions.

    Where Keras's training step is traced by `torch.compile`, this call stays
    outside of the graph.
    """
    allowed = _selection.is_allowed()
    plain, others = _torch_tensors.sort(step)
    for device, tensors in plain.items():
        if not _is_host(device):
            on_device = None if allowed is None else allowed.to(device)
            _torch_device.update(step, tensors, on_device)
        elif allowed is not None and not allowed:
            continue
        elif _torch_compiled.serves(step.kernel, tensors.weights):
            _torch_compiled.update(step, tensors)
        else:
            _torch_eager.update(step, tensors)
    return others if others and (allowed is None or allowed) else []


def _is_host(device: torch.device) -> bool:
    return device.type == "cpu"


def no_gradient() -> contextlib.AbstractContextManager:
    """Keeps autograd from following the update."""
    return torch.no_grad()


def outside_of_graph() -> contextlib.AbstractContextManager:
    """There is no graph to leave."""
    return contextlib.nullcontext()


def shared_compilations(given: Any = None) -> contextlib.AbstractContextManager:
    """There is nothing to share: torch keeps what it compiles by itself."""
    del given
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


def update_rows(step: Step) -> Sequence[int]:
    """No fused update takes rows: gives all positions."""
    return range(len(step.gradients))


def is_replicated() -> bool:
    """Whether each replica must be updated by itself: never."""
    return False


def is_finite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """Whether all elements of all gradients are finite."""
    del kernel  # there is one way
    values = [rows(g)[1] if is_sparse(g) else g for g in gradients]
    values = [value for value in values if value.numel()]
    if not values:
        return torch.tensor(True)
    if not _is_host(values[0].device):
        norm = torch.nn.utils.get_total_norm(values, norm_type=math.inf)
        return torch.isfinite(norm)
    # A sum is finite only if all its terms are; the reverse fails where it
    # overflows, which is seldom. Norms and masks take ten times as long.
    sums = torch.stack([value.sum().to(torch.float64) for value in values])
    if torch.isfinite(sums).all():
        return torch.tensor(True)
    return torch.tensor(all(torch.isfinite(value).all() for value in values))


def can_sample(variable: Any) -> bool:
    """Whether some elements of a variable can be had without all of it."""
    return _torch_tensors.is_plain(variable.value)


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """The gradients: what torch gives is the same for all replicas."""
    return list(gradients)


def constant(values: tuple[float, ...], dtype: str, other: Tensor) -> Tensor:
    """A vector of numbers, where `other` is."""
    return _torch_tensors.constants(values, dtype, other.device)


@torch.compiler.disable
def count_above(
    gradients: Sequence[Tensor],
    are_samples: bool,
    norms: Sequence[Any],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
    kernel: str,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32.

    Args:
        gradients: Of any float dtype.
        are_samples: Whether they are what `spikes.sample_of` gave, and not
            whole.
        norms: Of the whole variables.
        strides: Of the samples.
        clip_multiplier: Scalar in the dtype of the norms.
        clip_epsilon: Scalar in the dtype of the norms.
        kernel: The chosen kernel.
    """
    values = _torch_tensors.values_of(norms)
    found = _torch_compiled.count_above(
        gradients, values, strides, clip_multiplier, clip_epsilon, kernel
    )
    if found is not None:
        return found
    if not are_samples:
        gradients = spikes.samples(gradients, norms, strides)
    counts = []
    for g, u in zip(
        gradients, spikes.samples(values, norms, strides), strict=True
    ):
        # `clamp` takes a number, where a tensor would be copied to a device.
        bound = clip_multiplier * u + clip_epsilon
        is_above = g.to(bound.dtype).abs() > bound.clamp(max=FLOAT32_MAX)
        counts.append(is_above.sum(dtype=torch.int32))
    return torch.stack(counts)


@torch.compiler.disable
def value_if(
    condition: Tensor, function: Callable[[], Tensor], other: Tensor
) -> Tensor:
    """`function()` where the condition holds, else `other`.

    Args:
        condition: Boolean scalar.
        function: Makes a tensor like `other`.
        other: The tensor otherwise.
    """
    # On a device, a branch would make the host wait.
    if _is_host(condition.device):
        return function() if condition else other
    return torch.where(condition, function(), other)


@torch.compiler.disable
def apply_if(
    is_applied: Tensor,
    apply: Callable[[list, list | None], None],
    gradients: list,
    variables: list | None,
    find_changes: Callable[[], Changes],
) -> None:
    """Calls `apply(gradients, variables)`, or changes nothing.

    On the CPU the host decides. Elsewhere it would have to wait for the
    device: the update is made, and each kernel selects between its old and new
    values, at no cost, as is done for the few small variables beside. Where
    more than our update changes something (weight decay, a moving average,
    accumulation, constraints) or something else makes the update (sparse rows,
    the reference), the host waits: less than a copy of all that would cost.

    Args:
        is_applied: Boolean scalar: whether it is called.
        apply: The update.
        gradients: For `apply`.
        variables: For `apply`.
        find_changes: Tells what `apply` may change.
    """
    small = None
    # In a stateless scope nothing is assigned in place.
    if not (_is_host(is_applied.device) or _torch_tensors.in_stateless_scope()):
        small = find_changes().small
    if small is None:
        if is_applied:
            apply(gradients, variables)
        return
    values = [v.value for v in small]
    kept = [(value, value._version, value.clone()) for value in values]
    with _selection.allow(is_applied):
        apply(gradients, variables)
    for value, version, old in kept:
        # Exclusions are read anew where they were written to, and the host
        # would wait: so nothing is written that did not change.
        if value._version != version:
            value.copy_(torch.where(is_applied, value, old))


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
