"""What the loggers have in common: when a record is due and where it goes."""

import math
import os
import re
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_adamax import _validation
from keras_adamax.callbacks import _callback_list, _event_files, _optimizers
from keras_adamax.callbacks._batches import make_counter
from keras_adamax.callbacks._csv_file import CsvFile
from keras_adamax.callbacks._event_files import EventFile
from keras_adamax.callbacks._records import (
    HEADER,
    Block,
    Key,
    Moment,
    Records,
    from_lines,
    to_lines,
)

# Seconds. A callback that stands in front may take long, and where one has
# failed in a thread, Keras says so only after our hook.
LOGS_TIMEOUT = 10.0

# The name and the shape of each trainable variable, in order.
Architecture = Sequence[tuple[str, tuple[int, ...]]]

# What our loggers put into `logs`: no logger records it as one of the logs.
SUMMARIES = ("clip_rate", "spikes", "weight_delta", "weight_delta_ratio")
# All that our loggers record.
QUANTITIES = (*SUMMARIES, "spike_rate")


class Measurement(NamedTuple):
    """What a logger has measured.

    Attributes:
        step: Updates applied so far.
        names: The variables' paths.
        values: Quantity to one value a variable.
        summary: Quantity to the value of all variables together.
        histograms: Path to the largest absolute value and counts in bins.
        earlier: What belongs to batches before: epoch, batch, and it.
    """

    step: int
    names: tuple[str, ...]
    values: Mapping[str, Sequence[float]]
    summary: Mapping[str, float]
    histograms: Mapping[str, tuple[float, Sequence[float]]] = {}
    earlier: Sequence[tuple[int, int, "Measurement"]] = ()

    def renamed(self, names: Mapping[str, str]) -> "Measurement":
        """The same, of variables with other names."""
        return self._replace(
            names=tuple(names.get(n, n) for n in self.names),
            histograms={names.get(n, n): h for n, h in self.histograms.items()},
            earlier=[(e, b, m.renamed(names)) for e, b, m in self.earlier],
        )


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
        self._records = Records()
        self._models: dict[int, weakref.ref[Any]] = {}
        self._architectures: dict[int, Architecture] = {}
        self._csv: CsvFile | None = None
        self._events: EventFile | None = None
        self._has_warned_of_order = False
        self._reset()

    def _reset(self) -> None:
        """Forgets everything about the last `fit`, except for its records."""
        self._thread: int | None = None
        self._run = 0
        self._epoch = 0
        self._optimizers: list[Any] = []
        self._callbacks: list[Any] = []
        self._has_begun_training = False
        self._has_begun_run = False
        self._has_window = False
        self._restored: Mapping[str, Any] | None = None
        self._file_run: int | None = None
        self._is_other_model = False
        self._recorded_names: tuple[str, ...] = ()
        self._renamed: dict[str, str] = {}
        self._counter = make_counter(None, None)
        self._last_total = 0
        self._summary: dict[str, float] = {}
        self._pending: list[_Pending] = []
        self._batch_logs: dict[int, dict[str, Any]] = {}
        self._awaited: tuple[int, threading.Event] | None = None
        self._logs_come = True
        self._last_scalars: tuple[Moment | None, set[str]] = (None, set())
        self._keys: dict[tuple, tuple[Key, ...]] = {}

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
        return self._records.columns()

    def save_records(self, filename: str | os.PathLike) -> None:
        """Writes the records to a CSV file, which is replaced.

        Args:
            filename: The file.
        """
        with open(filename, "w", encoding="utf-8", newline="") as file:
            file.write(HEADER + "".join(map(to_lines, self._records.blocks)))

    def load_records(self, filename: str | os.PathLike) -> None:
        """Reads the records from a CSV file, in place of those in memory.

        The next `fit` continues their numbering. What another logger has
        written into the same file is left out.

        Args:
            filename: The file.

        Raises:
            ValueError: If it does not hold records.
        """
        with open(filename, encoding="utf-8-sig", newline="") as file:
            text = file.read()
        header, _, lines = text.partition("\n")
        if header.rstrip() != HEADER.rstrip():
            raise ValueError(
                f"`filename` must be a CSV file with the columns "
                f"{HEADER.rstrip()}. Received: filename={str(filename)!r}, "
                f"which begins with {header[:80]!r}."
            )
        self._records = Records(
            self._own_rows(from_lines(lines, str(filename), first_line=2))
        )
        self._models, self._architectures = {}, {}

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
        _attach(self)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Checks that records can be made and written."""
        self._reset()
        self._thread = threading.get_ident()
        self._has_begun_training = True
        model = self.model
        callbacks = _callback_list.running()
        self._callbacks = list(callbacks.callbacks) if callbacks else []
        self._optimizers = _optimizers.of_model(model)
        self._check_model()
        self._counter = make_counter(self.params, model)
        if self._events is not None:
            self._events.close()
        self._csv = self._events = None
        if self.filename is not None:
            self._csv = CsvFile(self.filename, type(self).__name__)
            tail = self._csv.prepare()
            self._csv.forget_scalars()
            self._file_run = tail.run
            if tail.run is not None:
                self._check_variables(self.filename, tail.run, tail.variables)
        own_run = self._records.last_run
        if own_run is not None:
            self._check_variables(
                "`records`", own_run, self._records.variables(own_run)
            )
        if self.log_dir is not None:
            folder = os.path.join(self.log_dir, self.summary_keys[0])
            self._events = EventFile(folder, type(self).__name__)
            self._events.open()

    def _check_variables(
        self, where: str, run: int, recorded: Sequence[str]
    ) -> None:
        architecture = _architecture_of(self._model)
        names = [name for name, _ in architecture]
        if (
            not recorded
            or not names
            or self._run_of(self._model) is not None
            or _have_one_shape(self._architectures.get(run, ()), architecture)
            or _are_of_one_model(recorded, names)
        ):
            return
        if not self._is_other_model:
            warnings.warn(
                f"{type(self).__name__}: {where} holds the records of another "
                f"model, with {_some(recorded)}; this one has {_some(names)}. "
                "They are kept, and a run of its own is added.",
                stacklevel=2,
            )
        self._is_other_model = True

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, Any] | None = None
    ) -> None:
        """Begins a run, or continues one, in the first epoch."""
        self._check_thread()
        self._epoch = epoch
        if not self._has_begun_run:
            self._begin_run(epoch)
        self._counter.begin_epoch()
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
            self._await_logs(done)
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
            self._batch_logs[done] = dict(logs)
            self._logs_come = True
            awaited = self._awaited
            if awaited is not None and awaited[0] == done:
                awaited[1].set()
        logs.update(self._summary)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Records the epoch, and adds the summary to its logs."""
        self._check_thread()
        done = self._counter.advance()
        self._finish_pending(at_once=True)
        scalars = _scalars(logs)
        if self.update_freq == "epoch" or self._is_due():
            record = self._make_record(done)
            self._write(record, scalars)
        else:
            between = self._measure_between().renamed(self._renamed)
            moment = Moment(self._run, epoch, done, between.step)
            self._write(_Pending(moment, between), scalars)
        self._batch_logs.clear()
        if logs is not None:
            logs.update(dict.fromkeys(self.summary_keys, math.nan))
            logs.update(self._summary)
        self._warn_of_order()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Writes what is left and closes the files."""
        self._check_thread()
        if not self._has_begun_run and self._restored is not None:
            self._begin_run(0)  # it had been trained to the end
        self._finish_pending(at_once=True)
        self._end_windows()
        self._has_window = False
        if self._csv is not None:
            self._csv.flush()
        if self._events is not None:
            self._events.close()
        self._csv = self._events = None

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

    # Runs

    def _begin_run(self, epoch: int) -> None:
        self._has_begun_run = True
        if self._restored is not None:
            self._continue_restored(self._restored)
            return
        runs = [self._records.last_run, self._file_run]
        last = max((run for run in runs if run is not None), default=None)
        step = 0
        if epoch > 0 and last is not None and not self._is_other_model:
            step = self._read_step()
        if step == 0 or last is None:  # a fresh optimizer continues nothing
            self._run = 0 if last is None else last + 1
        else:
            own = self._run_of(self._model)
            self._continue_run(last if own is None else own, step)
        self._models[self._run] = weakref.ref(self._model)

    def _run_of(self, model: Any) -> int | None:
        """The last run in memory that was made with this very model."""
        present = {block.moment.run for block in self._records.blocks}
        runs = [run for run, its in self._models.items() if its() is model]
        return max(present.intersection(runs), default=None)

    def _continue_run(self, run: int, step: int) -> None:
        self._run = run
        self._rename(self._architectures.get(run, ()))

        def happened(moment: Moment) -> bool:
            return moment.run != run or moment.step <= step

        kept = self._csv.keep(happened) if self._csv is not None else []
        if any(block.moment.run == run for block in self._records.blocks):
            self._records.keep(happened)
        else:
            self._records = Records(self._own_rows(kept))
        self._recorded_names = self._records.variables(run)
        if self._events is not None:
            self._events.forget_after(step)

    def _rename(self, recorded: "Architecture") -> None:
        """Goes on under the names in the records, if the shapes are equal."""
        own = _architecture_of(self._model)
        if _have_one_shape(recorded, own):
            self._architectures[self._run] = recorded
            self._renamed = {
                name: old
                for (old, _), (name, _) in zip(recorded, own, strict=True)
                if name != old
            }

    def _continue_restored(self, state: Mapping[str, Any]) -> None:
        run = self._run = state["run"]
        self._keep_others(state["blocks"], run)
        self._rename([(n, tuple(s)) for n, s in state.get("variables", ())])
        self._models[run] = weakref.ref(self._model)
        self._records = Records([*state["blocks"], *self._records.blocks])
        self._recorded_names = self._records.variables(self._run)
        self._counter = make_counter(
            self.params, self._model, total=state["total"]
        )
        self._last_total = state["last_total"]
        self._summary = dict(state["summary"])
        if self._csv is not None:
            self._restore_csv(self._csv, state)
        if self._events is not None:
            self._events.forget_after(state["step"])

    def _keep_others(self, restored: Sequence[Block], run: int) -> None:
        """Keeps in memory only what a backup does not have.

        That is what the logger has seen of other models. A run that differs
        from the one of its number in the backup gets a new number.

        Args:
            restored: The records in the backup.
            run: The run that it goes on with, perhaps without records so far.
        """
        first: dict[int, Block] = {}
        for block in restored:
            first.setdefault(block.moment.run, block)
        last = max((run, self._records.last_run or 0, *first))
        numbers: dict[int, int | None] = {}  # `None`: the backup has it
        kept = []
        for block in self._records.blocks:
            old = block.moment.run
            if old not in numbers:
                numbers[old] = old
                if old in first or old == run:
                    # As text, where NaN equals NaN.
                    is_same = to_lines(first.get(old, block)) == to_lines(block)
                    last += not is_same
                    numbers[old] = None if is_same else last
            new = numbers[old]
            if new is not None:
                kept.append(
                    block._replace(moment=block.moment._replace(run=new))
                )
        self._records = Records(kept)
        moved = [(o, n) for o, n in numbers.items() if n is not None]
        self._models = {
            new: self._models[old] for old, new in moved if old in self._models
        }
        self._architectures = {
            new: self._architectures[old]
            for old, new in moved
            if old in self._architectures
        }

    def _restore_csv(self, file: CsvFile, state: Mapping[str, Any]) -> None:
        size = state["csv_size"]
        if size is not None:
            if file.restore(size, state["csv_pending"], state["run"]):
                return
            warnings.warn(
                f"{type(self).__name__}: {self.filename} has become shorter "
                "since the backup was made. What it lacks is written again.",
                stacklevel=2,
            )
        run, step = state["run"], state["step"]
        kept = file.keep(lambda m: m.run != run or m.step <= step)
        present = {(b.moment, key) for b in kept for key in b.keys}
        for moment, keys, values in self._records.blocks:
            missing = [
                (key, value)
                for key, value in zip(keys, values, strict=True)
                if (moment, key) not in present
            ]
            if missing:
                file.append(Block(moment, *zip(*missing, strict=True)))

    # For AtomicBackup

    def backup_state(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What a run must know to go on, apart from the records: a snapshot.

        Returns:
            JSON, and arrays.
        """
        has_window = self._has_window and self.update_freq != "epoch"
        window, arrays = self._window_state() if has_window else (None, [])
        if self._csv is not None:
            self._csv.sync()
        return {
            "class": type(self).__name__,
            "run": self._run,
            "total": self._counter.total,
            "last_total": self._last_total,
            "summary": dict(self._summary),
            "csv_size": None if self._csv is None else self._csv.size(),
            "csv_pending": "" if self._csv is None else self._csv.pending(),
            "window": window,
            "config": Recorder.get_config(self),
            "variables": self._architectures.get(
                self._run, _architecture_of(self._model)
            ),
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
            not is_alike or state.get("config") == Recorder.get_config(self)
        )

    @property
    def record_blocks(self) -> Sequence[Block]:
        """The records, by moment."""
        return self._records.blocks

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
        if self._recorded_names and not self._renamed:
            self._renamed = _renaming(self._recorded_names, measurement.names)
        self._recorded_names = ()
        if self._run not in self._architectures:
            self._architectures[self._run] = _architecture_of(self._model)
        measurement = measurement.renamed(self._renamed)
        # One assignment: a thread may be reading it.
        self._summary = dict(measurement.summary)
        moment = Moment(self._run, self._epoch, done, measurement.step)
        return _Pending(moment, measurement)

    def _await_logs(self, done: int) -> None:
        """Waits for the logs of the last batch, which a thread may bring.

        They need the results that the record has waited for already. So this
        is short, and rows come into a file in the order of their steps. It is
        for order alone: without logs, the record is written later.
        """
        if self._counter.has_ended_here:
            return  # no thread brings any
        event = threading.Event()
        self._awaited = (done, event)
        if done not in self._batch_logs and self._logs_come:
            # `on_train_batch_end` sets it again: one stall is no rule.
            self._logs_come = event.wait(timeout=LOGS_TIMEOUT)
        self._awaited = None

    def _finish_pending(self, at_once: bool = False) -> None:
        """Writes records whose logs have come, or all of them."""
        while self._pending:
            record = self._pending[0]
            logs = self._batch_logs.pop(record.moment.batch, None)
            if logs is None and not at_once:
                return
            del self._pending[0]
            self._write(record, _scalars(logs))

    def _write(self, record: _Pending, scalars: Mapping[str, float]) -> None:
        moment, measurement = record
        for epoch, batch, earlier in measurement.earlier:
            its = Moment(moment.run, epoch, batch, earlier.step)
            self._write_block(its, earlier, {})
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
        self._records.append(block)
        if self._csv is not None:
            self._csv.append(block)
        if self._events is not None:
            self._write_events(block, measurement)

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

    def _write_events(self, block: Block, measurement: Measurement) -> None:
        assert self._events is not None
        scalars = {
            _tag(key): value
            for key, value in zip(block.keys, block.values, strict=True)
        }
        histograms = {
            _event_files.tag(name, "change"): histogram
            for name, histogram in measurement.histograms.items()
        }
        self._events.write(block.moment.step, scalars, histograms)

    def _warn_of_order(self) -> None:
        """Says once that `logs` come too late for callbacks before us.

        The first logger of the list speaks for all of them.
        """
        callbacks, self._callbacks = self._callbacks, []
        leader = next((c for c in callbacks if isinstance(c, Recorder)), None)
        if leader is not self or self._has_warned_of_order:
            return
        late = _callback_list.find_late(callbacks, Recorder)
        if late is None:
            return
        self._has_warned_of_order = True
        is_one = len(late.callbacks) == 1
        loggers = _join(late.loggers)
        warnings.warn(
            f"{_join(late.callbacks)} {'lacks' if is_one else 'lack'} "
            f"{_join(late.keys)} after the first epoch: "
            f"{'it stands' if is_one else 'they stand'} before {loggers} in "
            "the list of callbacks, and a logger reaches only those behind "
            f"it. Put {loggers} first.",
            stacklevel=2,
        )

    # Serialization

    def __getstate__(self) -> dict[str, Any]:
        # A `fit` that failed leaves its files open, which nothing can copy,
        # and the other callbacks are not ours to copy.
        return {
            **self.__dict__,
            "_csv": None,
            "_events": None,
            "_callbacks": [],
            "_models": {},
        }

    def get_config(self) -> dict[str, Any]:
        """The arguments; records are saved by `save_records`."""
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
        return cls(**config)


# The loggers in each of Keras's lists of callbacks, also those that another
# callback hands its hooks on to. A list is made for one `fit` (or `evaluate`,
# or `predict`): what an earlier one has left behind, however it ended, is not
# in that of the next.
_attached: "weakref.WeakKeyDictionary[Any, list[weakref.ref[Recorder]]]" = (
    weakref.WeakKeyDictionary()
)


def _attach(recorder: Recorder) -> None:
    callbacks = _callback_list.running()
    if callbacks is not None and recorder not in _in(callbacks):
        _attached.setdefault(callbacks, []).append(weakref.ref(recorder))


def running_recorders() -> list[Recorder]:
    """The recorders of the `fit` that calls `on_train_begin`, in order."""
    callbacks = _callback_list.running()
    return [] if callbacks is None else _in(callbacks)


def _in(callbacks: Any) -> list[Recorder]:
    recorders = [reference() for reference in _attached.get(callbacks, [])]
    return [recorder for recorder in recorders if recorder is not None]


def _check_path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not str(os.fspath(value)):
        raise TypeError(
            f"`{name}` must be a path (a string, not empty, or a "
            f"`pathlib.Path`) or None. Received: {name}={value!r}."
        )
    return str(os.fspath(value))


def _scalars(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers among the logs that are not ours."""
    return {
        name: float(value)
        for name, value in (logs or {}).items()
        if name not in SUMMARIES
        and (_validation.is_number(value) or isinstance(value, bool))
    }


def _tag(key: Key) -> str:
    if key.variable:
        return _event_files.tag(key.variable, key.quantity)
    group = "all_weights" if key.quantity in QUANTITIES else "logs"
    return f"{group}/{key.quantity}"


def _architecture_of(model: Any) -> Architecture:
    variables = model.trainable_variables
    names = _optimizers.unique_names([v.path for v in variables])
    shapes = [tuple(v.shape) for v in variables]
    return list(zip(names, shapes, strict=True))


def _have_one_shape(first: Architecture, second: Architecture) -> bool:
    """Whether the variables have the same shapes, in order."""
    return bool(first) and [s for _, s in first] == [s for _, s in second]


def _ending(name: str) -> str:
    return "/".join(name.split("/")[-2:])


def _are_of_one_model(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether names can be those of one model, some of them frozen perhaps.

    A model that is loaded from a file may have lost the first part of each.
    """
    one, other = set(map(_ending, first)), set(map(_ending, second))
    return one <= other or other <= one or _are_numbered_anew(first, second)


def _are_numbered_anew(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether only the numbers differ that Keras gives to a second `Dense`."""
    one, other = (
        [re.sub(r"_\d+(?=/|$)", "", _ending(name)) for name in names]
        for names in (first, second)
    )
    return one == other


def _renaming(recorded: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """From the names of a reloaded model to those that it was recorded with."""
    if not _are_numbered_anew(recorded, names) and (
        len(recorded) != len(names)
        or any(
            not (
                old == new
                or f"/{old}".endswith(f"/{new}")
                or f"/{new}".endswith(f"/{old}")
            )
            for old, new in zip(recorded, names, strict=True)
        )
    ):
        return {}
    return {n: o for o, n in zip(recorded, names, strict=True) if o != n}


def _some(names: Sequence[str], limit: int = 3) -> str:
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text}, ... ({len(names)})"


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]).removeprefix(
        " and "
    )
