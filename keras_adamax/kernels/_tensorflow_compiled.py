"""The update of variables on a CPU by a compiled library, in one operation."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_adamax.kernels import SETTING, Step, _compiled_library
from keras_adamax.kernels._cpu_library import GRADIENT_DTYPES
from keras_adamax.kernels._tensorflow_in_xla import is_compiled_by_xla
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
    try:
        _operations()
    except _compiled_library.CompilationError as error:
        logging.getLogger(__name__).info("Updates are left to XLA: %s", error)
        return str(error)
    return None


def serves(kernel: str, dtypes: Sequence[tf.DType]) -> bool:
    """Whether the library takes tensors of `dtypes` under the chosen kernel.

    Not in what XLA compiles as a whole: `_tensorflow_in_xla.py` has that.

    Raises:
        RuntimeError: If there is none and `kernel` is "compiled".
    """
    if kernel in ("fused", "reference") or is_compiled_by_xla():
        return False
    failure = _failure()
    if failure is not None and kernel == "compiled":
        raise _compiled_library.required(SETTING, "fused", failure)
    return failure is None and all(
        dtype.name in GRADIENT_DTYPES for dtype in dtypes
    )


def update(
    step: Step,
    gradients: Sequence[Tensor],
    hyperparameters: Hyperparameters,
) -> None:
    """Updates the variables of `step`, and their rows of `clip_counts`."""
    gradients = [
        gradient
        if gradient.dtype.name in GRADIENT_DTYPES[weight.dtype.name]
        else tf.cast(gradient, step.dtype)
        for gradient, weight in zip(
            gradients, map(_resource, step.weights), strict=True
        )
    ]
    _operations().keras_adamax_update(
        weights=_handles(step.weights),
        momentums=_handles(step.momentums),
        norms=_handles(step.norms),
        gradients=gradients,
        indices=step.indices,
        **_settings(step, hyperparameters),
    )


def serves_rows(step: Step, values: Sequence[Tensor]) -> bool:
    """Whether the library takes rows of `values`; as `serves`."""
    dtypes = [tf.as_dtype(weight.dtype) for weight in step.weights]
    return serves(step.kernel, dtypes) and all(
        value.dtype.name in GRADIENT_DTYPES[dtype.name]
        for value, dtype in zip(values, dtypes, strict=True)
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
    *scalars, bias_correction = hyperparameters
    if bias_correction is None:
        bias_correction = tf.ones((), step.dtype)
    counts, exclusions = step.clip_counts, step.exclusions
    return {
        "clip_counts": [] if counts is None else _handles([counts]),
        "scalars": [
            tf.cast(scalar, step.dtype)
            for scalar in (*scalars, bias_correction)
        ],
        "exclusions": (
            [] if exclusions is None else [tf.convert_to_tensor(exclusions)]
        ),
        "clips": step.clip_gradients,
    }


def are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all elements of all tensors are finite, as a boolean scalar."""
    return _operations().keras_adamax_is_finite(tensors=list(tensors))


def _handles(variables: Sequence[Any]) -> list[Tensor]:
    return [_resource(v).handle for v in variables]


def _resource(variable: Any) -> tf.Variable:
    """TensorFlow's own: Keras's optimizers take that as well."""
    return variable.value if isinstance(variable, keras.Variable) else variable
