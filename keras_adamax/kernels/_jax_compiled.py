"""The update on CPUs by a compiled library, as a call that XLA makes."""

import functools
import logging
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_adamax.kernels import SETTING, _compiled_library
from keras_adamax.update_rule import Hyperparameters

_UPDATE = "keras_adamax_update"
_COUNT = "keras_adamax_count_nonfinite"
# Dtypes of gradients that the library takes as they are, by the weight's.
_KINDS = {
    "float32": {"float32"},
    "float64": {"float64"},
    "float16": {"float16", "float32"},
    "bfloat16": {"bfloat16", "float32"},
}
# Variables of about so many elements go into a call: all of them in one would
# keep every gradient until the last is known.
_ELEMENTS = 2**18


@functools.cache
def _failure() -> str | None:
    """Why there is no library; it is tried once a process."""
    try:
        library = _compiled_library.load(
            "_jax_cpu.cpp",
            (
                *_compiled_library.WITHOUT_RUNTIME,
                f"-I{jax.ffi.include_dir()}",
            ),
        )
    except _compiled_library.CompilationError as error:
        logging.getLogger(__name__).info("Updates are left to XLA: %s", error)
        return str(error)
    for name in (_UPDATE, _COUNT):
        jax.ffi.register_ffi_target(
            name,
            jax.ffi.pycapsule(getattr(library, f"{name}_in_xla")),
            platform="cpu",
        )
    return None


def serves(kernel: str, weights: Sequence[jax.Array]) -> bool:
    """Whether the library updates `weights` under the chosen kernel.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    if kernel == "fused":
        return False
    failure = _failure()
    if failure is not None and kernel == "compiled":
        raise _compiled_library.required(SETTING, "fused", failure)
    return failure is None and all(
        keras.backend.standardize_dtype(w.dtype) in _KINDS for w in weights
    )


def update(
    tensors: Sequence[Sequence[jax.Array]],
    hyperparameters: Hyperparameters,
    exclusions: jax.Array | None,
    indices: Sequence[int],
    clips: bool,
) -> tuple[list, list, list, jax.Array]:
    """New weights, momentums, norms; how many elements were clipped of each.

    Args:
        tensors: Gradients, weights, momentums and norms.
        hyperparameters: The scalars of the step.
        exclusions: Shape `(n,)`, > 0 where a variable is not clipped; `None`
            where all are alike.
        indices: Which of the `n` variables they are.
        clips: Whether gradients are clipped at all.
    """
    dtype = tensors[3][0].dtype
    *scalars, bias_correction = hyperparameters
    if bias_correction is None:
        bias_correction = 1.0
    packed = jnp.stack(
        [jnp.asarray(x, dtype) for x in (*scalars, bias_correction)]
    )
    if exclusions is None:
        exclusions = jnp.zeros((0,), "float32")
    results: list[Sequence[jax.Array]] = []
    for start, end in _groups([math.prod(w.shape) for w in tensors[1]]):
        gradients, *state = (list(values[start:end]) for values in tensors)
        gradients = [
            g if str(g.dtype) in _KINDS[str(w.dtype)] else g.astype(dtype)
            for g, w in zip(gradients, state[0], strict=True)
        ]
        changed = [x for values in state for x in values]
        first = 2 + len(gradients)
        call = jax.ffi.ffi_call(
            _UPDATE,
            [
                *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed),
                jax.ShapeDtypeStruct((end - start,), "int32"),
            ],
            input_output_aliases={first + i: i for i in range(len(changed))},
            vmap_method="sequential",
        )
        results.append(
            call(
                packed,
                exclusions,
                *gradients,
                *changed,
                indices=np.asarray(indices[start:end], "int64"),
                clips=np.int64(clips),
            )
        )
    new: tuple[list, list, list] = ([], [], [])
    for *values, _ in results:
        length = len(values) // 3
        for k, kind in enumerate(new):
            kind += values[k * length : (k + 1) * length]
    return *new, jnp.concatenate([clipped for *_, clipped in results])


def are_finite(tensors: Sequence[jax.Array]) -> jax.Array:
    """Whether all elements of all tensors are finite, as a boolean scalar."""
    call = jax.ffi.ffi_call(
        _COUNT,
        jax.ShapeDtypeStruct((len(tensors),), "int32"),
        vmap_method="sequential",
    )
    return jnp.all(call(*tensors) == 0)


def _groups(sizes: Sequence[int]) -> list[tuple[int, int]]:
    ends = [0]
    total = 0
    for i, size in enumerate(sizes):
        total += size
        if total >= _ELEMENTS or i == len(sizes) - 1:
            ends.append(i + 1)
            total = 0
    return list(zip(ends[:-1], ends[1:], strict=True))
