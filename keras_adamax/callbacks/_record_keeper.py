"""A logger's records in memory: read, saved and loaded."""

import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_adamax import records
from keras_adamax.callbacks._measurement import QUANTITIES, SUMMARIES
from keras_adamax.callbacks._runs import Runs
from keras_adamax.records import Block, Records


class RecordKeeper(keras.callbacks.Callback):
    """What a user asks a logger for when it has recorded."""

    summary_keys: tuple[str, ...] = ()
    # All that the logger writes, beside the logs.
    quantities: tuple[str, ...] = ()
    update_freq: str | int

    def __init__(self) -> None:
        super().__init__()
        self._runs = Runs(type(self).__name__)

    @classmethod
    def _all_summaries(cls) -> tuple[str, ...]:
        return tuple(name for name in cls.quantities if name in SUMMARIES)

    def settle(self) -> None:
        """Adds the records that are being made."""
        raise NotImplementedError

    @property
    def records(self) -> dict[str, np.ndarray]:
        """The records of all calls of `fit`, as columns of equal length.

        `run`, `epoch`, `batch` (batches done in the epoch), `step` (updates
        applied), `variable` (a path; empty for a value of all variables
        together or a scalar of `logs`), `quantity` and `value`.
        """
        self.settle()
        return self._runs.records.columns()

    def save_records(self, filename: str | os.PathLike) -> None:
        """Writes the records to a CSV file, which is replaced.

        Args:
            filename: The file.
        """
        self.settle()
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
        self.settle()
        self._runs.replace(Records(self._own_rows(records.load(filename))))

    @property
    def record_blocks(self) -> Sequence[Block]:
        """The records, by moment."""
        self.settle()
        return self._runs.records.blocks

    def _own_rows(self, blocks: Sequence[Block]) -> list[Block]:
        """The rows that this logger would have made, of a file of several."""
        others = set(QUANTITIES) - set(self.quantities)
        own_moments = {
            block.moment
            for block in blocks
            for key in block.keys
            if key.quantity in self.quantities
        }
        # With records by batch, an epoch's logs stand at moments of their own.
        has_other_moments = self.update_freq != "epoch"
        result = []
        for block in blocks:
            if block.moment not in own_moments and not has_other_moments:
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
