"""What a step is about, as TensorFlow's variables and tensors."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_adamax.kernels import _cpu_library

Tensor = Any


def resource(variable: Any) -> Any:
    """TensorFlow's variable, which Keras's optimizers take as well."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def resources(variables: Sequence[Any]) -> list[Any]:
    """TensorFlow's variable of each."""
    return [resource(variable) for variable in variables]


def dtype_names(tensors: Sequence[Any]) -> list[str]:
    """Names of the dtypes of tensors or variables."""
    return [tf.as_dtype(tensor.dtype).name for tensor in tensors]


def taken_by_library(
    gradients: Sequence[Tensor], weights: Sequence[Any], dtype: str
) -> list[Tensor]:
    """The gradients, in `dtype` where the library does not take them as is."""
    kinds = zip(dtype_names(weights), dtype_names(gradients), strict=True)
    return [
        gradient if kind in _cpu_library.KINDS else tf.cast(gradient, dtype)
        for gradient, kind in zip(gradients, kinds, strict=True)
    ]


def counted_by_library(
    gradients: Sequence[Tensor], norms: Sequence[Any]
) -> list[Tensor]:
    """Gradients, in the norms' dtype where they must be."""
    kinds = zip(dtype_names(norms), dtype_names(gradients), strict=True)
    return [
        gradient
        if kind in _cpu_library.COUNTED_KINDS
        else tf.cast(gradient, kind[0])
        for gradient, kind in zip(gradients, kinds, strict=True)
    ]
