"""Folders that appear whole or not at all, with the one before as a spare."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_adamax import _atomic_files

_PREFIX = "generation-"
# What is being removed, by this process or by one that was killed.
_REMOVED = "unfinished-removed-"
# That, and what versions that did not write through `_atomic_files` have left.
_LEFTOVERS = "unfinished-*"
# A folder of that name is there, and has content.
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_STATE = "state.json"


# What the disk says of a file that it has lost.
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)


class Damaged(Exception):
    """A generation is not as it was written."""


class Generations:
    """Numbered snapshots in a folder.

    Each is a folder of its own: it is written under another name, flushed to
    the disk, and then renamed. A checksum of each file tells later whether
    the disk has kept it.

    Args:
        folder: The folder; it is made when needed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._discarded: set[Path] = set()

    def paths(self) -> list[Path]:
        """The generations that were not discarded, newest first."""
        return [p for p in self._all_paths() if p not in self._discarded]

    def _all_paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [
            path
            for path in self.folder.iterdir()
            if path.name.startswith(_PREFIX)
            and path.name.removeprefix(_PREFIX).isdigit()
        ]
        return sorted(found, key=_number, reverse=True)

    def check_writable(self) -> None:
        """Makes the folder, and a file in it for a moment.

        Raises:
            OSError: If that is not possible.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._temporary() as probe:
            (probe / "file").write_bytes(b"x")

    def write(self, state: Any, write_files: Callable[[Path], None]) -> Path:
        """Adds a generation; `tidy` removes what is older than the one before.

        Args:
            state: JSON.
            write_files: Writes files into the folder that it is given.

        Raises:
            OSError: If it cannot be written. The others are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._temporary() as temporary:
            self._write_content(temporary, state, write_files)
            path = self._publish(temporary)
        _atomic_files.sync_folder(self.folder)
        return path

    def _temporary(self) -> contextlib.AbstractContextManager[Path]:
        return _atomic_files.temporary_folder(self.folder / "generation")

    def _publish(self, temporary: Path) -> Path:
        while True:
            latest = self._all_paths()[:1]
            number = _number(latest[0]) + 1 if latest else 1
            path = self.folder / f"{_PREFIX}{number:08d}"
            try:
                os.rename(temporary, path)
                return path
            except OSError as error:
                # Another process may have taken the number.
                if error.errno not in _TAKEN:
                    raise

    def _write_content(
        self, folder: Path, state: Any, write_files: Callable[[Path], None]
    ) -> None:
        write_files(folder)
        files = sorted(path for path in folder.iterdir())
        for path in files:
            _atomic_files.sync(path)
        content = {
            "files": {path.name: _digest(path) for path in files},
            "state": state,
        }
        text = json.dumps(content, default=_to_json)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        (folder / _STATE).write_text(f"{checksum}\n{text}\n", "utf-8")
        _atomic_files.sync(folder / _STATE)
        _atomic_files.sync_folder(folder)

    def read(self, path: Path) -> Any:
        """The state of a generation whose files are all intact.

        Raises:
            Damaged: If it is not as it was written.
            OSError: If it cannot be read, and may be intact.
        """
        try:
            text = (path / _STATE).read_text("utf-8")
            checksum, _, text = text.partition("\n")
            text = text.removesuffix("\n")
            if hashlib.sha256(text.encode()).hexdigest() != checksum:
                raise Damaged(f"{_STATE} is not as it was written")
            content = json.loads(text)
            for name, digest in content["files"].items():
                if _digest(path / name) != digest:
                    raise Damaged(f"{name} is not as it was written")
        except UnicodeDecodeError as error:
            raise Damaged(str(error)) from error
        except OSError as error:
            if error.errno not in _LOST:
                raise
            raise Damaged(str(error)) from error
        return content["state"]

    def discard(self, path: Path) -> None:
        """Takes a generation out of those that count; `tidy` removes it."""
        self._discarded.add(path)

    def tidy(self, keep: int = 2) -> list[str]:
        """Removes all generations but the newest, and what is unfinished.

        The oldest goes first: a kill in between leaves a backup that is right.

        Args:
            keep: How many stay, of those that count.

        Returns:
            What could not be removed, and why. The next call tries again.
        """
        try:
            failures = self.clean()
            kept = self.paths()[:keep]
            for path in reversed(self._all_paths()):
                if path not in kept:
                    failures += self._remove(path)
        except OSError as error:  # the folder cannot be listed
            return [_failure(self.folder, error)]
        return failures

    def _remove(self, path: Path) -> list[str]:
        """Removes a generation: it is gone before its files go."""
        # In the same folder: a rename into another one needs the right to
        # change this one.
        aside = self.folder / f"{_REMOVED}{secrets.token_hex(8)}-{path.name}"
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return []  # another process has removed it
        except OSError as error:
            return [_failure(path, error)]
        try:
            shutil.rmtree(aside)
        except OSError as error:
            return [_failure(aside, error)]
        return []

    def clean(self) -> list[str]:
        """Removes what a crash has left unfinished, or a failed removal.

        Returns:
            What could not be removed, and why.

        Raises:
            OSError: If the folder cannot be listed.
        """
        failures = []
        _atomic_files.remove_leftovers(self.folder / "generation")
        for path in self.folder.glob(_LEFTOVERS):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                failures.append(_failure(path, error))
        return failures


def _to_json(value: Any) -> Any:
    """What callbacks may have put into the History: arrays and their like."""
    return np.asarray(value).tolist()


def _failure(path: Path, error: OSError) -> str:
    # `rmtree` names the file in the folder only.
    return f"{path} ({error.strerror or error})"


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
