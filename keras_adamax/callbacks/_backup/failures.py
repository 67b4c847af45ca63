"""What `AtomicBackup` warns of where it cannot write, once per `fit` each."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from keras_adamax.callbacks._backup.weights_file import Hdf5Error


class Failures:
    """Failures of one `fit`.

    Args:
        folder: The folder for backups.

    Attributes:
        has_given_up: Whether no more backups may be written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._has_warned = False
        self._has_warned_of_removal = False
        self.has_given_up = False

    def of_writing(self, error: OSError, epoch: int) -> None:
        """A backup could not be written.

        Args:
            error: Why.
            epoch: 0-based.
        """
        self.has_given_up = isinstance(error, Hdf5Error)
        if self._has_warned and not self.has_given_up:
            return
        self._has_warned = True
        then = "it tries again when the next is due"
        if self.has_given_up:
            then = "no more are made in this `fit`: HDF5 might crash"
        # h5py's own words are some lines.
        reason = os.strerror(error.errno) if error.errno else str(error)
        warnings.warn(
            f"AtomicBackup cannot write a backup to {self._folder} (epoch "
            f"{epoch + 1}): {reason}. Training goes on. The backups "
            f"before are kept, and {then}.",
            stacklevel=3,
        )

    def of_removal(self, failures: Sequence[str]) -> None:
        """Old backups could not be removed.

        Args:
            failures: Which, and why.
        """
        if not failures or self._has_warned_of_removal:
            return
        self._has_warned_of_removal = True
        warnings.warn(
            f"AtomicBackup cannot remove an old backup, {failures[0]}. The "
            "new backups are written, and count. It tries again with each. "
            "Until it can, old ones take up room.",
            stacklevel=3,
        )
