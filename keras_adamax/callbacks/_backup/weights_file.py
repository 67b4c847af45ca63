"""Saving weights where the disk may be full."""

import errno
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import keras

from keras_adamax.callbacks._backup import model_state

# What HDF5 adds for a variable or a layer, at most.
_HDF5_BYTES = 2**12


class Hdf5Error(OSError):
    """HDF5 could not end a file; if it goes on, it may crash the process."""


def save(model: Any, path: Path) -> None:
    """Saves weights, if there is room: HDF5 does not survive a full disk.

    Raises:
        OSError: If there is none.
        Hdf5Error: If the file system has refused something all the same.
    """
    if shutil.disk_usage(path.parent).free < largest_size(model):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    try:
        model.save_weights(path)
    except (OSError, RuntimeError) as error:
        # The latter where it fails when the file is closed.
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise Hdf5Error(code, os.strerror(code), str(path)) from error


def largest_size(model: Any) -> int:
    """The bytes that a file of the weights needs, rather more than less."""
    variables = list(model.variables)
    for optimizer in model_state.held_optimizers(model).values():
        variables += optimizer.variables
    # Half precision may be saved as float32; float64 has 8 bytes.
    return sum(
        8 * math.prod(v.shape)
        if keras.backend.standardize_dtype(v.dtype).endswith("64")
        else 4 * math.prod(v.shape)
        for v in variables
    ) + _HDF5_BYTES * (len(variables) + len(model.layers) + 8)
