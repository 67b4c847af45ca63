"""The update of variables on a CPU by a compiled library, in one operation."""

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_adamax.kernels import Step, _compiled_library, _cpu_library
from keras_adamax.kernels._tensorflow_in_xla import is_compiled_by_xla
from keras_adamax.kernels._tensorflow_tensors import (
    counted_by_library,
    dtype_names,
    resources,
    taken_by_library,
)
from keras_adamax.update_rule import Hyperparameters

Tensor = Any


@functools.cache
def _operations() -> Any:
    """The library's operations.

    Raises:
        CompilationError: If there is no library.
    """
    version = tf.version
    return _compiled_library.load(
        "_tensorflow_cpu.cpp",
        options=tuple(tf.sysconfig.get_compile_flags()),
        links=tuple(tf.sysconfig.get_link_flags()),
        release=f"{version.VERSION} {version.GIT_VERSION}",
        open_library=tf.load_op_library,
    )


@functools.cache
def _failure() -> str | None:
    """Why there is no library; it is tried once a process."""
    return _cpu_library.failure_of(_operations)


def serves(kernel: str, tensors: Sequence[Any]) -> bool:
    """Whether the library takes such tensors under the chosen kernel.

    Not in what XLA compiles as a whole: `_tensorflow_in_xla.py` has that.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    return not is_compiled_by_xla() and _cpu_library.serves(
        kernel, dtype_names(tensors), _failure
    )


def update(
    step: Step,
    gradients: Sequence[Tensor],
    hyperparameters: Hyperparameters,
) -> None:
    """Updates the variables of `step`, and their rows of `clip_counts`."""
    _operations().keras_adamax_update(
        weights=_handles(step.weights),
        momentums=_handles(step.momentums),
        norms=_handles(step.norms),
        gradients=taken_by_library(gradients, step.weights, step.dtype),
        indices=step.indices,
        **_settings(step, hyperparameters),
    )


def serves_rows(step: Step, values: Sequence[Tensor]) -> bool:
    """Whether the library takes rows of `values`; as `serves`."""
    kinds = zip(dtype_names(step.weights), dtype_names(values), strict=True)
    return serves(step.kernel, step.weights) and all(
        kind in _cpu_library.KINDS for kind in kinds
    )


def update_rows(step: Step) -> None:
    """Updates the rows of the variables of `step` that gradients have."""
    settings = _settings(
        step, step.hyperparameters(step.learning_rate, step.dtype)
    )
    handles = map(_handles, (step.weights, step.momentums, step.norms))
    for index, gradient, weight, momentum, norm in zip(
        step.indices, step.gradients, *handles, strict=True
    ):
        _operations().keras_adamax_update_rows(
            weight=weight,
            momentum=momentum,
            norm=norm,
            rows=gradient.indices,
            values=gradient.values,
            index=index,
            **settings,
        )


def _settings(step: Step, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """What the operations of a step have in common."""
    counts, exclusions = step.clip_counts, step.exclusions
    return {
        "clip_counts": [] if counts is None else _handles([counts]),
        "scalars": [
            tf.cast(scalar, step.dtype)
            for scalar in _cpu_library.scalars(hyperparameters)
        ],
        "exclusions": (
            [] if exclusions is None else [tf.convert_to_tensor(exclusions)]
        ),
        "clips": step.clip_gradients,
    }


def are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all elements of all tensors are finite, as a boolean scalar."""
    return _operations().keras_adamax_is_finite(tensors=list(tensors))


def count_above(
    gradients: Sequence[Tensor],
    norms: Sequence[Any],
    strides: Sequence[int],
    clip_multiplier: Tensor,
    clip_epsilon: Tensor,
) -> Tensor:
    """How many elements of each sample exceed their bound, int32."""
    return _operations().keras_adamax_count_above(
        norms=_handles(norms),
        gradients=counted_by_library(gradients, norms),
        scalars=[clip_multiplier, clip_epsilon],
        strides=list(strides),
    )


def _handles(variables: Sequence[Any]) -> list[Tensor]:
    return [variable.handle for variable in resources(variables)]
