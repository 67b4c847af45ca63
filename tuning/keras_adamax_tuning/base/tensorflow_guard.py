"""Keeps TensorFlow out of processes that compute with another backend."""

import contextlib
import sys
from collections.abc import Iterator

import keras
from keras.src.utils.module_utils import tensorflow as keras_tensorflow


@contextlib.contextmanager
def not_imported() -> Iterator[None]:
    """Lets Keras believe that TensorFlow is not installed.

    On JAX and torch, Keras imports an installed TensorFlow, which takes
    seconds, only to ask whether an object to serialize is one of
    TensorFlow's, or to seed its generator. Where nobody has imported it there
    is neither. Does nothing where it is imported, or is the backend.
    """
    if keras.backend.backend() == "tensorflow" or "tensorflow" in sys.modules:
        yield
        return
    # No public way leads there; tests/tuning/test_canaries.py notices when
    # this one moves.
    known = keras_tensorflow._available
    keras_tensorflow._available = False
    try:
        yield
    finally:
        keras_tensorflow._available = known
