"""`AtomicBackup`: a stopped or killed `fit` goes on as if nothing happened."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, saving

from keras_adamax import _validation
from keras_adamax.callbacks import (
    _arguments,
    _callback_list,
    _optimizers,
    _processes,
)
from keras_adamax.callbacks._backup import (
    averages,
    model_state,
    newest,
    weights_file,
)
from keras_adamax.callbacks._backup.failures import Failures
from keras_adamax.callbacks._backup.generations import Generations
from keras_adamax.callbacks._backup.journals import Journals
from keras_adamax.callbacks._batches import make_counter
from keras_adamax.callbacks._fit_thread import FitThread
from keras_adamax.callbacks._recorder import Recorder

_WEIGHTS = "model.weights.h5"
_ARRAYS = "arrays.npz"


@saving.register_keras_serializable("keras_adamax")
class AtomicBackup(keras.callbacks.BackupAndRestore):
    """Backs up a `fit` so that it can be killed at any moment and resumed.

    Use it in place of `keras.callbacks.BackupAndRestore`, which writes weights
    and epoch one after the other: a kill in between trains an epoch again, on
    newer weights. Here the weights, the state of the optimizer and of random
    layers, the epoch, the History, and the records of the loggers become
    visible together, in one rename. The backup before is kept: if the newest
    is damaged, a warning says so and that one is used.

    A model may have several optimizers, for a `train_step` of its own: the
    state of each is restored that Keras saves with the model, which are those
    in its attributes and in lists, tuples and dictionaries there. An optimizer
    that is built in `fit` only is built when the backup is restored, for the
    variables that it had.

    Run the same script again to resume: the model must be built, and as it
    was, and `fit` gets the same arguments. Where `shuffle=False` or the data
    come in a fixed order for each epoch, the weights end as those of a run
    that was never stopped, to the last bit where the backend computes so; and
    the History, the loggers' `records` and their CSV files have no gap and no
    row twice.

    Put it last in the list of callbacks, at least behind our loggers: only
    what callbacks have done by then belongs to the backup. The state of
    others (EarlyStopping's patience, say) does not, as in Keras.
    `keras.callbacks.SwapEMAWeights` may stand in front or behind. In front,
    with `swap_on_epoch=True`, it leaves nothing but the averages after the
    last epoch, so a `fit` with more epochs goes on from the backup before. One
    that another callback of yours holds is not seen: give it to `fit` itself.
    A callback of your own that puts other weights into the model when an
    epoch ends, and takes them out when the next one begins, must stand behind
    `AtomicBackup`. One that changes the weights for good must stand in front.

    Where several processes train one model, give it to each of them, with a
    `backup_dir` that they share. The first one writes, all restore.

    Where a backup cannot be written in the middle of a `fit`, because the disk
    is full, say, there is one warning and training goes on. The backups before
    are kept, and it tries again when the next one is due. An old backup that
    cannot be removed is one warning as well; the new ones count.

    Args:
        backup_dir: Folder for the backups of one `fit`, and for nothing else.
        save_freq: `"epoch"`, or an integer >= 1: a number of batches, counted
            through all epochs. As in Keras, an epoch that was backed up in
            its middle is begun again at its first batch, with the weights of
            the backup. Defaults to `"epoch"`.
        delete_checkpoint: Whether the backups are deleted when `fit` has come
            to its end. By name only: in `BackupAndRestore` another argument
            is the third. Defaults to `True`.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If an argument is out of range. In `fit`: if the model is
            not built, if a logger stands behind this callback, or if the
            backup is of another model or of other optimizers.
        OSError: In `fit`, if backups cannot be written or read when it begins.
        RuntimeError: In `fit`, if there are backups and all are damaged.

    Example:
        >>> import keras, keras_adamax, numpy as np, tempfile
        >>> class Stop(keras.callbacks.Callback):
        ...     def on_epoch_begin(self, epoch, logs=None):
        ...         if epoch == 2:
        ...             raise KeyboardInterrupt
        >>> def fit(model, *callbacks):
        ...     return model.fit(
        ...         np.ones((4, 2)), np.ones((4, 1)), epochs=3, verbose=0,
        ...         callbacks=list(callbacks),
        ...     )
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adamax_clipped", "mse")
        >>> folder = tempfile.mkdtemp()
        >>> try:
        ...     fit(model, keras_adamax.AtomicBackup(folder), Stop())
        ... except KeyboardInterrupt:
        ...     pass
        >>> history = fit(model, keras_adamax.AtomicBackup(folder))
        >>> history.epoch, len(history.history["loss"])
        ([0, 1, 2], 3)
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike,
        save_freq: str | int = "epoch",
        *,
        delete_checkpoint: bool = True,
    ):
        super().__init__(
            _arguments.check_path("backup_dir", backup_dir),
            save_freq=_arguments.check_freq("save_freq", save_freq),
            double_checkpoint=True,
            delete_checkpoint=_validation.check_bool(
                "delete_checkpoint", delete_checkpoint
            ),
        )
        # See `Recorder`. With a number of batches, the logs of a batch must be
        # there when its state is saved.
        self.async_safe = self.save_freq == "epoch"
        self._reset()

    def _reset(self, is_writer: bool = True) -> None:
        self._is_writer = is_writer
        self._thread = FitThread("AtomicBackup", "backup")
        self._counter = make_counter(None, None)
        self._epoch = 0
        self._history: dict[str, Any] | None = None
        self._generations = Generations(self._folder)
        self._swaps: list[Any] = []
        self._are_behind: list[bool] = []
        self._restored_epoch: int | None = None
        self._failures = Failures(self._folder)
        self._recorders: list[Recorder] = []
        self._journals = Journals(self._folder, is_writer)

    @property
    def _folder(self) -> Path:
        return Path(os.path.abspath(self.backup_dir))

    # Hooks

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restores the newest backup that is intact, if there is one."""
        self._reset(_processes.is_first())
        self._thread.begin()
        model = self.model
        if not model.built:
            raise ValueError(
                "AtomicBackup needs a model that is built when `fit` is "
                f"called. Received: the model {model.name!r}, which is not. "
                "Give it a `keras.Input`, or call it on a batch of data. If "
                "it has no `call`, build its layers and set `model.built = "
                "True`."
            )
        self._recorders = _callback_list.attached()
        for recorder in self._recorders:
            if not recorder.has_begun_training:
                raise ValueError(
                    f"AtomicBackup must stand behind {type(recorder).__name__} "
                    "in the list of callbacks: it would back up the state "
                    "before the logger has recorded it."
                )
        # Not the list: it would keep loggers alive that a model has outlived.
        running = _callback_list.running()
        callbacks = [] if running is None else list(running.callbacks)
        self._swaps = averages.swapping(callbacks)
        behind = [c is self for c in callbacks]
        self._are_behind = [
            any(behind[: callbacks.index(swap)]) for swap in self._swaps
        ]
        self._counter = make_counter(self.params, model)
        if self._is_writer:
            newest.check_writable(self._generations)
        # The `fit` before may have backups that are being removed.
        _processes.gather()
        epochs = (self.params or {}).get("epochs", 0)
        restored = newest.read(self._generations, epochs)
        newest.check_shared(self._folder, restored)
        if restored is None:
            self._journals.begin(self._recorders)
            return
        if self._is_writer:
            self._failures.of_removal(self._generations.tidy())
        self._restore(model, *restored)

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Brings back the History, which resets itself when `fit` begins."""
        self._restore_history()
        self._end_restoring(epoch)
        self._epoch = epoch
        self._counter.begin_epoch()

    def on_train_batch_begin(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Backs up the batches so far, if that is due."""
        if self.save_freq != "epoch":
            self._thread.check()
            self._counter.advance(batch)
            if self._counter.is_due(int(self.save_freq)):
                self._save(self._epoch, batch, None)

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Counts batches; in any thread."""
        self._counter.ended(batch)

    def on_epoch_end(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Backs up the epoch, if that is due."""
        self._thread.check()
        self._counter.advance()
        if self.save_freq == "epoch" or self._counter.is_due(
            int(self.save_freq)
        ):
            self._save(epoch + 1, 0, logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Deletes the backups, if they shall be."""
        self._restore_history()  # where no epoch was left to train
        self._end_restoring()
        if self.delete_checkpoint and self._is_writer:
            self._delete()
        self._recorders = []
        self._journals.forget_loggers()

    def _end_restoring(self, epoch: int | None = None) -> None:
        """Checks that `fit` goes on where the backup ends.

        Args:
            epoch: The epoch that begins, if one does.
        """
        restored, self._restored_epoch = self._restored_epoch, None
        if restored is None:
            return
        # Keras would begin the next `fit` there as well.
        self.model._initial_epoch = None
        if epoch not in (None, restored):
            raise ValueError(
                "AtomicBackup: `initial_epoch` must be that of the `fit` that "
                f"made the backup in {self._folder}, which goes on with epoch "
                f"{restored} (they count from 0). Received: a `fit` that "
                f"begins with epoch {epoch}. To begin there, give another "
                "`backup_dir`, or remove that one."
            )

    # Saving

    def _save(
        self, epoch: int, batch: int, logs: Mapping[str, Any] | None
    ) -> None:
        """Writes a generation, or warns once that it cannot.

        Args:
            epoch: See `_write_generation`.
            batch: See there.
            logs: See there.
        """
        self._counter.note_due()
        if self._failures.has_given_up:
            return
        try:
            self._write_generation(epoch, batch, logs)
            if self._is_writer:
                self._failures.of_removal(self._generations.tidy())
        except OSError as error:
            self._failures.of_writing(error, self._epoch)

    def _write_generation(
        self, epoch: int, batch: int, logs: Mapping[str, Any] | None
    ) -> None:
        """Writes a generation.

        Args:
            epoch: The epoch to begin with when it is restored.
            batch: Batches of that epoch that the weights have seen.
            logs: Logs of an epoch that has ended just now.

        Raises:
            OSError: If it cannot be written. The ones before are as they were.
        """
        model = self.model
        if self._is_writer:
            self._folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"variable-{i}": ops.convert_to_numpy(v)
            for i, v in enumerate(model_state.unsaved_variables(model))
        }
        states, of_loggers = self._journals.write()
        arrays |= of_loggers
        step = int(
            ops.convert_to_numpy(
                _optimizers.updates(_optimizers.of_model(model))
            )
        )
        # In the middle of an epoch, the weights are in the model.
        swaps = [] if logs is None else self._swaps
        flags = [averages.are_in_model(swap) for swap in swaps]
        content = {
            "version": 1,
            "model": model_state.describe(model),
            "averages_in_model": flags,
            # See `SwapEMAWeights.on_epoch_end`.
            "has_only_averages": any(flags)
            and self._epoch == self.params["epochs"] - 1,
            "epoch": epoch,
            "batch": batch,
            "step": step,
            "total": self._counter.total,
            "history": self._history_with(model, logs),
            "loggers": states,
        }

        def write_files(folder: Path) -> None:
            weights_file.save(model, folder / _WEIGHTS)
            np.savez(folder / _ARRAYS, **arrays)

        if self._is_writer:
            self._generations.write(content, write_files)
            return
        # On JAX, saving makes variables, which all processes do together.
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder))

    def _history_with(
        self, model: Any, logs: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The History as it will be when all callbacks have seen the epoch."""
        history = model.history
        epochs = list(getattr(history, "epoch", []))
        values = {k: list(v) for k, v in history.history.items()}
        if logs is not None and (not epochs or epochs[-1] != self._epoch):
            epochs.append(self._epoch)
            for name, value in logs.items():
                values.setdefault(name, []).append(value)
        return {"epoch": epochs, "history": values}

    # Restoring

    def _restore(self, model: Any, path: Path, state: Any) -> None:
        with np.load(path / _ARRAYS) as file:
            arrays = dict(file)
        description = state.get("model")
        if description is not None:
            model_state.prepare(model, description, str(path))
        elif model.optimizer is not None and not model.optimizer.built:
            # Backups of earlier versions do not say what they are of.
            model.optimizer.build(model.trainable_variables)
        try:
            flags = state.get("averages_in_model")
            if flags is None and state["batch"] == 0:
                # Backups of earlier versions do not say it: the order does.
                flags = [not is_behind for is_behind in self._are_behind]
            model_state.restore(model, path / _WEIGHTS, state, arrays)
            averages.finish_swaps(
                model, self.params, state["epoch"], flags or ()
            )
        except Exception as error:
            raise ValueError(
                f"AtomicBackup cannot restore the backup {path}: {error} The "
                f"model {model.name!r} is restored in parts only. Build and "
                "compile it anew, as it was."
            ) from error
        model._initial_epoch = self._restored_epoch = state["epoch"]
        self._counter = make_counter(self.params, model, state["total"])
        self._history = state["history"]
        self._journals.restore(
            self._recorders, state["loggers"], arrays, state["step"]
        )

    def _restore_history(self) -> None:
        if self._history is None:
            return
        history = self.model.history
        history.epoch = list(self._history["epoch"])
        history.history = {
            name: list(values)
            for name, values in self._history["history"].items()
        }
        self._history = None

    def _delete(self) -> None:
        if not self._folder.is_dir():
            return
        failures = self._generations.tidy(keep=0)
        failures += self._journals.remove()
        left = self._generations.paths()
        if left:
            warnings.warn(
                "AtomicBackup cannot remove the backups of a `fit` that has "
                f"come to its end: {failures[0]}. Remove {left[0]}: the next "
                "`fit` with this `backup_dir` would go on from it.",
                stacklevel=2,
            )
        else:
            self._failures.of_removal(failures)
        if not any(self._folder.iterdir()):
            self._folder.rmdir()

    # Serialization

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {
            "backup_dir": self.backup_dir,
            "save_freq": self.save_freq,
            "delete_checkpoint": self.delete_checkpoint,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "AtomicBackup":
        """Makes a callback from `get_config`'s result.

        Args:
            config: The arguments.
        """
        return cls(**config)
