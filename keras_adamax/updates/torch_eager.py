"""The update without a compiler, by torch's own operations, on the CPU.

The elements go through in pieces that stay in the cache, with scratch memory
that is used again and again: temporaries as large as the weight would cost
more for their page faults than the arithmetic takes. Tensors much smaller than
a piece are joined, so that there are few operations however many they are.

The operations are those of the specification in its order, none of them fused
(`add` with `alpha` would be), so that the results are the same bit for bit.
`addcdiv` multiplies, divides and adds one after the other, as it has it too.
"""

import threading
from collections.abc import Callable

import numpy as np
import torch

from keras_adamax.backends.step import Step
from keras_adamax.backends.torch_tensors import (
    Tensors,
    add_counts,
    not_clipped,
    small_groups,
)
from keras_adamax.update_rule import FLOAT32_MAX, SUMS

# In float32 the scratch memory is 2 MiB. A count up to it is exact.
PIECE = 2**16
# From here on an operation costs more for its elements than for its call.
_SMALL = 2**13
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def update(step: Step, tensors: Tensors) -> torch.Tensor | None:
    """Updates CPU tensors in place, and their rows of `clip_counts`.

    Returns:
        The sums of each, where they are asked for.
    """
    excluded = not_clipped(step)
    scalars = _Scalars(step)
    scratch = _scratch(tensors.norms[0].dtype)
    clips = [
        excluded is not None and not excluded[index]
        for index in tensors.indices
    ]
    sizes = [weight.numel() for weight in tensors.weights]
    clipped = [0] * len(sizes)
    sums = np.zeros((len(SUMS), len(sizes))) if step.measures else None
    for i, size in enumerate(sizes):
        if size > _SMALL:
            its = None if sums is None else sums[:, i]
            clipped[i] = _update_one(
                tensors, i, scalars, clips[i], scratch, its
            )
    for are_clipped in (True, False):
        small = [
            i
            for i, size in enumerate(sizes)
            if 0 < size <= _SMALL and clips[i] == are_clipped
        ]
        for group in small_groups(small, sizes, PIECE):
            its = None if sums is None else np.empty((len(SUMS), len(group)))
            counts = _update_joined(
                tensors, group, scalars, are_clipped, scratch, its
            )
            if sums is not None:
                sums[:, group] = its
            for i, count in zip(group, counts, strict=True):
                clipped[i] = count
    if step.clip_counts is not None:
        counted = [
            size if is_clipped else 0
            for size, is_clipped in zip(sizes, clips, strict=True)
        ]
        add_counts(step, tensors.indices, torch.tensor(clipped), counted)
    return None if sums is None else torch.from_numpy(sums.T.astype("float32"))


class _Scalars:
    """The scalars of a step: tensors (faster than numbers), or numbers."""

    def __init__(self, step: Step):
        values = step.hyperparameters(step.learning_rate, step.dtype)
        self.beta_1, self.beta_2 = values.beta_1, values.beta_2
        self.one_minus_beta_1 = 1.0 - values.beta_1
        self.epsilon = values.epsilon
        self.can_be_zero = values.epsilon.item() < _SMALLEST_NORMAL
        self.clip_multiplier = values.clip_multiplier
        self.clip_epsilon = values.clip_epsilon
        self.bias_correction = values.bias_correction
        self.learning_rate = values.learning_rate.item()
        self.minus_learning_rate = -self.learning_rate


class _Scratch:
    """Memory for pieces, used again for each."""

    def __init__(self, dtype: torch.dtype):
        self._arrays = [torch.empty(PIECE, dtype=dtype) for _ in range(8)]
        self._views: dict[torch.Size, list[torch.Tensor]] = {}

    def arrays(self, shape: torch.Size) -> list[torch.Tensor]:
        """Four arrays of a shape."""
        if shape not in self._views:
            self._views[shape] = [
                array[: shape.numel()].view(shape) for array in self._arrays[:4]
            ]
        return self._views[shape]

    def joined(self, size: int) -> list[torch.Tensor]:
        """Four other vectors."""
        return [array[:size] for array in self._arrays[4:]]


_threads = threading.local()


def _scratch(dtype: torch.dtype) -> _Scratch:
    """The scratch memory of this thread."""
    kept = vars(_threads).setdefault("scratch", {})
    if dtype not in kept:
        kept[dtype] = _Scratch(dtype)
    return kept[dtype]


def _update_one(
    tensors: Tensors,
    i: int,
    scalars: _Scalars,
    clips: bool,
    scratch: _Scratch,
    sums: np.ndarray | None,
) -> int:
    """Updates a tensor; returns how many elements were clipped."""

    def add(row: int, x: torch.Tensor) -> None:
        assert sums is not None
        flat = x.reshape(-1)
        sums[row] += float(torch.dot(flat, flat))

    whole = (
        tensors.gradients[i],
        tensors.weights[i],
        tensors.momentums[i],
        tensors.norms[i],
    )
    if whole[0].numel() <= PIECE:
        pieces = [whole]
    else:
        # A gradient in another order is copied here.
        pieces = zip(
            *(tensor.reshape(-1).split(PIECE) for tensor in whole), strict=True
        )
    measure = None if sums is None else add
    clipped = 0
    for g, w, m, u in pieces:
        is_clipped = _update_piece(g, w, m, u, scalars, clips, scratch, measure)
        if clips:
            clipped += int(is_clipped.sum().item())
    return clipped


def _update_joined(
    tensors: Tensors,
    group: list[int],
    scalars: _Scalars,
    clips: bool,
    scratch: _Scratch,
    sums: np.ndarray | None,
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
    g, w, m, u = joined = scratch.joined(sum(sizes))
    for parts, whole in zip(
        (gradients, weights, momentums, norms), joined, strict=True
    ):
        torch.cat([part.to(whole.dtype) for part in parts], out=whole)
    starts = np.cumsum([0, *sizes[:-1]])

    def write(row: int, x: torch.Tensor) -> None:
        assert sums is not None
        sums[row] = np.add.reduceat(
            np.square(x.numpy(), dtype="float64"), starts
        )

    is_clipped = _update_piece(
        g, w, m, u, scalars, clips, scratch, None if sums is None else write
    )
    for parts, whole in zip(
        (weights, momentums, norms), joined[1:], strict=True
    ):
        for part, value in zip(parts, whole.split(sizes), strict=True):
            part.copy_(value)
    if not clips:
        return [0] * len(group)
    return np.add.reduceat(is_clipped.numpy(), starts).astype(int).tolist()


def _update_piece(
    g: torch.Tensor,
    w: torch.Tensor,
    m: torch.Tensor,
    u: torch.Tensor,
    scalars: _Scalars,
    clips: bool,
    scratch: _Scratch,
    measure: Callable[[int, torch.Tensor], None] | None,
) -> torch.Tensor:
    """Updates `w`, `m` and `u`; returns 1 where clipped, if `clips`.

    `measure` gets the number of each of the `SUMS`, and that of which the
    squares are to be added.
    """
    a, b, is_clipped, converted = scratch.arrays(g.shape)
    if g.dtype != m.dtype:
        g = converted.copy_(g)
    if measure is not None:
        measure(0, g)
        measure(4, torch.isfinite(g).logical_not_().to(m.dtype))
    torch.abs(g, out=a)
    if clips:
        torch.mul(u, scalars.clip_multiplier, out=b)
        b.add_(scalars.clip_epsilon).clamp_(max=FLOAT32_MAX)
        # Into booleans this takes four times as long.
        torch.gt(a, b, out=is_clipped)
        torch.minimum(a, b, out=a)
    u.mul_(scalars.beta_2)
    torch.maximum(u, a, out=u)
    if clips:
        g = torch.clamp(g, torch.neg(b, out=a), b, out=a)
    if measure is not None:
        measure(1, g)
    torch.mul(g, scalars.one_minus_beta_1, out=a)
    m.mul_(scalars.beta_1).add_(a)
    if measure is not None:
        measure(3, m)
    torch.add(u, scalars.epsilon, out=b)
    numerator = m
    if scalars.can_be_zero:
        is_zero = b == 0
        b.masked_fill_(is_zero, 1)
        numerator = torch.where(is_zero, 0.0 * m, m)
    if scalars.bias_correction is not None:
        b.mul_(scalars.bias_correction)
    if measure is not None:
        measure(2, torch.div(numerator, b, out=a).mul_(scalars.learning_rate))
    if w.dtype == m.dtype:
        w.addcdiv_(numerator, b, value=scalars.minus_learning_rate)
    else:
        a.copy_(w)
        w.copy_(a.addcdiv_(numerator, b, value=scalars.minus_learning_rate))
    return is_clipped
