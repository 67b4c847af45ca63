"""Where a logger's records go: memory, files, and a function of the user's."""

from collections.abc import Callable, Mapping
from typing import Any

from keras_adamax.callbacks._files import Files
from keras_adamax.callbacks._measurement import Measurement
from keras_adamax.callbacks._runs import Runs
from keras_adamax.records import Block, Key, Moment


class RecordWriter:
    """Writes the records of one `fit`.

    Args:
        runs: The records in memory.
        files: The logger's files, or `None` where it has none open.
        on_record: Function of step, name and value, or `None`.
    """

    def __init__(
        self,
        runs: Runs,
        files: Files | None = None,
        on_record: Callable[[int, str, float], Any] | None = None,
    ):
        self._runs = runs
        self.files = files
        self._on_record = on_record
        self._last_scalars: tuple[Moment | None, set[str]] = (None, set())
        self._keys: dict[tuple, tuple[Key, ...]] = {}

    def write(
        self,
        moment: Moment,
        measurement: Measurement,
        scalars: Mapping[str, float],
    ) -> None:
        """Writes a record, and what belongs to batches before it.

        Args:
            moment: When it was.
            measurement: What the logger has measured.
            scalars: Numbers of the logs. Those that have been written for the
                same moment are left out.
        """
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
        if self.files is not None:
            self.files.write(block, measurement.histograms)
        if self._on_record is not None:
            for key, value in zip(block.keys, block.values, strict=True):
                name = "/".join(filter(None, key))
                self._on_record(moment.step, name, value)

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

    def close(self) -> None:
        """Closes the files; later records are kept in memory only."""
        if self.files is not None:
            self.files.close()
        self.files = None

    def __getstate__(self) -> dict[str, Any]:
        # A `fit` that failed leaves its files open, which nothing can copy.
        return {**self.__dict__, "files": None}
