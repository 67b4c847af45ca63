"""What the loggers have in common: when a record is due."""

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_adamax import _validation, records
from keras_adamax.callbacks import _callback_list, _optimizers, _processes
from keras_adamax.callbacks._batch_logs import BatchLogs
from keras_adamax.callbacks._batches import make_counter
from keras_adamax.callbacks._files import Files
from keras_adamax.callbacks._measurement import (
    QUANTITIES,
    SUMMARIES,
    Measurement,
    scalars_of,
)
from keras_adamax.callbacks._runs import Runs
from keras_adamax.callbacks._window_means import WindowMeans
from keras_adamax.records import Block, Key, Moment, Records


class _Pending(NamedTuple):
    """A record that waits for the logs of its last batch."""

    moment: Moment
    measurement: Measurement


class Recorder(keras.callbacks.Callback):
    """Base class of the loggers.

    A record is made when the next batch begins, or the epoch ends. Keras calls
    these hooks in `fit`'s own thread and in order, whatever the backend does
    meanwhile, and `on_train_batch_end` not necessarily.

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

    summary_keys: tuple[str, ...] = ()
    # All that the logger writes, beside the logs.
    quantities: tuple[str, ...] = ()

    def __init__(
        self,
        update_freq: str | int = "epoch",
        log_dir: str | os.PathLike | None = None,
        filename: str | os.PathLike | None = None,
        batch_logs: bool | Sequence[str] = False,
        on_record: Callable[[int, str, float], Any] | None = None,
    ):
        super().__init__()
        if update_freq != "epoch":
            if isinstance(update_freq, str):
                raise ValueError(
                    '`update_freq` must be "epoch" or an integer >= 1, a '
                    f"number of batches. Received: update_freq={update_freq!r}."
                )
            update_freq = _validation.check_integer(
                "update_freq",
                update_freq,
                minimum=1,
                alternatives=' or "epoch"',
            )
        self.update_freq = update_freq
        self.log_dir = _check_path("log_dir", log_dir)
        self.filename = _check_path("filename", filename)
        self.batch_logs = _check_batch_logs(batch_logs, self._all_summaries())
        if on_record is not None and not callable(on_record):
            raise TypeError(
                "`on_record` must be None or a function of three arguments: "
                f"step, name and value. Received: on_record={on_record!r}."
            )
        self.on_record = on_record
        self._runs = Runs(type(self).__name__)
        self._files: Files | None = None
        self._is_writer = True
        self._reset()

    def _reset(self) -> None:
        """Forgets everything about the last `fit`, except for its records."""
        self._thread: int | None = None
        self._epoch = 0
        self._optimizers: list[Any] = []
        self._has_begun_training = False
        self._has_begun_run = False
        self._has_window = False
        self._restored: Mapping[str, Any] | None = None
        self._run_in_file: int | None = None
        self._counter = make_counter(None, None)
        self._last_total = 0
        self._summary: dict[str, float] = {}
        self._pending: list[_Pending] = []
        self._batch_logs = BatchLogs()
        self._means = WindowMeans()
        self._last_scalars: tuple[Moment | None, set[str]] = (None, set())
        self._keys: dict[tuple, tuple[Key, ...]] = {}
        self._runs.begin_fit()

    # What a logger adds

    def _check_model(self) -> None:
        """Raises an error if the model cannot be observed."""

    def _begin_window(self) -> bool:
        """Starts measuring; False if the model is not built so far."""
        raise NotImplementedError

    def _measure(self, has_window: bool) -> Measurement:
        """Measures from the last call or `_begin_window` until now.

        Args:
            has_window: False if there is nothing to measure from.
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
        """What `_measure` measures from: JSON, and arrays."""
        raise NotImplementedError

    def _restore_window(self, state: Any, arrays: list[np.ndarray]) -> None:
        """Measures from what `_window_state` gave."""
        raise NotImplementedError

    # Records

    @property
    def records(self) -> dict[str, np.ndarray]:
        """The records of all calls of `fit`, as columns of equal length.

        `run`, `epoch`, `batch` (batches done in the epoch), `step` (updates
        applied), `variable` (a path; empty for a value of all variables
        together or a scalar of `logs`), `quantity` and `value`.
        """
        return self._runs.records.columns()

    def save_records(self, filename: str | os.PathLike) -> None:
        """Writes the records to a CSV file, which is replaced.

        Args:
            filename: The file.
        """
        records.save(self._runs.records.blocks, filename)

    def load_records(self, filename: str | os.PathLike) -> None:
        """Reads the records from a CSV file, in place of those in memory.

        The next `fit` continues their numbering. What another logger has
        written into the same file is left out.

        Args:
            filename: The file.

        Raises:
            ValueError: If it does not hold records.
        """
        self._runs.replace(Records(self._own_rows(records.load(filename))))

    def _own_rows(self, blocks: Sequence[Block]) -> list[Block]:
        """The rows that this logger would have made, of a file of several."""
        others = set(QUANTITIES) - set(self.quantities)
        own_moments = {
            block.moment
            for block in blocks
            for key in block.keys
            if key.quantity in self.quantities
        }
        result = []
        for block in blocks:
            if block.moment not in own_moments and not self._has_extra_logs():
                continue
            rows = [
                (key, value)
                for key, value in zip(block.keys, block.values, strict=True)
                if key.quantity not in others
            ]
            if rows:
                keys, values = zip(*rows, strict=True)
                result.append(Block(block.moment, keys, values))
        return result

    def _has_extra_logs(self) -> bool:
        # With records by batch, an epoch's logs stand at moments of their own.
        return self.update_freq != "epoch"

    # Hooks

    def set_model(self, model: Any) -> None:
        """Keras calls it when `fit` begins."""
        super().set_model(model)
        self._has_begun_training = False
        _callback_list.attach(self)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks that records can be made and written."""
        self._reset()
        self._thread = threading.get_ident()
        self._has_begun_training = True
        model = self.model
        _callback_list.put_first(Recorder)
        self._optimizers = _optimizers.of_model(model)
        self._check_model()
        self._counter = make_counter(self.params, model)
        if self._files is not None:
            self._files.close()
        self._is_writer = _processes.is_first()
        self._files = Files(
            self.filename if self._is_writer else None,
            self.log_dir if self._is_writer else None,
            self.summary_keys[0],
            type(self).__name__,
        )
        tail = self._files.open()
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
        self._check_thread()
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
                self._check_thread()
                self._open_window()
            return
        self._check_thread()
        done = self._counter.advance(batch)
        if self._pending:
            self._finish_pending()
        if self._is_due():
            self._pending.append(self._make_record(done))
            # Without an end in this thread, another one brings the logs.
            if not self._counter.has_ended_here:
                self._batch_logs.wait(done)
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
        self._check_thread()
        done = self._counter.advance()
        self._finish_pending(at_once=True)
        scalars = scalars_of(logs)
        if self.update_freq == "epoch":
            self._write(self._make_record(done), scalars)
        elif self._is_due():
            record = self._make_record(done)
            means = self._means.end_window(done, scalars)
            of_epoch = self._means.end_epoch(done, scalars)
            self._write(record, {**of_epoch, **means})
        else:
            between = self._measure_between().renamed(self._runs.renamed)
            self._means.learn_names(self._model, self.params)
            moment = Moment(self._runs.run, epoch, done, between.step)
            of_epoch = self._means.end_epoch(done, scalars)
            self._write(_Pending(moment, between), of_epoch)
        self._batch_logs.clear()
        if logs is not None:
            logs.update(dict.fromkeys(self.summary_keys, math.nan))
            logs.update(self._epoch_summary())

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Writes what is left and closes the files."""
        self._check_thread()
        if not self._has_begun_run and self._restored is not None:
            self._begin_run(0)  # it had been trained to the end
        self._finish_pending(at_once=True)
        self._end_windows()
        self._has_window = False
        if self._files is not None:
            self._files.close()
        self._files = None

    def _check_thread(self) -> None:
        if self._thread is None:
            raise RuntimeError(
                f"{type(self).__name__} was called outside of `fit`: "
                "`on_train_begin` must come first."
            )
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f"{type(self).__name__} was called in another thread than the "
                "one that `fit` runs in, where the model's state may be in "
                "use. Pass the logger in a list, `fit(..., callbacks="
                "[logger])`, and call its hooks in one thread."
            )

    def _begin_run(self, epoch: int) -> None:
        self._has_begun_run = True
        assert self._files is not None
        if self._restored is not None:
            self._continue_restored(self._restored, self._files)
            return
        step = self._runs.begin(
            self._model, epoch, self._run_in_file, self._read_step
        )
        if step > 0:
            kept = self._files.keep(self._runs.happened(step), step)
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
        self._last_total = state["last_total"]
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
        files = self._files
        return {
            "class": type(self).__name__,
            "run": self._runs.run,
            "total": self._counter.total,
            "last_total": self._last_total,
            "summary": dict(self._summary),
            "means": self._means.to_json(),
            **(files or Files(None, None, "", "")).backup_state(),
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
    def record_blocks(self) -> Sequence[Block]:
        """The records, by moment."""
        return self._runs.records.blocks

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

    def _is_due(self) -> bool:
        every = int(self.update_freq)
        return self._counter.total // every > self._last_total // every

    def _make_record(self, done: int) -> _Pending:
        self._last_total = self._counter.total
        had_window = self._has_window
        self._open_window()
        measurement = self._measure(had_window)
        if self.update_freq != "epoch":
            self._means.learn_names(self._model, self.params)
        measurement = self._runs.under_recorded_names(measurement, self._model)
        # One assignment: a thread may be reading it.
        self._summary = dict(measurement.summary)
        moment = Moment(self._runs.run, self._epoch, done, measurement.step)
        return _Pending(moment, measurement)

    def _finish_pending(self, at_once: bool = False) -> None:
        """Writes records whose logs have come, or all of them."""
        while self._pending:
            record = self._pending[0]
            logs = self._batch_logs.take(record.moment.batch)
            if logs is None and not at_once:
                return
            del self._pending[0]
            scalars = scalars_of(logs)
            if logs is not None:
                scalars = self._means.end_window(record.moment.batch, scalars)
            self._write(record, scalars)

    def _write(self, record: _Pending, scalars: Mapping[str, float]) -> None:
        moment, measurement = record
        for epoch, batch, earlier in measurement.earlier:
            its = Moment(moment.run, epoch, batch, earlier.step)
            self._write_block(its, earlier, {})
        scalars = {**measurement.scheduled, **scalars}
        last_moment, written = self._last_scalars
        if last_moment == moment:
            scalars = {k: v for k, v in scalars.items() if k not in written}
        else:
            written = set()
        self._last_scalars = (moment, written | scalars.keys())
        self._write_block(moment, measurement, scalars)

    def _write_block(
        self,
        moment: Moment,
        measurement: Measurement,
        scalars: Mapping[str, float],
    ) -> None:
        keys = self._make_keys(
            measurement.names,
            tuple(measurement.values),
            (*measurement.summary, *scalars),
        )
        if not keys:
            return
        values = [v for column in measurement.values.values() for v in column]
        values += [*measurement.summary.values(), *scalars.values()]
        block = Block(moment, keys, tuple(values))
        self._runs.records.append(block)
        if self._files is not None:
            self._files.write(block, measurement.histograms)
        if self.on_record is not None and self._is_writer:
            for key, value in zip(block.keys, block.values, strict=True):
                name = "/".join(filter(None, key))
                self.on_record(moment.step, name, value)

    def _make_keys(
        self,
        names: tuple[str, ...],
        quantities: tuple[str, ...],
        others: tuple[str, ...],
    ) -> tuple[Key, ...]:
        # The same object each time, which costs no memory and is quick to find.
        parts = (names, quantities, others)
        if parts not in self._keys:
            keys = [Key(name, q) for q in quantities for name in names]
            self._keys[parts] = tuple(keys + [Key("", q) for q in others])
        return self._keys[parts]

    # Serialization

    def __getstate__(self) -> dict[str, Any]:
        # A `fit` that failed leaves its files open, which nothing can copy.
        return {**self.__dict__, "_files": None}

    def get_config(self) -> dict[str, Any]:
        """The arguments; records are saved by `save_records`."""
        batch_logs: bool | list[str] = list(self.batch_logs)
        if self.batch_logs == self._all_summaries():
            batch_logs = True
        on_record = self.on_record
        return {
            **self._destination(),
            "batch_logs": batch_logs or False,
            "on_record": on_record
            and keras.saving.serialize_keras_object(on_record),
        }

    def _destination(self) -> dict[str, Any]:
        """When and where to it records: what it is known by in a backup."""
        return {
            "update_freq": self.update_freq,
            "log_dir": self.log_dir,
            "filename": self.filename,
        }

    @classmethod
    def _all_summaries(cls) -> tuple[str, ...]:
        return tuple(name for name in cls.quantities if name in SUMMARIES)

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


def _check_path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not str(os.fspath(value)):
        raise TypeError(
            f"`{name}` must be a path (a string, not empty, or a "
            f"`pathlib.Path`) or None. Received: {name}={value!r}."
        )
    return str(os.fspath(value))


def _check_batch_logs(value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, bool):
        return known if value else ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(
            "`batch_logs` must be a bool or a list of some of "
            f"{', '.join(known)}. Received: batch_logs={value!r} (of type "
            f"{type(value).__name__})."
        )
    unknown = [name for name in value if name not in known]
    if unknown:
        raise ValueError(
            "`batch_logs` must be a bool or a list of some of "
            f"{', '.join(known)}. Received: batch_logs={list(value)!r}."
        )
    return tuple(value)
