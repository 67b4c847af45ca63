"""Callbacks of a trial: what stops it, what it logs, what TensorBoard shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_adamax import AdamaxClipped, ClipRateLogger, WeightDeltaLogger
from keras_adamax.callbacks._event_files import EventFile
from keras_adamax_tuning.base import signals


class StopCheck(keras.callbacks.Callback):
    """Stops a training when a signal has come.

    It looks at the beginning of batches: a hook at their end would make Keras
    wait for each batch's result on some backends.
    """

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks."""
        signals.check()

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks."""
        signals.check()


def loggers_of(
    model: keras.Model, folder: Path
) -> list[keras.callbacks.Callback]:
    """Loggers that write into the folder of a trial what its model has."""
    filename = folder / "weights.csv"
    callbacks: list[keras.callbacks.Callback] = [
        WeightDeltaLogger(filename=filename)
    ]
    if _counts_clipping(model.optimizer):
        callbacks.insert(0, ClipRateLogger(filename=filename))
    return callbacks


def _counts_clipping(optimizer: Any) -> bool:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _counts_clipping(optimizer.inner_optimizer)
    inner = getattr(optimizer, "optimizers", None)
    if inner is not None:
        return any(_counts_clipping(one) for one in inner)
    return isinstance(optimizer, AdamaxClipped) and optimizer.track_clip_rate


class TrialEvents(keras.callbacks.Callback):
    """Writes the logs of each epoch, and the trial's row in HParams.

    KerasTuner writes HParams on TensorFlow alone; tensorboardX, which writes
    here, does so on every backend.

    Args:
        folder: Folder of this training, for event files of its own.
        hyperparameters: The trial's values, by name.
        objective: Name of the metric that HParams shows beside them.
    """

    def __init__(
        self, folder: Path, hyperparameters: Mapping[str, Any], objective: str
    ):
        super().__init__()
        self._hyperparameters = {
            name: str(value) if value is None else value
            for name, value in hyperparameters.items()
        }
        self._objective = objective
        self._file = EventFile(folder, "OptunaTuner", "tensorboard_dir")

    def on_train_begin(self, logs: Any = None) -> None:
        """Says what is trained."""
        del logs
        from tensorboardX import summary

        self._file.open()
        experiment, begin, self._end = summary.hparams(
            self._hyperparameters, {f"epoch/{self._objective}": 0.0}
        )
        self._file.write_summaries(0, [experiment, begin])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the logs."""
        scalars = {
            f"epoch/{name}": float(value)
            for name, value in (logs or {}).items()
        }
        self._file.write(epoch, scalars, {})

    def on_train_end(self, logs: Any = None) -> None:
        """Says that the training came to its end."""
        del logs
        self._file.write_summaries(0, [self._end])
        self._file.close()
