"""PyTorch: C++ on the CPU, else PyTorch's operations, compiled or eager."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from keras_adamax import spike_rule
from keras_adamax.backends import torch_tensors
from keras_adamax.backends.step import Changes, Step, Sums, Updated
from keras_adamax.backends.torch import is_on_host, is_sparse, rows
from keras_adamax.native import torch as native_torch
from keras_adamax.update_rule import FLOAT32_MAX
from keras_adamax.updates import selection, torch_device, torch_eager

Tensor = Any

CHOICES = ("auto", "compiled", "eager", "reference")


@torch.compiler.disable
def update_dense(step: Step) -> Updated:
    """Updates the variables of `step` in place.

    Where Keras's training step is traced by `torch.compile`, this call stays
    outside of the graph.
    """
    allowed = selection.is_allowed()
    plain, others = torch_tensors.sort(step)
    found: list[Sums] = []
    for device, tensors in plain.items():
        if not is_on_host(device):
            on_device = None if allowed is None else allowed.to(device)
            sums = torch_device.update(step, tensors, on_device)
        elif allowed is not None and not allowed:
            continue
        elif native_torch.serves(step.kernel, tensors.weights):
            sums = native_torch.update(step, tensors)
        else:
            sums = torch_eager.update(step, tensors)
        if sums is not None:
            found.append(Sums(tensors.indices, sums))
    is_left = others and (allowed is None or allowed)
    return Updated(others if is_left else (), found)


def update_rows(step: Step) -> Updated:
    """No fused update takes rows: gives all positions."""
    return Updated(range(len(step.gradients)))


def is_finite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """Whether all elements of all gradients are finite."""
    del kernel  # there is one way
    values = [rows(g)[1] if is_sparse(g) else g for g in gradients]
    values = [value for value in values if value.numel()]
    if not values:
        return torch.tensor(True)
    if not is_on_host(values[0].device):
        norm = torch.nn.utils.get_total_norm(values, norm_type=math.inf)
        return torch.isfinite(norm)
    # A sum is finite only if all its terms are; the reverse fails where it
    # overflows, which is seldom. Norms and masks take ten times as long.
    sums = torch.stack([value.sum().to(torch.float64) for value in values])
    if torch.isfinite(sums).all():
        return torch.tensor(True)
    return torch.tensor(all(torch.isfinite(value).all() for value in values))


def count_nonfinite(gradients: Sequence[Any], kernel: str) -> Tensor:
    """How many elements of each gradient are NaN or infinite."""
    values = [rows(g)[1] if is_sparse(g) else g for g in gradients]
    if is_on_host(values[0].device) and is_finite(gradients, kernel):
        return torch.zeros(len(values), dtype=torch.int64)
    return torch.stack([torch.isfinite(v).logical_not().sum() for v in values])


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
    """How many elements of each sample exceed their bound, int32."""
    values = torch_tensors.values_of(norms)
    found = native_torch.count_above(
        gradients, values, strides, clip_multiplier, clip_epsilon, kernel
    )
    if found is not None:
        return found
    if not are_samples:
        gradients = spike_rule.samples(gradients, norms, strides)
    counts = []
    for g, u in zip(
        gradients, spike_rule.samples(values, norms, strides), strict=True
    ):
        # `clamp` takes a number, where a tensor would be copied to a device.
        bound = clip_multiplier * u + clip_epsilon
        is_above = g.to(bound.dtype).abs() > bound.clamp(max=FLOAT32_MAX)
        counts.append(is_above.sum(dtype=torch.int32))
    return torch.stack(counts)


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
    """
    small = None
    # In a stateless scope nothing is assigned in place.
    if not (
        is_on_host(is_applied.device) or torch_tensors.in_stateless_scope()
    ):
        small = find_changes().small
    if small is None:
        if is_applied:
            apply(gradients, variables)
        return
    values = [v.value for v in small]
    kept = [(value, value._version, value.clone()) for value in values]
    with selection.allow(is_applied):
        apply(gradients, variables)
    for value, version, old in kept:
        # Exclusions are read anew where they were written to, and the host
        # would wait: so nothing is written that did not change.
        if value._version != version:
            value.copy_(torch.where(is_applied, value, old))
