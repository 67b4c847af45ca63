"""The update on CPUs by a compiled library, as a call that XLA makes."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_adamax import exact_totals
from keras_adamax.backends.variable_groups import groups
from keras_adamax.native import build, supported
from keras_adamax.update_rule import SUMS, Hyperparameters


@functools.cache
def _failure() -> str | None:
    """Why there is no library; it is tried once a process."""
    return supported.failure_of(_register)


def _register() -> None:
    library = build.load(
        supported.XLA_SOURCE,
        (*build.WITHOUT_RUNTIME, f"-I{jax.ffi.include_dir()}"),
    )
    for name in (
        supported.UPDATE,
        supported.COUNT_NONFINITE,
        supported.COUNT_ABOVE,
    ):
        jax.ffi.register_ffi_target(
            name,
            jax.ffi.pycapsule(getattr(library, f"{name}_in_xla")),
            platform="cpu",
        )


def serves(kernel: str, tensors: Sequence[jax.Array]) -> bool:
    """Whether the library takes such tensors under the chosen kernel.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in tensors]
    return supported.serves(kernel, dtypes, _failure)


def update(
    tensors: Sequence[Sequence[jax.Array]],
    hyperparameters: Hyperparameters,
    exclusions: jax.Array | None,
    is_allowed: jax.Array | None,
    indices: Sequence[int],
    clips: bool,
    measures: bool,
) -> tuple[list, list, list, jax.Array, jax.Array | None]:
    """New weights, momentums, norms; `digits` of what was clipped of each.

    And the sums of each, if it `measures`.

    The library could add to the statistics as well, as it does on TensorFlow.
    But this XLA takes a quarter more time then for a step of 160 variables than
    where it does that with kernels of its own.

    Args:
        tensors: Gradients, weights, momentums and norms.
        hyperparameters: The scalars of the step.
        exclusions: Shape `(n,)`, > 0 where a variable is not clipped; `None`
            where all are alike.
        is_allowed: Boolean scalar: whether anything changes. `None`: it does.
        indices: Which of the `n` variables they are.
        clips: Whether gradients are clipped at all.
        measures: Whether the sums are asked for.
    """
    dtype = tensors[3][0].dtype
    packed = jnp.stack(
        [
            jnp.asarray(x, dtype)
            for x in (
                *supported.scalars(hyperparameters),
                1.0 if is_allowed is None else is_allowed,
            )
        ]
    )
    if exclusions is None:
        exclusions = jnp.zeros((0,), "float32")
    results: list[Sequence[jax.Array]] = []
    widths = [exact_totals.DIGITS, *[len(SUMS)] * measures]
    sizes = [math.prod(w.shape) for w in tensors[1]]
    for start, end in groups(sizes, supported.ELEMENTS_A_CALL):
        gradients, *state = (list(values[start:end]) for values in tensors)
        gradients = [
            g
            if (str(w.dtype), str(g.dtype)) in supported.KINDS
            else g.astype(dtype)
            for g, w in zip(gradients, state[0], strict=True)
        ]
        changed = [x for values in state for x in values]
        first = 2 + len(gradients)
        call = jax.ffi.ffi_call(
            supported.UPDATE,
            [
                *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed),
                *(
                    jax.ShapeDtypeStruct((end - start, width), "float32")
                    for width in widths
                ),
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
    for values in results:
        length = len(values) // 3
        for k, kind in enumerate(new):
            kind += values[k * length : (k + 1) * length]
    clipped, *sums = (
        jnp.concatenate(
            [values[len(values) // 3 * 3 + k] for values in results]
        )
        for k in range(len(widths))
    )
    return *new, clipped, sums[0] if measures else None


def count_nonfinite(tensors: Sequence[jax.Array]) -> jax.Array:
    """`digits` of how many elements of each tensor are NaN or infinite."""
    call = jax.ffi.ffi_call(
        supported.COUNT_NONFINITE,
        jax.ShapeDtypeStruct((len(tensors), exact_totals.DIGITS), "float32"),
        vmap_method="sequential",
    )
    # A count has no derivative.
    return call(*jax.lax.stop_gradient(list(tensors)))


def count_above(
    gradients: Sequence[jax.Array],
    norms: Sequence[jax.Array],
    strides: Sequence[int],
    clip_multiplier: jax.Array,
    clip_epsilon: jax.Array,
) -> jax.Array:
    """How many elements of each sample exceed their bound, int32."""
    dtype = norms[0].dtype
    gradients = [
        g
        if (str(dtype), str(g.dtype)) in supported.COUNTED_KINDS
        else g.astype(dtype)
        for g in gradients
    ]
    call = jax.ffi.ffi_call(
        supported.COUNT_ABOVE,
        jax.ShapeDtypeStruct((len(gradients),), "int32"),
        vmap_method="sequential",
    )
    numbers = jnp.stack([clip_multiplier, clip_epsilon])
    return call(
        # A count has no derivative.
        *jax.lax.stop_gradient([numbers, *gradients, *norms]),
        strides=np.asarray(strides, "int64"),
    )
