"""Arrays of more elements than there is memory for."""

import ctypes
import mmap
import os

import numpy as np

_CHUNK = 2**21
# Of Linux; Python does not name them.
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000


def repeated(value, size, dtype):
    """An array of `size` elements that all lie in the same few pages.

    A kernel that runs over it does all its work, and on real memory: what it
    writes to one place it finds again a chunk later.

    Args:
        value: What each element holds.
        size: How many there are.
        dtype: Of NumPy.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    file = os.memfd_create("repeated")
    chunk = np.full(_CHUNK // np.dtype(dtype).itemsize, value, dtype)
    os.write(file, chunk.tobytes())
    total = size * chunk.itemsize
    chunks = -(-total // _CHUNK)
    start = _mapped(
        libc.mmap(
            None,
            chunks * _CHUNK,
            mmap.PROT_READ,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
            -1,
            0,
        )
    )
    for i in range(chunks):
        _mapped(
            libc.mmap(
                start + i * _CHUNK,
                _CHUNK,
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_SHARED | _MAP_FIXED,
                file,
                0,
            )
        )
    os.close(file)
    buffer = (ctypes.c_char * total).from_address(start)
    return np.frombuffer(buffer, dtype)


def _mapped(address):
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap failed")
    return address
