"""The update on other devices than the CPU: fused by `torch.compile`, or not.

Nothing here waits for the device: scalars stay tensors, and decisions are
masks. Large tensors are updated one by one, in one kernel each (28 bytes a
float32 weight; Keras's ten multi-tensor operations move some 96). Of small
ones a launch each would take longer than their elements: they are joined, so
that a step takes a dozen launches however many there are.

The function is compiled once for all shapes (for each dtype, and each
combination of its flags that occurs; torch may make a kernel of its own for a
few thousand elements), and kept by torch's own cache on disk.
Where it cannot be compiled (Triton is missing, say), its operations are run
one after the other, on pieces, so that temporaries stay small.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from keras_adamax.backends.step import Step
from keras_adamax.backends.torch_tensors import (
    Tensors,
    add_counts,
    integers,
    not_clipped,
    small_groups,
)
from keras_adamax.kernel_choice import SETTING
from keras_adamax.update_rule import FLOAT32_MAX

# Tensors with fewer elements are joined. Their counts are exact in float32.
_SMALL = 2**20
# The most elements that temporaries have.
_PIECE = 2**22

Rule = Callable[..., list[torch.Tensor]]


def update(
    step: Step, tensors: Tensors, allowed: torch.Tensor | None
) -> torch.Tensor | None:
    """Updates tensors of a device in place, and their `clip_counts`.

    Args:
        step: The step.
        tensors: Its tensors on one device.
        allowed: Boolean scalar on that device: where it is false, nothing
            changes. `None` for a step that needs no permission.

    Returns:
        The sums of each tensor, where they are asked for.
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
    sums: list[torch.Tensor] = []

    def keep(found: Sequence[torch.Tensor]) -> None:
        clipped.append(found[0].to(torch.int64))
        if step.measures:
            sums.append(torch.stack(list(found[1:]), dim=1))

    for are_clipped in (True, False):
        arguments = (packed, allowed, are_clipped, step.measures)
        chosen = [i for i, clip in enumerate(clips) if clip == are_clipped]
        small = [i for i in chosen if sizes[i] < _SMALL]
        for group in small_groups(small, sizes, _PIECE):
            order += group
            keep(_update_joined(rule, tensors, group, *arguments))
        for i in chosen:
            if sizes[i] >= _SMALL:
                order.append(i)
                keep(_update_one(rule, tensors, i, *arguments))
    if step.clip_counts is not None:
        add_counts(
            step,
            [tensors.indices[i] for i in order],
            torch.cat(clipped),
            [sizes[i] if clips[i] else 0 for i in order],
        )
    if not step.measures:
        return None
    where = integers(tuple(np.argsort(order).tolist()), device)
    return torch.cat(sums).to(torch.float32).index_select(0, where)


def _update_one(
    rule: Rule, tensors: Tensors, i: int, *arguments
) -> Sequence[torch.Tensor]:
    """Updates a tensor; returns what `_rule` gives, shapes (1,)."""
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
    found = [
        rule(*pieces, *arguments, sums=True)
        for pieces in zip(*(w.split(_PIECE) for w in whole), strict=True)
    ]
    return [
        torch.cat(parts).sum(0, keepdim=True)
        for parts in zip(*found, strict=True)
    ]


def _update_joined(
    rule: Rule, tensors: Tensors, group: Sequence[int], *arguments
) -> Sequence[torch.Tensor]:
    """Updates some tensors as one; returns what `_rule` gives of each."""
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
    found = rule(*joined, *arguments, sums=False)
    for part, whole in zip(parts[1:], joined[1:], strict=True):
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            part, list(whole.split(sizes))
        )
    lengths = integers(tuple(sizes), found[0].device)
    # `unsafe`: a check of the lengths would wait for the device.
    return [
        torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True, initial=0)
        for x in found
    ]


def _rule(
    g: torch.Tensor,
    w: torch.Tensor,
    m: torch.Tensor,
    u: torch.Tensor,
    scalars: torch.Tensor,
    allowed: torch.Tensor | None,
    clips: bool,
    measures: bool,
    sums: bool,
) -> list[torch.Tensor]:
    """`update_rule.update` on vectors, in place.

    Returns:
        The number of clipped elements and, if it `measures`, the
        `update_rule.SUMS`, shapes (1,), if `sums`; otherwise vectors of what is
        to be added up.
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
    given = g = g.to(m.dtype)
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
    found = [is_clipped] if sums else [is_clipped.to(torch.float32)]
    if measures:
        found += [x.square() for x in (given, g, change, new_m)]
        found.append(given.isfinite().logical_not().to(m.dtype))
    new_w = (w.to(m.dtype) - change).to(w.dtype)
    if allowed is not None:
        new_w = torch.where(allowed, new_w, w)
        new_m = torch.where(allowed, new_m, m)
        new_u = torch.where(allowed, new_u, u)
    w.copy_(new_w)
    m.copy_(new_m)
    u.copy_(new_u)
    return [x.sum(0, keepdim=True) for x in found] if sums else found


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
        _compiled_rule()(g, w, m, u, scalars, None, True, False, sums=True)
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
