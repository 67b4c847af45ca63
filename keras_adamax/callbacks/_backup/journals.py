"""The loggers' records in a backup: a file for each logger, appended to."""

import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_adamax import _atomic_files
from keras_adamax.callbacks._recorder import Recorder
from keras_adamax.records import Block, from_lines, to_lines

_NAME = "records-{}-{}.csv"


class Journals:
    """The files of a `fit`.

    What a crash leaves behind the size that a generation knows is cut off when
    that one is restored.

    Args:
        folder: That of the backups.
        is_writer: Whether this process may change files.
    """

    def __init__(self, folder: Path, is_writer: bool):
        self._folder = folder
        self._is_writer = is_writer
        self._written: dict[str, int] = {}
        self._recorders: dict[str, Recorder] = {}

    def begin(self, recorders: Sequence[Recorder]) -> None:
        """Begins anew: there is no generation to go on from."""
        if self._is_writer:
            for path in self._paths():
                path.unlink()
        self._recorders = self._choose(recorders, {})

    def restore(
        self,
        recorders: Sequence[Recorder],
        saved: Mapping[str, Mapping[str, Any]],
        arrays: Mapping[str, np.ndarray],
        step: int,
    ) -> None:
        """Gives loggers what a generation knows of them.

        Args:
            recorders: The loggers of this `fit`.
            saved: What `write` gave.
            arrays: The arrays of the generation.
            step: The optimizer's updates then.
        """
        self._recorders = self._choose(recorders, saved)
        for name, recorder in self._recorders.items():
            if name in saved:
                own = saved[name]
                blocks = self._read(name, own["journal_size"])
                kept = [arrays[f"{name}-{i}"] for i in range(own["arrays"])]
                recorder.restore_state(own, kept, blocks, step)
                self._written[name] = len(blocks)

    def write(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Appends what is new.

        Returns:
            For a generation: a state for each file, JSON; and arrays.
        """
        states, arrays = {}, {}
        # They may write to one file, which has one size at a time.
        for recorder in self._recorders.values():
            recorder.settle()
        for name, recorder in self._recorders.items():
            state, kept = recorder.backup_state()
            if self._is_writer:
                blocks = recorder.record_blocks
                state["journal_size"] = self._append(name, blocks)
            state["arrays"] = len(kept)
            arrays |= {f"{name}-{i}": a for i, a in enumerate(kept)}
            states[name] = state
        return states, arrays

    def forget_loggers(self) -> None:
        """Ends the `fit`."""
        self._recorders = {}

    def remove(self) -> list[str]:
        """Removes all files; returns why some cannot be removed."""
        failures = []
        for path in self._paths():
            try:
                path.unlink()
            except OSError as error:
                failures.append(f"{path} ({error.strerror})")
        return failures

    def _paths(self) -> list[Path]:
        return list(self._folder.glob(_NAME.format("*", "*")))

    def _append(self, name: str, blocks: Sequence[Block]) -> int:
        """Adds records to a file; returns its size."""
        path = self._folder / name
        before = path.stat().st_size if path.exists() else 0
        new = blocks[self._written.get(name, 0) :]
        try:
            with open(path, "ab") as file:
                file.write("".join(map(to_lines, new)).encode())
            _atomic_files.sync(path)
        except OSError:
            if path.exists():  # what follows must not stand in a torn line
                os.truncate(path, before)
            raise
        self._written[name] = len(blocks)
        return path.stat().st_size

    def _read(self, name: str, size: int) -> list[Block]:
        path = self._folder / name
        data = path.read_bytes() if path.exists() else b""
        if len(data) < size:
            warnings.warn(
                f"AtomicBackup: {path} is damaged: records in memory from "
                "before the backup are lost. (CSV files are not touched.)",
                stacklevel=2,
            )
            size = data.rfind(b"\n") + 1
        if len(data) > size and self._is_writer:
            os.truncate(path, size)
        return from_lines(data[:size].decode(), str(path))

    def _choose(
        self,
        recorders: Sequence[Recorder],
        saved: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Recorder]:
        """A file for each logger's records: that of a backup, if it has one.

        A logger is known by its class and configuration, and of several such
        by their order. Where nobody has the configuration, class and order
        decide: a file may have been moved.

        Args:
            recorders: The loggers.
            saved: File name to state of the loggers in the backup.
        """
        left, result = dict(saved), {}
        waiting = list(recorders)
        for is_alike in (True, False):
            for recorder in list(waiting):
                name = next(
                    (n for n, s in left.items() if recorder.fits(s, is_alike)),
                    None,
                )
                if name is not None:
                    del left[name]
                    waiting.remove(recorder)
                    result[name] = recorder
        for recorder in waiting:
            result[self._new(recorder, {*saved, *result})] = recorder
        return result

    def _new(self, recorder: Recorder, taken: set[str]) -> str:
        numbers = itertools.count()
        names = (_NAME.format(type(recorder).__name__, n) for n in numbers)
        # A file that is there may be that of an older generation.
        return next(
            name
            for name in names
            if name not in taken and not (self._folder / name).exists()
        )
