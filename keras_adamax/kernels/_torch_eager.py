"""The update without a compiler, by torch's own operations, on the CPU.

The elements go through in pieces that stay in the cache, with scratch memory
that is used again and again: temporaries as large as the weight would cost
more for their page faults than the arithmetic takes. Tensors much smaller than
a piece are joined, so that there are few operations however many they are.

The operations are those of the specification in its order, none of them fused
(`add` with `alpha` would be), so that the results are the same bit for bit.
`addcdiv` multiplies, divides and adds one after the other, as it has it too.
"""

from collections.abc import Iterator

import numpy as np
import torch

from keras_adamax import statistics
from keras_adamax.kernels import DenseStep
from keras_adamax.kernels._torch_tensors import (
    Numbers,
    Tensors,
    not_clipped,
    numbers,
)
from keras_adamax.update_rule import FLOAT32_MAX

# In float32, six arrays of it and a mask are 1.6 MiB.
PIECE = 2**16
# From here on an operation costs more for its elements than for its call.
_SMALL = 2**13
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def update(step: DenseStep, tensors: Tensors) -> None:
    """Updates CPU tensors in place, and their rows of `clip_counts`."""
    excluded = not_clipped(step)
    scalars = numbers(step)
    scratch = _Scratch(tensors.norms[0].dtype)
    clips = [
        excluded is not None and not excluded[index]
        for index in tensors.indices
    ]
    sizes = [weight.numel() for weight in tensors.weights]
    clipped = [0] * len(sizes)
    for i, size in enumerate(sizes):
        if size > _SMALL:
            clipped[i] = _update_one(tensors, i, scalars, clips[i], scratch)
    for are_clipped in (True, False):
        small = [
            i
            for i, size in enumerate(sizes)
            if size <= _SMALL and clips[i] == are_clipped
        ]
        for group in _groups(small, sizes):
            counts = _update_joined(
                tensors, group, scalars, are_clipped, scratch
            )
            for i, count in zip(group, counts, strict=True):
                clipped[i] = count
    if step.clip_counts is None:
        return
    counted = [
        size if is_clipped else 0
        for size, is_clipped in zip(sizes, clips, strict=True)
    ]
    rows = step.clip_counts.value
    indices = torch.tensor(tensors.indices, device=rows.device)
    rows.index_copy_(
        0,
        indices,
        statistics.add_to_rows(
            rows[indices],
            torch.tensor(clipped, device=rows.device),
            torch.tensor(counted, device=rows.device),
        ),
    )


class _Scratch:
    """Memory for a piece: of the state's dtype, and a mask."""

    def __init__(self, dtype: torch.dtype):
        self._floats = [torch.empty(PIECE, dtype=dtype) for _ in range(6)]
        self._mask = torch.empty(PIECE, dtype=torch.bool)
        self._views: dict[torch.Size, list[torch.Tensor]] = {}
        self.mask = self._mask.numpy()

    def floats(self, size: int) -> list[torch.Tensor]:
        return [array[:size] for array in self._floats]

    def like(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Two arrays and the mask, in the tensor's shape, and one more."""
        shape = tensor.shape
        if shape not in self._views:
            self._views[shape] = [
                array[: tensor.numel()].view(shape)
                for array in (*self._floats[:3], self._mask)
            ]
        return self._views[shape]


def _update_one(
    tensors: Tensors, i: int, scalars: Numbers, clips: bool, scratch: _Scratch
) -> int:
    """Updates a tensor; returns how many elements were clipped."""
    whole = (
        tensors.gradients[i],
        tensors.weights[i],
        tensors.momentums[i],
        tensors.norms[i],
    )
    size = whole[0].numel()
    if size <= PIECE:
        _update_piece(*whole, scalars, clips, scratch)
        return np.count_nonzero(scratch.mask[:size]) if clips else 0
    clipped = 0
    # A gradient in another order is copied here.
    for pieces in zip(
        *(tensor.reshape(-1).split(PIECE) for tensor in whole), strict=True
    ):
        _update_piece(*pieces, scalars, clips, scratch)
        if clips:
            clipped += np.count_nonzero(scratch.mask[: pieces[0].numel()])
    return clipped


def _groups(positions: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """Splits `positions` into lists that fill a piece at most."""
    group: list[int] = []
    filled = 0
    for i in positions:
        if filled + sizes[i] > PIECE:
            yield group
            group, filled = [], 0
        group.append(i)
        filled += sizes[i]
    if group:
        yield group


def _update_joined(
    tensors: Tensors,
    group: list[int],
    scalars: Numbers,
    clips: bool,
    scratch: _Scratch,
) -> list[int]:
    """Updates some tensors as one; returns what was clipped of each."""
    gradients, weights, momentums, norms = (
        [whole[i].reshape(-1) for i in group]
        for whole in (
            tensors.gradients,
            tensors.weights,
            tensors.momentums,
            tensors.norms,
        )
    )
    sizes = [weight.numel() for weight in weights]
    joined = scratch.floats(sum(sizes))[2:]
    for parts, whole in zip(
        (gradients, weights, momentums, norms), joined, strict=True
    ):
        torch.cat([part.to(whole.dtype) for part in parts], out=whole)
    _update_piece(*joined, scalars, clips, scratch)
    for parts, whole in zip(
        (weights, momentums, norms), joined[1:], strict=True
    ):
        for part, value in zip(parts, whole.split(sizes), strict=True):
            part.copy_(value)
    if not clips:
        return [0] * len(group)
    ends = np.cumsum(sizes)
    return [
        np.count_nonzero(scratch.mask[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]


def _update_piece(
    g: torch.Tensor,
    w: torch.Tensor,
    m: torch.Tensor,
    u: torch.Tensor,
    scalars: Numbers,
    clips: bool,
    scratch: _Scratch,
) -> None:
    """Updates `w`, `m` and `u`; marks the clipped in the mask, if `clips`."""
    a, b, converted, mask = scratch.like(g)
    if g.dtype != m.dtype:
        g = converted.copy_(g)
    torch.abs(g, out=a)
    if clips:
        torch.mul(u, scalars.clip_multiplier, out=b)
        b.add_(scalars.clip_epsilon).clamp_(max=FLOAT32_MAX)
        torch.gt(a, b, out=mask)
        torch.minimum(a, b, out=a)
    u.mul_(scalars.beta_2)
    torch.maximum(u, a, out=u)
    if clips:
        g = torch.copysign(a, g, out=a)
    torch.mul(g, scalars.one_minus_beta_1, out=a)
    m.mul_(scalars.beta_1).add_(a)
    torch.add(u, scalars.epsilon, out=b)
    numerator = m
    if scalars.epsilon < _SMALLEST_NORMAL:
        is_zero = b == 0
        b.masked_fill_(is_zero, 1)
        numerator = torch.where(is_zero, 0.0 * m, m)
    if scalars.bias_correction is not None:
        b.mul_(scalars.bias_correction)
    if w.dtype == m.dtype:
        w.addcdiv_(numerator, b, value=-scalars.learning_rate)
        return
    a.copy_(w)
    w.copy_(a.addcdiv_(numerator, b, value=-scalars.learning_rate))
