"""The update of CPU tensors by a compiled library, all of them in one call."""

import ctypes
import functools
from array import array
from collections.abc import Callable, Sequence

import torch

from keras_adamax.kernels import Step, _compiled_library, _cpu_library
from keras_adamax.kernels._torch_tensors import Tensors, not_clipped

# The number of each kind.
_KINDS = {
    (getattr(torch, weight), getattr(torch, gradient)): kind
    for kind, (weight, gradient) in enumerate(_cpu_library.KINDS)
}
# The number of each dtype, as in `RowsBy` in `_cpu_update.h`.
_DTYPES = ("float32", "float64", "float16", "bfloat16")
# One thread does so many in about a millisecond. Less is not worth another: for
# about that long, torch's own threads wait for work in a loop, and a new one
# has to wait for a core.
_ELEMENTS_PER_THREAD = 2**20


@functools.cache
def _update() -> Callable[..., None]:
    """The library's function.

    Raises:
        CompilationError: If there is no library.
    """
    function = _compiled_library.load("_torch_cpu.cpp").keras_adamax_update
    function.restype = None
    function.argtypes = [
        ctypes.c_int64,
        *[ctypes.c_void_p] * 11,
        ctypes.c_int64,
    ]
    return function


@functools.cache
def _count_above() -> Callable[..., None]:
    """The library's other function.

    Raises:
        CompilationError: If there is no library.
    """
    library = _compiled_library.load("_torch_cpu.cpp")
    function = library.keras_adamax_count_above
    function.restype = None
    function.argtypes = [
        ctypes.c_int64,
        *[ctypes.c_void_p] * 7,
        ctypes.c_double,
        ctypes.c_double,
        ctypes.c_int64,
    ]
    return function


@functools.cache
def _failure() -> str | None:
    """Why there is no library; it is tried once a process."""
    return _cpu_library.failure_of(_update)


def serves(kernel: str, weights: Sequence[torch.Tensor]) -> bool:
    """Whether the library takes such weights under the chosen kernel.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    dtypes = {weight.dtype for weight in weights}
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return _cpu_library.serves(kernel, names, _failure, other="eager")


def update(step: Step, tensors: Tensors) -> None:
    """Updates CPU tensors in place, and their rows of `clip_counts`."""
    excluded = not_clipped(step)
    scalars = _cpu_library.scalars(
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
    _update()(count, *pointers, packed.buffer_info()[0], threads)
    # Autograd notices a change of what it saved, as after torch's own.
    torch.autograd.graph.increment_version(changed)


def count_above(
    gradients: Sequence[torch.Tensor],
    norms: Sequence[torch.Tensor],
    strides: Sequence[int],
    clip_multiplier: torch.Tensor,
    clip_epsilon: torch.Tensor,
) -> torch.Tensor:
    """How many elements of each sample exceed their bound, int32."""
    samples = [
        (
            g
            if (_name(norm), _name(g)) in _cpu_library.COUNTED_KINDS
            else g.to(norm.dtype)
        ).contiguous()
        for g, norm in zip(gradients, norms, strict=True)
    ]
    sizes = [sample.numel() for sample in samples]
    count = len(samples)
    arrays = [
        array("q", numbers_)
        for numbers_ in (
            [_DTYPES.index(_name(sample)) for sample in samples],
            sizes,
            strides,
            _addresses(samples),
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
    return torch.tensor(arrays[5].tolist(), dtype=torch.int32)


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
