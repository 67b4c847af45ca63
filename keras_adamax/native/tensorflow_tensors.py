"""What a step is about, as TensorFlow's variables and tensors."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_adamax.native import supported

Tensor = Any


def dtype_names(tensors: Sequence[Any]) -> list[str]:
    """Names of the dtypes of tensors or variables."""
    return [tf.as_dtype(tensor.dtype).name for tensor in tensors]


def taken_by_library(
    gradients: Sequence[Tensor], weights: Sequence[Any], dtype: str
) -> list[Tensor]:
    """The gradients, in `dtype` where the library does not take them as is."""
    kinds = zip(dtype_names(weights), dtype_names(gradients), strict=True)
    return [
        gradient if kind in supported.KINDS else tf.cast(gradient, dtype)
        for gradient, kind in zip(gradients, kinds, strict=True)
    ]


def counted_by_library(
    gradients: Sequence[Tensor], norms: Sequence[Any]
) -> list[Tensor]:
    """Gradients, in the norms' dtype where they must be."""
    kinds = zip(dtype_names(norms), dtype_names(gradients), strict=True)
    return [
        gradient
        if kind in supported.COUNTED_KINDS
        else tf.cast(gradient, kind[0])
        for gradient, kind in zip(gradients, kinds, strict=True)
    ]
