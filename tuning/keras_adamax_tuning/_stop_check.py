"""Lets signals stop a training."""

from typing import Any

import keras

from keras_adamax_tuning import _signals


class StopCheck(keras.callbacks.Callback):
    """Stops a training when a signal has come.

    It looks at the beginning of batches: a hook at their end would make Keras
    wait for each batch's result on some backends.
    """

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks."""
        _signals.check()

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks."""
        _signals.check()
