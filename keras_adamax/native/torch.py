"""The update of CPU tensors by a compiled library, all of them in one call."""

import ctypes
import functools
from array import array
from collections.abc import Callable, Sequence

import torch

from keras_adamax.backends.step import Step
from keras_adamax.backends.torch_tensors import Tensors, is_plain, not_clipped
from keras_adamax.native import build, supported
from keras_adamax.spike_rule import sample_size
from keras_adamax.update_rule import SUMS

# The number of each kind.
_KINDS = {
    (getattr(torch, weight), getattr(torch, gradient)): kind
    for kind, (weight, gradient) in enumerate(supported.KINDS)
}
# The number of each dtype, as in `RowsBy` in `update.h`.
_DTYPES = {
    getattr(torch, name): number
    for number, name in enumerate(("float32", "float64", "float16", "bfloat16"))
}
_COUNTED_KINDS = frozenset(
    (getattr(torch, state), getattr(torch, gradient))
    for state, gradient in supported.COUNTED_KINDS
)
# One thread does so many in about a millisecond. Less is not worth another: for
# about that long, torch's own threads wait for work in a loop, and a new one
# has to wait for a core.
_ELEMENTS_PER_THREAD = 2**20
# `kBlock` in `update.h`.
_BLOCK = 2**15


@functools.cache
def _update() -> Callable[..., None]:
    """The library's function.

    Raises:
        CompilationError: If there is no library.
    """
    function = build.load("torch.cpp").keras_adamax_update
    function.restype = None
    function.argtypes = [
        ctypes.c_int64,
        *[ctypes.c_void_p] * 13,
        ctypes.c_int64,
    ]
    return function


@functools.cache
def _count_above() -> Callable[..., None]:
    """The library's other function.

    Raises:
        CompilationError: If there is no library.
    """
    library = build.load("torch.cpp")
    function = library.keras_adamax_count_above
    function.restype = None
    function.argtypes = [
        ctypes.c_int64,
        *[ctypes.c_void_p] * 8,
        ctypes.c_double,
        ctypes.c_double,
        ctypes.c_int64,
    ]
    return function


@functools.cache
def _failure() -> str | None:
    """Why there is no library; it is tried once a process."""
    return supported.failure_of(_update)


def serves(kernel: str, weights: Sequence[torch.Tensor]) -> bool:
    """Whether the library takes such weights under the chosen kernel.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    dtypes = {weight.dtype for weight in weights}
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return supported.serves(kernel, names, _failure, other="eager")


def update(step: Step, tensors: Tensors) -> torch.Tensor | None:
    """Updates CPU tensors in place, and their rows of `clip_counts`.

    Returns:
        The sums of each, where they are asked for.
    """
    excluded = not_clipped(step)
    scalars = supported.scalars(
        step.hyperparameters(step.learning_rate, step.dtype)
    )
    state_dtype = tensors.norms[0].dtype
    # Those of other dtypes, or in another order, are copied.
    gradients = [
        gradient
        if (weight.dtype, gradient.dtype) in _KINDS and gradient.is_contiguous()
        else gradient.to(state_dtype).contiguous()
        for gradient, weight in zip(
            tensors.gradients, tensors.weights, strict=True
        )
    ]
    kinds = [
        _KINDS[weight.dtype, gradient.dtype]
        for gradient, weight in zip(gradients, tensors.weights, strict=True)
    ]
    clips = [
        0 if excluded is None or excluded[index] else 1
        for index in tensors.indices
    ]
    sizes = [weight.numel() for weight in tensors.weights]
    count = len(sizes)
    changed = [*tensors.weights, *tensors.momentums, *tensors.norms]
    rows = None
    if step.clip_counts is not None:
        counts = step.clip_counts.value
        width = counts.stride(0) * counts.element_size()
        first = counts.data_ptr()
        rows = [first + index * width for index in tensors.indices]
        changed.append(counts)
    arrays = [
        array("q", numbers_)
        for numbers_ in (
            kinds,
            clips,
            sizes,
            _addresses(gradients),
            _addresses(tensors.weights),
            _addresses(tensors.momentums),
            _addresses(tensors.norms),
            rows or (),
            [0] * count,
            [0] * (count + 1),
        )
    ]
    pointers: list[int | None] = [a.buffer_info()[0] for a in arrays]
    if rows is None:
        pointers[7] = None
    packed = array("d", map(float, scalars))
    threads = min(
        torch.get_num_threads(), 1 + sum(sizes) // _ELEMENTS_PER_THREAD
    )
    sums = of_blocks = None
    if step.measures:
        blocks = sum(-(-size // _BLOCK) for size in sizes)
        of_blocks = torch.empty((blocks, len(SUMS)), dtype=torch.float64)
        sums = torch.empty((count, len(SUMS)))
    _update()(
        count,
        *pointers,
        packed.buffer_info()[0],
        None if of_blocks is None else of_blocks.data_ptr(),
        None if sums is None else sums.data_ptr(),
        threads,
    )
    # Autograd notices a change of what it saved, as after torch's own.
    torch.autograd.graph.increment_version(changed)
    return sums


def count_above(
    gradients: Sequence[torch.Tensor],
    norms: Sequence[torch.Tensor],
    strides: Sequence[int],
    clip_multiplier: torch.Tensor,
    clip_epsilon: torch.Tensor,
    kernel: str,
) -> torch.Tensor | None:
    """How many elements of each sample exceed their bound, int32.

    Args:
        gradients: Whole ones, or samples of them.
        norms: Of the whole variables, all of one dtype.
        strides: Of the samples.
        clip_multiplier: Scalar.
        clip_epsilon: Scalar.
        kernel: The chosen kernel.

    Returns:
        A vector; `None` where the library does not serve.
    """
    if not serves(kernel, norms[:1]):
        return None
    count = len(norms)
    kept = []
    kinds, are_whole, sizes = [], [], []
    for gradient, norm, stride in zip(gradients, norms, strides, strict=True):
        if not _can_be_read(norm):
            return None
        # One in another order is copied.
        gradient = gradient.contiguous()
        if not _can_be_read(gradient):
            return None
        if (norm.dtype, gradient.dtype) not in _COUNTED_KINDS:
            if not gradient.is_floating_point():
                return None
            gradient = gradient.to(norm.dtype)
        size = norm.numel()
        looked_at = sample_size(norm.shape, stride)
        is_whole = gradient.numel() == size
        # The library reads as many elements as it is told.
        if not (is_whole or gradient.numel() == looked_at):
            return None
        kept.append(gradient)
        kinds.append(_DTYPES[gradient.dtype])
        are_whole.append(is_whole)
        sizes.append(looked_at)
    arrays = [
        array("q", numbers_)
        for numbers_ in (
            kinds,
            are_whole,
            sizes,
            strides,
            _addresses(kept),
            _addresses(norms),
            [0] * count,
            [0] * (count + 1),
        )
    ]
    threads = min(
        torch.get_num_threads(), 1 + sum(sizes) // _ELEMENTS_PER_THREAD
    )
    _count_above()(
        count,
        *(a.buffer_info()[0] for a in arrays),
        float(clip_multiplier),
        float(clip_epsilon),
        threads,
    )
    return torch.tensor(arrays[6], dtype=torch.int32)


def _can_be_read(tensor: torch.Tensor) -> bool:
    return (
        is_plain(tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
