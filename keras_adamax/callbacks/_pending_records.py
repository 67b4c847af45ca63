"""Records that wait for their numbers, and for the logs of their last batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from keras_adamax.callbacks import _devices
from keras_adamax.callbacks._batch_logs import BatchLogs
from keras_adamax.callbacks._measurement import Measurement, scalars_of
from keras_adamax.callbacks._window_means import WindowMeans
from keras_adamax.records import Moment

Tensor = Any
Record = tuple[Moment, Measurement]


@dataclasses.dataclass
class _Pending:
    """A record.

    Attributes:
        done: Batches done in the epoch.
        numbers: What it needs, on the device.
        end: Waits for the numbers. It is told whether the model's variables
            hold what the last step gave.
        record: What it has returned.
    """

    done: int
    numbers: Tensor
    end: Callable[[bool], Record]
    record: Record | None = None


class PendingRecords:
    """The records of one `fit` that have been started, in order.

    Args:
        logs: The logs of batches.
        means: Makes means over windows of them.
    """

    def __init__(self, logs: BatchLogs, means: WindowMeans):
        self._logs = logs
        self._means = means
        self._pending: list[_Pending] = []

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(
        self, done: int, numbers: Tensor, end: Callable[[bool], Record]
    ) -> None:
        """Adds a record that has been started.

        Args:
            done: Batches done in the epoch.
            numbers: What it needs, on the device.
            end: Waits for its numbers. It is told whether the model's
                variables hold what the last step gave.
        """
        self._pending.append(_Pending(done, numbers, end))

    def finish_ready(
        self,
        write: Callable[[Moment, Measurement, Mapping[str, float]], None],
    ) -> None:
        """Writes the records that nobody has to wait for.

        Args:
            write: Is given each, and its logs.
        """
        device = _devices.load()
        while (
            self._pending
            and self._logs.have_come(self._pending[0].done)
            and device.is_ready(self._pending[0].numbers)
        ):
            self._write_first(write, is_up_to_date=True)

    def finish(
        self,
        write: Callable[[Moment, Measurement, Mapping[str, float]], None],
        *,
        at_once: bool,
        is_up_to_date: bool,
        waits_for_logs: bool,
    ) -> None:
        """Writes the records whose logs have come.

        Args:
            write: Is given each, and its logs.
            at_once: Whether the others are written as well, without logs.
            is_up_to_date: Whether the model's variables hold what the last
                step gave.
            waits_for_logs: Whether another thread will bring them.
        """
        while self._pending:
            its = self._pending[0]
            if its.record is None:
                its.record = its.end(is_up_to_date)
            if waits_for_logs:
                self._logs.wait(its.done)
            if not at_once and not self._logs.have_come(its.done):
                return
            self._write_first(write, is_up_to_date)

    def _write_first(
        self,
        write: Callable[[Moment, Measurement, Mapping[str, float]], None],
        is_up_to_date: bool,
    ) -> None:
        its = self._pending.pop(0)
        record = its.record or its.end(is_up_to_date)
        logs = self._logs.take(its.done)
        scalars = scalars_of(logs)
        if logs is not None:
            scalars = self._means.end_window(its.done, scalars)
        write(*record, scalars)
