"""`AtomicBackup`: a stopped or killed `fit` goes on as if nothing happened."""

import os
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, saving

from keras_adamax import _validation
from keras_adamax.callbacks import _callback_list, _optimizers, _processes
from keras_adamax.callbacks._backup import (
    averages,
    model_state,
    weights_file,
)
from keras_adamax.callbacks._backup.generations import Damaged, Generations
from keras_adamax.callbacks._backup.journals import Journals
from keras_adamax.callbacks._batches import make_counter
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
        if not isinstance(backup_dir, str | os.PathLike) or not str(
            os.fspath(backup_dir)
        ):
            raise TypeError(
                "`backup_dir` must be a path (a string, not empty, or a "
                f"`pathlib.Path`). Received: backup_dir={backup_dir!r}."
            )
        if save_freq != "epoch":
            if isinstance(save_freq, str):
                raise ValueError(
                    '`save_freq` must be "epoch" or an integer >= 1, a number '
                    f"of batches. Received: save_freq={save_freq!r}."
                )
            save_freq = _validation.check_integer(
                "save_freq", save_freq, minimum=1, alternatives=' or "epoch"'
            )
        super().__init__(
            str(os.fspath(backup_dir)),
            save_freq=save_freq,
            double_checkpoint=True,
            delete_checkpoint=_validation.check_bool(
                "delete_checkpoint", delete_checkpoint
            ),
        )
        # See `Recorder`. With a number of batches, the logs of a batch must be
        # there when its state is saved.
        self.async_safe = save_freq == "epoch"
        self._reset()

    def _reset(self, is_writer: bool = True) -> None:
        self._is_writer = is_writer
        self._thread: int | None = None
        self._counter = make_counter(None, None)
        self._last_total = 0
        self._epoch = 0
        self._history: dict[str, Any] | None = None
        self._generations = Generations(self._folder)
        self._swaps: list[Any] = []
        self._are_behind: list[bool] = []
        self._restored_epoch: int | None = None
        self._has_warned = False
        self._has_warned_of_removal = False
        self._has_given_up = False
        self._recorders: list[Recorder] = []
        self._journals = Journals(self._folder, is_writer)

    @property
    def _folder(self) -> Path:
        return Path(os.path.abspath(self.backup_dir))

    # Hooks

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restores the newest backup that is intact, if there is one."""
        self._reset(_processes.is_first())
        self._thread = threading.get_ident()
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
            self._prepare_folder()
        # The `fit` before may have backups that are being removed.
        _processes.gather()
        restored = self._read_newest()
        self._check_processes(restored)
        if restored is None:
            self._journals.begin(self._recorders)
        else:
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
            self._check_thread()
            self._counter.advance(batch)
            if self._is_due():
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
        self._check_thread()
        self._counter.advance()
        if self.save_freq == "epoch" or self._is_due():
            self._save(epoch + 1, 0, logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Deletes the backups, if they shall be."""
        self._restore_history()  # where no epoch was left to train
        self._end_restoring()
        if self.delete_checkpoint and self._is_writer:
            self._delete()
        self._recorders = []
        self._journals.forget_loggers()

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "AtomicBackup was called in another thread than the one that "
                "`fit` runs in, where the model's state may be in use. Pass "
                "it in a list, `fit(..., callbacks=[backup])`, and call its "
                "hooks in one thread."
            )

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

    def _is_due(self) -> bool:
        every = int(self.save_freq)
        return self._counter.total // every > self._last_total // every

    # Saving

    def _prepare_folder(self) -> None:
        """Makes sure that backups can be written, before anything is trained.

        Raises:
            OSError: If they cannot.
        """
        try:
            self._generations.check_writable()
        except OSError as error:
            raise type(error)(
                error.errno,
                "AtomicBackup cannot write its backups there: "
                f"{error.strerror}. Free or change the place, or give another "
                "`backup_dir`",
                str(self._folder),
            ) from error

    def _save(
        self, epoch: int, batch: int, logs: Mapping[str, Any] | None
    ) -> None:
        """Writes a generation, or warns once that it cannot.

        Args:
            epoch: See `_write_generation`.
            batch: See there.
            logs: See there.
        """
        self._last_total = self._counter.total
        if self._has_given_up:
            return
        try:
            self._write_generation(epoch, batch, logs)
            if self._is_writer:
                self._warn_of_removal(self._generations.tidy())
        except OSError as error:
            self._has_given_up = isinstance(error, weights_file.Hdf5Error)
            if self._has_warned and not self._has_given_up:
                return
            self._has_warned = True
            then = "it tries again when the next is due"
            if self._has_given_up:
                then = "no more are made in this `fit`: HDF5 might crash"
            # h5py's own words are some lines.
            reason = os.strerror(error.errno) if error.errno else str(error)
            warnings.warn(
                f"AtomicBackup cannot write a backup to {self._folder} (epoch "
                f"{self._epoch + 1}): {reason}. Training goes on. The backups "
                f"before are kept, and {then}.",
                stacklevel=2,
            )

    def _warn_of_removal(self, failures: Sequence[str]) -> None:
        if not failures or self._has_warned_of_removal:
            return
        self._has_warned_of_removal = True
        warnings.warn(
            f"AtomicBackup cannot remove an old backup, {failures[0]}. The "
            "new backups are written, and count. It tries again with each. "
            "Until it can, old ones take up room.",
            stacklevel=3,
        )

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

    def _read_newest(self) -> tuple[Path, Any] | None:
        generations = self._generations
        damaged, ended = [], []
        for path in generations.paths():
            try:
                state = generations.read(path)
            except Damaged as error:
                damaged.append((path, error))
                continue
            except OSError as error:
                raise type(error)(
                    error.errno,
                    f"AtomicBackup cannot read a backup: {error.strerror}. It "
                    "may be intact and is kept. Make it readable, or remove "
                    "it to go on from the one before",
                    error.filename or str(path),
                ) from error
            epochs = (self.params or {}).get("epochs", 0)
            if state.get("has_only_averages") and state["epoch"] < epochs:
                ended.append(path)
                continue
            for bad, error in damaged:
                warnings.warn(
                    f"AtomicBackup: the newest backup, {bad}, is damaged "
                    f"({error}). The one before is used, of epoch "
                    f"{state['epoch']}.",
                    stacklevel=2,
                )
            for bad in [*ended, *(bad for bad, _ in damaged)]:
                generations.discard(bad)
            if self._is_writer:
                self._warn_of_removal(generations.tidy())
            return path, state
        if ended:
            raise ValueError(
                f"AtomicBackup: the backup {ended[0]} is of the end of a "
                "`fit` with SwapEMAWeights in front of AtomicBackup: it has "
                "the averages and not the weights that training goes on "
                f"with. Received: {self.params['epochs']} epochs, more than "
                "that had. Remove the folder to begin anew, and put "
                "AtomicBackup in front of SwapEMAWeights to add epochs later."
            )
        if damaged:
            raise RuntimeError(
                f"AtomicBackup: all backups in {self._folder} are damaged: "
                + "; ".join(f"{p.name} ({error})" for p, error in damaged)
                + ". Remove the folder to begin anew."
            )
        return None

    def _check_processes(self, restored: tuple[Path, Any] | None) -> None:
        """Raises an error where processes would go on from other backups."""
        total = -1 if restored is None else restored[1]["total"]
        totals = _processes.gather(total)
        if len(set(totals)) > 1:
            found = ", ".join(
                "none" if t < 0 else f"after {t} batches" for t in totals
            )
            raise ValueError(
                "AtomicBackup: `backup_dir` must be a folder that all "
                "processes of this training share. Received: "
                f"{self._folder}, where they find other backups, in the order "
                f"of the processes: {found}."
            )

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
            self._assign(model, path, state, arrays)
        except Exception as error:
            raise ValueError(
                f"AtomicBackup cannot restore the backup {path}: {error} The "
                f"model {model.name!r} is restored in parts only. Build and "
                "compile it anew, as it was."
            ) from error
        model._initial_epoch = self._restored_epoch = state["epoch"]
        self._counter = make_counter(self.params, model, state["total"])
        self._last_total = state["total"]
        self._history = state["history"]
        self._journals.restore(
            self._recorders, state["loggers"], arrays, state["step"]
        )

    def _assign(
        self, model: Any, path: Path, state: Any, arrays: Mapping[str, Any]
    ) -> None:
        model.load_weights(path / _WEIGHTS)
        description = state.get("model")
        if description is not None:
            model_state.check_updates(model, description, str(path))
        step = int(
            ops.convert_to_numpy(
                _optimizers.updates(_optimizers.of_model(model))
            )
        )
        if step != state["step"]:
            raise ValueError(
                "the state of the optimizer does not fit the backup, which "
                f"was made after {state['step']} updates. Received: an "
                f"optimizer that has {step} after it was restored. If the "
                "model has several, build each before `fit`: "
                "`model.d_optimizer.build(variables)`."
            )
        for i, variable in enumerate(model_state.unsaved_variables(model)):
            variable.assign(arrays[f"variable-{i}"])
        flags = state.get("averages_in_model")
        if flags is None and state["batch"] == 0:
            # Backups of earlier versions do not say it: the order does.
            flags = [not is_behind for is_behind in self._are_behind]
        averages.finish_swaps(model, self.params, state["epoch"], flags or ())

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
            self._warn_of_removal(failures)
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
