"""What the loggers have in common: when a record is due."""

import atexit
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_adamax.callbacks import (
    _arguments,
    _callback_list,
    _optimizers,
    _processes,
)
from keras_adamax.callbacks._batch_logs import BatchLogs
from keras_adamax.callbacks._batches import make_counter
from keras_adamax.callbacks._files import Files
from keras_adamax.callbacks._fit_thread import FitThread
from keras_adamax.callbacks._measurement import Measurement, scalars_of
from keras_adamax.callbacks._pending_records import PendingRecords, Record
from keras_adamax.callbacks._record_keeper import RecordKeeper
from keras_adamax.callbacks._record_writer import RecordWriter
from keras_adamax.callbacks._window_means import WindowMeans
from keras_adamax.records import Block, Moment

# Loggers that may have a record on its way: a `fit` that fails calls no hook.
_unsettled: "set[Recorder]" = set()


@atexit.register
def _settle_all() -> None:
    while _unsettled:
        _unsettled.pop().settle()


class Recorder(RecordKeeper):
    """Base class of the loggers.

    A record is started when the next batch begins, or the epoch ends. Keras
    calls these hooks in `fit`'s own thread and in order, whatever the backend
    does meanwhile, and `on_train_batch_end` not necessarily. Its numbers are
    waited for one batch later, so that the device has work meanwhile.

    Args:
        update_freq: `"epoch"`, or a number of batches.
        log_dir: Folder for TensorBoard's event files, or `None`.
        filename: CSV file, or `None`.
        batch_logs: Whether the summaries are added to the logs of batches;
            or which of them.
        on_record: Function of step, name and value, called for each value.
    """

    # On JAX and torch, `fit` waits for every batch if a callback has an
    # `on_train_batch_end` and does not say this (on JAX that alone costs more
    # than everything else here). Ours reads and writes `logs`, and nothing
    # that a running step may have given away.
    async_safe = True

    def __init__(
        self,
        update_freq: str | int = "epoch",
        log_dir: str | os.PathLike | None = None,
        filename: str | os.PathLike | None = None,
        batch_logs: bool | Sequence[str] = False,
        on_record: Callable[[int, str, float], Any] | None = None,
    ):
        super().__init__()
        self.update_freq = _arguments.check_freq("update_freq", update_freq)
        self.log_dir = _arguments.check_optional_path("log_dir", log_dir)
        self.filename = _arguments.check_optional_path("filename", filename)
        self.batch_logs = _arguments.check_batch_logs(
            batch_logs, self._all_summaries()
        )
        self.on_record = _arguments.check_on_record(on_record)
        self._writer = RecordWriter(self._runs)
        self._reset()

    def _reset(self) -> None:
        """Forgets everything about the last `fit`, except for its records."""
        self._thread = FitThread(type(self).__name__, "logger")
        self._epoch = 0
        self._optimizers: list[Any] = []
        self._has_begun_training = False
        self._has_begun_run = False
        self._has_window = False
        self._restored: Mapping[str, Any] | None = None
        self._run_in_file: int | None = None
        self._counter = make_counter(None, None)
        self._summary: dict[str, float] = {}
        self._batch_logs = BatchLogs()
        self._means = WindowMeans()
        self._pending = PendingRecords(self._batch_logs, self._means)
        self._runs.begin_fit()

    # What a logger adds

    def _check_model(self) -> None:
        """Raises an error if the model cannot be observed."""

    def _begin_window(self) -> bool:
        """Starts measuring; False if the model is not built so far."""
        raise NotImplementedError

    def _start_measuring(self, has_window: bool) -> Callable[..., Measurement]:
        """Starts to measure from the last call or `_begin_window` until now.

        Args:
            has_window: False if there is nothing to measure from.

        Returns:
            Function that waits for the result. It is told whether the model's
            variables hold what the last step gave; else it must not read them.
        """
        raise NotImplementedError

    def _measure_between(self) -> Measurement:
        """What is to be written when an epoch ends and no record is due."""
        return Measurement(self._read_step(), (), {}, {})

    def _epoch_summary(self) -> dict[str, float]:
        """What the epoch that has just been measured adds to its logs."""
        return self._summary

    def _end_windows(self) -> None:
        """Frees what is kept to measure from."""

    def _window_state(self) -> tuple[Any, list[np.ndarray]]:
        """What is measured from: JSON, and arrays."""
        raise NotImplementedError

    def _restore_window(self, state: Any, arrays: list[np.ndarray]) -> None:
        """Measures from what `_window_state` gave."""
        raise NotImplementedError

    # Hooks

    def set_model(self, model: Any) -> None:
        """Keras calls it when `fit` begins."""
        super().set_model(model)
        self._has_begun_training = False
        _callback_list.attach(self)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks that records can be made and written."""
        _settle_all()  # before a file is read that they belong into
        self._reset()
        self._thread.begin()
        self._has_begun_training = True
        model = self.model
        _callback_list.put_first(Recorder)
        self._optimizers = _optimizers.of_model(model)
        self._check_model()
        self._counter = make_counter(self.params, model)
        self._writer.close()
        is_first = _processes.is_first()
        places = (self.filename, self.log_dir) if is_first else (None, None)
        files = Files(*places, self.summary_keys[0], type(self).__name__)
        self._writer = RecordWriter(
            self._runs, files, self.on_record if is_first else None
        )
        tail = files.open()
        self._run_in_file = tail.run
        if tail.run is not None:
            self._runs.check_variables(
                self._model, str(self.filename), tail.run, tail.variables
            )
        self._runs.check_model(self._model)

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Begins a run, or continues one, in the first epoch."""
        self._thread.check()
        self._epoch = epoch
        if not self._has_begun_run:
            self._begin_run(epoch)
        self._counter.begin_epoch()
        self._means.begin_epoch()
        self._open_window()

    def on_train_batch_begin(
        self, batch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Records what the batches so far did, if that is due."""
        if self.update_freq == "epoch":
            if not self._has_window and batch > 0:
                self._thread.check()
                self._open_window()
            return
        self._thread.check()
        done = self._counter.advance(batch)
        self._finish_pending()
        if self._counter.is_due(int(self.update_freq)):
            self._pending.add(done, self._start_record(done))
            _unsettled.add(self)
            if self.batch_logs:  # those of the batch that begins
                self._finish_pending()
        elif not self._has_window and batch > 0:
            self._open_window()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Adds the last summary to the logs of the batch; in any thread."""
        done = self._counter.ended(batch)
        if self.update_freq == "epoch" or logs is None:
            return
        if self._counter.may_cross(done, int(self.update_freq)):
            self._batch_logs.bring(done, logs)
        summary = self._summary
        logs.update(
            {name: summary[name] for name in self.batch_logs if name in summary}
        )

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Records the epoch, and adds the summary to its logs."""
        self._thread.check()
        done = self._counter.advance()
        # Moments come into a file in order, whichever loggers write to it.
        for logger in _callback_list.together_with(self):
            logger._finish_pending(at_once=True)
        scalars = scalars_of(logs)
        if self.update_freq == "epoch":
            self._writer.write(*self._start_record(done)(True), scalars)
        elif self._counter.is_due(int(self.update_freq)):
            record = self._start_record(done)(True)
            means = self._means.end_window(done, scalars)
            of_epoch = self._means.end_epoch(done, scalars)
            self._writer.write(*record, {**of_epoch, **means})
        else:
            between = self._measure_between().renamed(self._runs.renamed)
            self._means.learn_names(self._model, self.params)
            moment = Moment(self._runs.run, epoch, done, between.step)
            of_epoch = self._means.end_epoch(done, scalars)
            self._writer.write(moment, between, of_epoch)
        self._batch_logs.clear()
        if logs is not None:
            logs.update(dict.fromkeys(self.summary_keys, math.nan))
            logs.update(self._epoch_summary())

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Writes what is left and closes the files."""
        self._thread.check()
        if not self._has_begun_run and self._restored is not None:
            self._begin_run(0)  # it had been trained to the end
        self._finish_pending(at_once=True)
        _unsettled.discard(self)
        self._end_windows()
        self._has_window = False
        self._writer.close()

    def _begin_run(self, epoch: int) -> None:
        self._has_begun_run = True
        files = self._writer.files
        assert files is not None
        if self._restored is not None:
            self._continue_restored(self._restored, files)
            return
        step = self._runs.begin(
            self._model, epoch, self._run_in_file, self._read_step
        )
        if step > 0:
            kept = files.keep(self._runs.happened(step), step)
            self._runs.go_on_after(step, self._own_rows(kept))

    def _continue_restored(
        self, state: Mapping[str, Any], files: Files
    ) -> None:
        self._runs.restore(
            self._model,
            state["run"],
            state["blocks"],
            [(n, tuple(s)) for n, s in state.get("variables", ())],
        )
        self._counter = make_counter(
            self.params, self._model, total=state["total"]
        )
        self._counter.last_due = state["last_total"]
        self._summary = dict(state["summary"])
        # Backups of earlier versions do not have it.
        self._means.restore(state.get("means", [{}, 0]))
        files.restore(state, state["step"], self._runs.records.blocks)

    # For AtomicBackup

    def backup_state(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What a run must know to go on, apart from the records: a snapshot.

        Returns:
            JSON, and arrays.
        """
        has_window = self._has_window and self.update_freq != "epoch"
        window, arrays = self._window_state() if has_window else (None, [])
        files = self._writer.files or Files(None, None, "", "")
        return {
            "class": type(self).__name__,
            "run": self._runs.run,
            "total": self._counter.total,
            "last_total": self._counter.last_due,
            "summary": dict(self._summary),
            "means": self._means.to_json(),
            **files.backup_state(),
            "window": window,
            "config": self._destination(),
            "variables": self._runs.architecture(self._model),
        }, arrays

    def restore_state(
        self,
        state: Mapping[str, Any],
        arrays: list[np.ndarray],
        blocks: Sequence[Block],
        step: int,
    ) -> None:
        """Goes on from a snapshot when the first epoch begins.

        Args:
            state: JSON that `backup_state` gave.
            arrays: Its arrays.
            blocks: The records at that moment.
            step: The optimizer's updates at that moment.
        """
        if not self.fits(state, is_alike=True) and "config" in state:
            state = {**state, "window": None}
        self._restored = {
            **state,
            "arrays": arrays,
            "blocks": blocks,
            "step": step,
        }

    def fits(self, state: Mapping[str, Any], is_alike: bool) -> bool:
        """Whether a snapshot is of a logger of this class.

        Args:
            state: JSON that `backup_state` gave.
            is_alike: Whether its arguments must be equal, too.
        """
        return state["class"] == type(self).__name__ and (
            not is_alike or state.get("config") == self._destination()
        )

    @property
    def has_begun_training(self) -> bool:
        """Whether `on_train_begin` has been called in this `fit`."""
        return self._has_begun_training

    # Making a record

    def _read_step(self) -> int:
        """The updates that the optimizer has applied so far."""
        self._bring_up_to_date()
        return int(ops.convert_to_numpy(_optimizers.updates(self._optimizers)))

    def _bring_up_to_date(self) -> Any:
        """Makes variables hold what the last step gave; returns the model.

        On JAX, Keras keeps the values to itself while it trains, until
        somebody asks for the model. A step gives them away: nobody but a hook
        in `fit`'s own thread may ask, and not more often than needed.
        """
        return self.model

    def _open_window(self) -> None:
        if self._has_window:
            return
        self._has_window = self._begin_window()
        restored = self._restored
        if self._has_window and restored and restored["window"] is not None:
            self._restore_window(restored["window"], restored["arrays"])
        self._restored = None

    def _start_record(self, done: int) -> Callable[[bool], Record]:
        self._counter.note_due()
        had_window = self._has_window
        self._open_window()
        measure = self._start_measuring(had_window)
        if self.update_freq != "epoch":
            self._means.learn_names(self._model, self.params)

        def end(is_up_to_date: bool) -> Record:
            measurement = self._runs.under_recorded_names(
                measure(is_up_to_date), self._model
            )
            # One assignment: a thread may be reading it.
            self._summary = dict(measurement.summary)
            moment = Moment(self._runs.run, self._epoch, done, measurement.step)
            return moment, measurement

        return end

    def _finish_pending(
        self, at_once: bool = False, is_up_to_date: bool = True
    ) -> None:
        if self._pending:
            self._pending.finish(
                self._writer.write,
                at_once=at_once,
                is_up_to_date=is_up_to_date,
                waits_for_logs=not self._counter.has_ended_here,
            )

    def settle(self) -> None:
        """Adds the records that are being made."""
        # A hook in `fit`'s thread will do it where another thread asks.
        if self._thread.is_current:
            self._finish_pending(at_once=True, is_up_to_date=False)

    # Serialization

    def get_config(self) -> dict[str, Any]:
        """The arguments; records are saved by `save_records`."""
        batch_logs: bool | list[str] = list(self.batch_logs)
        if self.batch_logs == self._all_summaries():
            batch_logs = True
        return {
            **self._destination(),
            "batch_logs": batch_logs or False,
            "on_record": self.on_record
            and keras.saving.serialize_keras_object(self.on_record),
        }

    def _destination(self) -> dict[str, Any]:
        """When and where to it records: what it is known by in a backup."""
        return {
            "update_freq": self.update_freq,
            "log_dir": self.log_dir,
            "filename": self.filename,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Recorder":
        """Makes a logger from `get_config`'s result.

        Args:
            config: The arguments.
        """
        config = dict(config)
        if isinstance(config.get("on_record"), dict):
            config["on_record"] = keras.saving.deserialize_keras_object(
                config["on_record"]
            )
        return cls(**config)
