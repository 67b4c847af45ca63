"""Event files for TensorBoard, written by tensorboardX: no TensorFlow."""

import itertools
import os
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_counter = itertools.count()


def tag(variable: str, quantity: str) -> str:
    """The name of a series, such that TensorBoard groups series by layer.

    TensorBoard groups by what stands before the first slash: that is the path
    of the layer here, its parts joined by dots.

    Example:
        >>> tag("model/encoder/dense/kernel", "clip_rate")
        'model.encoder.dense/kernel/clip_rate'
    """
    layer, _, weight = variable.rpartition("/")
    layer = layer.replace("/", ".")
    return "/".join(part for part in (layer, weight, quantity) if part)


class EventFile:
    """Writes event files to a folder, one for each `fit`.

    Each write is on the disk when it returns, and in the calling thread: the
    threads and queues of tensorboardX's `SummaryWriter` would wait for ever
    when the disk is full.

    Args:
        folder: The folder. No other writer may write there: TensorBoard
            follows only the newest file of a folder.
        owner: Name of the logger, for messages.
        argument: Name of its argument that gave the folder. Defaults to
            `"log_dir"`.

    Raises:
        ImportError: If tensorboardX is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        owner: str,
        argument: str = "log_dir",
    ):
        self._folder = Path(os.path.abspath(folder))
        self._owner = owner
        self._argument = argument
        self._writer: Any = None
        self._has_warned = False
        try:
            from tensorboardX import event_file_writer, summary, writer
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise ImportError(
                f"`{argument}` of {owner} needs tensorboardX, which writes "
                "event files for TensorBoard. Install it with `pip install "
                "tensorboardX`. Received: "
                f"{argument}={folder!r} ({error})."
            ) from error
        self._events = event_pb2
        self._summary = summary
        self._make_writer = event_file_writer.EventsWriter
        # Who follows event files (W&B, with `sync_tensorboard`) puts a class
        # of its own there, which hears of each folder.
        self._announcer = None
        if writer.EventFileWriter is not event_file_writer.EventFileWriter:
            self._announcer = writer.EventFileWriter

    def open(self) -> None:
        """Makes the folder and begins a file.

        Raises:
            OSError: If that is not possible.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # tensorboardX names files by the second: two would be one. In
            # containers that share a folder process ids are the same.
            number = f"{next(_counter):06d}.{secrets.token_hex(8)}"
            self._writer = self._make_writer(
                str(self._folder / "events"), f".{number}.keras_adamax"
            )
            self._writer.flush()
            if self._announcer is not None:
                # Its own file stays empty: its thread hangs on a full disk.
                self._announcer(str(self._folder)).close()
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{self._owner} cannot write event files there: "
                f"{error.strerror}. Free or change the place, or give another "
                f"`{self._argument}`",
                str(self._folder),
            ) from error

    def forget_after(self, step: int) -> None:
        """Makes TensorBoard drop what was written for later steps."""
        session_log = self._events.SessionLog(
            status=self._events.SessionLog.START
        )
        self._write(
            [self._events.Event(step=step + 1, session_log=session_log)]
        )

    def write(
        self,
        step: int,
        scalars: Mapping[str, float],
        histograms: Mapping[str, tuple[float, Sequence[float]]],
    ) -> None:
        """Writes the values of a step.

        Args:
            step: The optimizer's updates.
            scalars: Tag to value.
            histograms: Tag to a largest absolute value and the counts in
                equal bins between its negative and it.
        """
        summaries = [
            self._summary.scalar(name, value) for name, value in scalars.items()
        ]
        for name, (largest, counts) in histograms.items():
            if 0.0 < largest < float("inf"):
                summaries.append(self._histogram(name, largest, counts))
        self.write_summaries(step, summaries)

    def write_summaries(self, step: int, summaries: Sequence[Any]) -> None:
        """Writes what tensorboardX has made.

        Args:
            step: The optimizer's updates.
            summaries: Protocol buffers of tensorboardX.
        """
        now = time.time()
        self._write(
            [
                self._events.Event(step=step, wall_time=now, summary=summary)
                for summary in summaries
            ]
        )

    def _histogram(
        self, name: str, largest: float, counts: Sequence[float]
    ) -> Any:
        bins = len(counts)
        limits = [largest * (2 * (i + 1) / bins - 1) for i in range(bins)]
        middles = [limit - largest / bins for limit in limits]
        return self._summary.histogram_raw(
            name,
            min=-largest,
            max=largest,
            num=sum(counts),
            sum=sum(n * x for n, x in zip(counts, middles, strict=True)),
            sum_squares=sum(
                n * x * x for n, x in zip(counts, middles, strict=True)
            ),
            bucket_limits=limits,
            bucket_counts=list(counts),
        )

    def _write(self, events: Sequence[Any]) -> None:
        if self._writer is None:
            return
        try:
            for event in events:
                self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            # What is half written cannot be taken back: the file ends here.
            self.close()
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{self._owner} cannot write event files to "
                    f"{self._folder}: {error}. Training goes on without them; "
                    "the records are complete.",
                    stacklevel=2,
                )

    def close(self) -> None:
        """Ends the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError:
                pass  # the warning has been given, or all is written
