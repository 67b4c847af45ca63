"""Where a logger writes its records, beside memory: CSV and event files."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_adamax.callbacks import _event_files
from keras_adamax.callbacks._csv_file import CsvFile, Tail
from keras_adamax.callbacks._event_files import EventFile
from keras_adamax.callbacks._measurement import QUANTITIES
from keras_adamax.records import Block, Key, Moment

# Path to the largest absolute value and counts in bins.
Histograms = Mapping[str, tuple[float, Sequence[float]]]


class Files:
    """The files of a logger during one `fit`.

    Args:
        filename: CSV file, or `None`.
        log_dir: Folder for event files, or `None`.
        folder: Name of the logger's own folder in it.
        owner: Name of the logger's class, for messages.
    """

    def __init__(
        self,
        filename: str | None,
        log_dir: str | None,
        folder: str,
        owner: str,
    ):
        self._owner = owner
        self._csv = None if filename is None else CsvFile(filename, owner)
        self._events = (
            None
            if log_dir is None
            else EventFile(os.path.join(log_dir, folder), owner)
        )

    def open(self) -> Tail:
        """Makes sure that records can be written.

        Returns:
            The end of the CSV file.

        Raises:
            ValueError: If the CSV file holds something else.
            OSError: If a file cannot be written.
        """
        tail = Tail(None, ())
        if self._csv is not None:
            tail = self._csv.prepare()
            self._csv.forget_scalars()
        if self._events is not None:
            self._events.open()
        return tail

    def write(self, block: Block, histograms: Histograms) -> None:
        """Writes the values of one moment."""
        if self._csv is not None:
            self._csv.append(block)
        if self._events is None:
            return
        self._events.write(
            block.moment.step,
            {
                _tag(key): value
                for key, value in zip(block.keys, block.values, strict=True)
            },
            {
                _event_files.tag(name, "change"): histogram
                for name, histogram in histograms.items()
            },
        )

    def keep(
        self, condition: Callable[[Moment], bool], step: int
    ) -> list[Block]:
        """Removes rows.

        Args:
            condition: True for the moments whose rows stay in the CSV file.
            step: Of event files, later steps are dropped.

        Returns:
            What stays in the CSV file.
        """
        if self._events is not None:
            self._events.forget_after(step)
        return [] if self._csv is None else self._csv.keep(condition)

    def restore(
        self, state: Mapping[str, Any], step: int, blocks: Sequence[Block]
    ) -> None:
        """Makes the files what they were when a backup was made.

        Args:
            state: What `backup_state` gave, with the `run`.
            step: The optimizer's updates then.
            blocks: All records then.
        """
        if self._events is not None:
            self._events.forget_after(step)
        if self._csv is None:
            return
        size, run = state["csv_size"], state["run"]
        if size is not None:
            if self._csv.restore(size, state["csv_pending"], run):
                return
            warnings.warn(
                f"{self._owner}: {self._csv.path} has become shorter "
                "since the backup was made. What it lacks is written again.",
                stacklevel=2,
            )
        kept = self._csv.keep(lambda m: m.run != run or m.step <= step)
        present = {(b.moment, key) for b in kept for key in b.keys}
        for moment, keys, values in blocks:
            missing = [
                (key, value)
                for key, value in zip(keys, values, strict=True)
                if (moment, key) not in present
            ]
            if missing:
                self._csv.append(Block(moment, *zip(*missing, strict=True)))

    def backup_state(self) -> dict[str, Any]:
        """What `restore` needs, once the files are on the disk."""
        if self._csv is None:
            return {"csv_size": None, "csv_pending": ""}
        self._csv.sync()
        return {
            "csv_size": self._csv.size(),
            "csv_pending": self._csv.pending(),
        }

    def close(self) -> None:
        """Writes what is left and closes the files."""
        if self._csv is not None:
            self._csv.flush()
        if self._events is not None:
            self._events.close()


def _tag(key: Key) -> str:
    if key.variable:
        return _event_files.tag(key.variable, key.quantity)
    group = "all_weights" if key.quantity in QUANTITIES else "logs"
    return f"{group}/{key.quantity}"
