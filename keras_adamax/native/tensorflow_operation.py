"""The update of variables on a CPU by a compiled library, in one operation."""

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_adamax.backends.step import Step
from keras_adamax.backends.tensorflow import resources
from keras_adamax.native import build, supported
from keras_adamax.native.tensorflow_tensors import (
    counted_by_library,
    dtype_names,
    taken_by_library,
)
from keras_adamax.native.tensorflow_xla import is_compiled_by_xla
from keras_adamax.update_rule import Hyperparameters

Tensor = Any


@functools.cache
def _operations() -> Any:
    """The library's operations.

    Raises:
        CompilationError: If there is no library.
    """
    version = tf.version
    return build.load(
        "tensorflow_operation.cpp",
        options=tuple(tf.sysconfig.get_compile_flags()),
        links=tuple(tf.sysconfig.get_link_flags()),
        release=f"{version.VERSION} {version.GIT_VERSION}",
        open_library=tf.load_op_library,
    )


@functools.cache
def _failure() -> str | None:
    """Why there is no library; it is tried once a process."""
    return supported.failure_of(_operations)


def serves(kernel: str, tensors: Sequence[Any]) -> bool:
    """Whether the library takes such tensors under the chosen kernel.

    Not in what XLA compiles as a whole: `tensorflow_xla.py` has that.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    return not is_compiled_by_xla() and supported.serves(
        kernel, dtype_names(tensors), _failure
    )


def update(
    step: Step,
    gradients: Sequence[Tensor],
    hyperparameters: Hyperparameters,
) -> list[Tensor]:
    """Updates the variables of `step`, and their rows of `clip_counts`.

    Returns:
        The sums of each variable, where they are asked for.
    """
    found = _operations().keras_adamax_update(
        weights=_handles(step.weights),
        momentums=_handles(step.momentums),
        norms=_handles(step.norms),
        gradients=taken_by_library(gradients, step.weights, step.dtype),
        indices=step.indices,
        measures=int(step.measures),
        **_settings(step, hyperparameters),
    )
    return list(found) if step.measures else []


def serves_rows(step: Step, values: Sequence[Tensor]) -> bool:
    """Whether the library takes rows of `values`; as `serves`."""
    kinds = zip(dtype_names(step.weights), dtype_names(values), strict=True)
    return serves(step.kernel, step.weights) and all(
        kind in supported.KINDS for kind in kinds
    )


def update_rows(step: Step) -> list[Tensor]:
    """Updates the rows of the variables of `step` that gradients have.

    Returns:
        The sums of each variable, where they are asked for.
    """
    sums: list[Tensor] = []
    settings = _settings(
        step, step.hyperparameters(step.learning_rate, step.dtype)
    )
    handles = map(_handles, (step.weights, step.momentums, step.norms))
    for index, gradient, weight, momentum, norm in zip(
        step.indices, step.gradients, *handles, strict=True
    ):
        found = _operations().keras_adamax_update_rows(
            weight=weight,
            momentum=momentum,
            norm=norm,
            rows=gradient.indices,
            values=gradient.values,
            index=index,
            measures=int(step.measures),
            **settings,
        )
        sums += found if step.measures else []
    return sums


def _settings(step: Step, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """What the operations of a step have in common."""
    counts, exclusions = step.clip_counts, step.exclusions
    return {
        "clip_counts": [] if counts is None else _handles([counts]),
        "scalars": [
            tf.cast(scalar, step.dtype)
            for scalar in supported.scalars(hyperparameters)
        ],
        "exclusions": (
            [] if exclusions is None else [tf.convert_to_tensor(exclusions)]
        ),
        "clips": step.clip_gradients,
    }


def count_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """How many elements of each tensor are NaN or infinite, int64."""
    return _operations().keras_adamax_count_nonfinite(tensors=list(tensors))


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
