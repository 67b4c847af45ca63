"""Records that wait for their numbers, and for the logs of their last batch."""

import dataclasses
from collections.abc import Callable, Mapping

from keras_adamax.callbacks._batch_logs import BatchLogs
from keras_adamax.callbacks._measurement import Measurement, scalars_of
from keras_adamax.callbacks._window_means import WindowMeans
from keras_adamax.records import Moment

Record = tuple[Moment, Measurement]


@dataclasses.dataclass
class _Pending:
    """A record.

    Attributes:
        done: Batches done in the epoch.
        end: Waits for the numbers. It is told whether the model's variables
            hold what the last step gave.
        record: What it has returned.
    """

    done: int
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

    def add(self, done: int, end: Callable[[bool], Record]) -> None:
        """Adds a record that has been started.

        Args:
            done: Batches done in the epoch.
            end: Waits for its numbers. It is told whether the model's
                variables hold what the last step gave.
        """
        self._pending.append(_Pending(done, end))

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
            logs = self._logs.take(its.done)
            if logs is None and not at_once:
                return
            del self._pending[0]
            scalars = scalars_of(logs)
            if logs is not None:
                scalars = self._means.end_window(its.done, scalars)
            write(*its.record, scalars)
