"""What TensorBoard shows of a trial: its logs, and its hyperparameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_adamax.callbacks._event_files import EventFile


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
