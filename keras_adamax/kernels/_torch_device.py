"""The update on other devices than the CPU: fused by `torch.compile`, or not.

Nothing here waits for the device: scalars stay tensors, and decisions are
masks. Large tensors are updated one by one, in one kernel each (28 bytes a
float32 weight; Keras's ten multi-tensor operations move some 96). Of small
ones a launch each would take longer than their elements: they are joined, so
that a step takes a dozen launches however many there are.

The function is compiled once for all shapes (for each dtype, and each
combination of its flags that occurs), and kept by torch's own cache on disk.
Where it cannot be compiled (Triton is missing, say), its operations are run
one after the other, on pieces, so that temporaries stay small.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import torch

from keras_adamax.kernels import SETTING, Step
from keras_adamax.kernels._torch_tensors import (
    Tensors,
    add_counts,
    integers,
    not_clipped,
    small_groups,
)
from keras_adamax.update_rule import FLOAT32_MAX

# Tensors with fewer elements are joined. Their counts are exact in float32.
_SMALL = 2**20
# The most elements that temporaries have.
_PIECE = 2**22

Rule = Callable[..., torch.Tensor]


def update(step: Step, tensors: Tensors, allowed: torch.Tensor | None) -> None:
    """Updates tensors of a device in place, and their `clip_counts`.

    Args:
        step: The step.
        tensors: Its tensors on one device.
        allowed: Boolean scalar on that device: where it is false, nothing
            changes. `None` for a step that needs no permission.
    """
    device = tensors.weights[0].device
    rule = _rule_for(step.kernel, device.type)
    excluded = not_clipped(step)
    *scalars, bias_correction = step.hyperparameters(
        step.learning_rate, step.dtype
    )
    if bias_correction is None:
        bias_correction = torch.ones_like(scalars[0])
    packed = torch.stack([*scalars, bias_correction])
    packed = packed.to(device, non_blocking=True)
    clips = [
        excluded is not None and not excluded[index]
        for index in tensors.indices
    ]
    sizes = [weight.numel() for weight in tensors.weights]
    order: list[int] = []
    clipped: list[torch.Tensor] = []
    for are_clipped in (True, False):
        arguments = (packed, allowed, are_clipped)
        chosen = [i for i, clip in enumerate(clips) if clip == are_clipped]
        small = [i for i in chosen if sizes[i] < _SMALL]
        for group in small_groups(small, sizes, _PIECE):
            order += group
            clipped.append(_update_joined(rule, tensors, group, *arguments))
        for i in chosen:
            if sizes[i] >= _SMALL:
                order.append(i)
                clipped.append(_update_one(rule, tensors, i, *arguments))
    if step.clip_counts is not None:
        add_counts(
            step,
            [tensors.indices[i] for i in order],
            torch.cat(clipped),
            [sizes[i] if clips[i] else 0 for i in order],
        )


def _update_one(
    rule: Rule, tensors: Tensors, i: int, *arguments
) -> torch.Tensor:
    """Updates a tensor; returns how many elements were clipped, shape (1,)."""
    whole = [
        tensor.detach().reshape(-1)
        for tensor in (
            tensors.gradients[i],
            tensors.weights[i],
            tensors.momentums[i],
            tensors.norms[i],
        )
    ]
    if rule is not _rule:
        return rule(*whole, *arguments, sums=True)
    counts = [
        rule(*pieces, *arguments, sums=True)
        for pieces in zip(*(w.split(_PIECE) for w in whole), strict=True)
    ]
    return torch.cat(counts).sum(0, keepdim=True)


def _update_joined(
    rule: Rule, tensors: Tensors, group: Sequence[int], *arguments
) -> torch.Tensor:
    """Updates some tensors as one; returns what was clipped of each."""
    parts = [
        [whole[i].detach().reshape(-1) for i in group]
        for whole in (
            tensors.gradients,
            tensors.weights,
            tensors.momentums,
            tensors.norms,
        )
    ]
    sizes = [part.numel() for part in parts[1]]
    joined = [torch.cat(part) for part in parts]
    mask = rule(*joined, *arguments, sums=False)
    for part, whole in zip(parts[1:], joined[1:], strict=True):
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            part, list(whole.split(sizes))
        )
    lengths = integers(tuple(sizes), mask.device)
    # `unsafe`: a check of the lengths would wait for the device.
    return torch.segment_reduce(
        mask, "sum", lengths=lengths, unsafe=True, initial=0
    ).to(torch.int64)


def _rule(
    g: torch.Tensor,
    w: torch.Tensor,
    m: torch.Tensor,
    u: torch.Tensor,
    scalars: torch.Tensor,
    allowed: torch.Tensor | None,
    clips: bool,
    sums: bool,
) -> torch.Tensor:
    """`update_rule.update` on vectors, in place.

    Returns:
        The number of clipped elements, int64, shape (1,), if `sums`; otherwise
        float32, 1 where an element was clipped.
    """
    (
        learning_rate,
        beta_1,
        beta_2,
        epsilon,
        clip_multiplier,
        clip_epsilon,
        bias_correction,
    ) = scalars
    g = g.to(m.dtype)
    is_clipped = torch.zeros_like(g, dtype=torch.bool)
    if clips:
        bound = (clip_multiplier * u + clip_epsilon).clamp(max=FLOAT32_MAX)
        is_clipped = g.abs() > bound
        g = g.clamp(-bound, bound)
    new_m = beta_1 * m + (1.0 - beta_1) * g
    new_u = torch.maximum(beta_2 * u, g.abs())
    denominator = new_u + epsilon
    is_zero = denominator == 0
    # Not `where`: it would copy the number to the device, and wait.
    denominator = bias_correction * denominator.masked_fill(is_zero, 1.0)
    change = torch.where(
        is_zero, 0.0 * new_m, learning_rate * new_m / denominator
    )
    new_w = (w.to(m.dtype) - change).to(w.dtype)
    if allowed is not None:
        new_w = torch.where(allowed, new_w, w)
        new_m = torch.where(allowed, new_m, m)
        new_u = torch.where(allowed, new_u, u)
    w.copy_(new_w)
    m.copy_(new_m)
    u.copy_(new_u)
    if sums:
        return is_clipped.sum(0, keepdim=True)
    return is_clipped.to(torch.float32)


@functools.cache
def _compiled_rule() -> Rule:
    """One object, so that all optimizers share what was compiled."""
    return torch.compile(_rule, dynamic=True)


@functools.cache
def _failure(device_type: str) -> str | None:
    """Why the rule cannot be compiled; it is tried once a process."""
    g, w, m, u = (torch.ones(64, device=device_type) for _ in range(4))
    scalars = torch.ones(7, device=device_type)
    try:
        _compiled_rule()(g, w, m, u, scalars, None, True, sums=True)
    except Exception as error:  # torch documents no class for it.
        logging.getLogger(__name__).info(
            "Updates on %s are not compiled: %s", device_type, error
        )
        return f"{type(error).__name__}: {error}"
    return None


def _rule_for(kernel: str, device_type: str) -> Rule:
    """The rule as it runs on a device.

    Raises:
        RuntimeError: If it cannot be compiled and `kernel` is "compiled".
    """
    if kernel == "eager":
        return _rule
    failure = _failure(device_type)
    if failure is None:
        return _compiled_rule()
    if kernel == "compiled":
        raise RuntimeError(
            f"`{SETTING}` must be 'auto', 'eager' or 'reference' where "
            f"`torch.compile` does not work on the device '{device_type}'. "
            f"Received: {SETTING}='compiled'. {failure}"
        )
    return _rule
