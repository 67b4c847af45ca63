"""Compiles `_torch_cpu.cpp` once a machine, and loads it.

Neither `torch.compile` nor torch's extension loader is used for the CPU: the
first costs seconds of imports in each process even when its cache is warm, and
tens of microseconds a tensor; the second needs ninja and half a minute for
torch's headers, has to be built again for each release of torch, and a process
that is killed while it builds leaves a lock behind. This source needs a
compiler and a second.

The binary is kept in `$XDG_CACHE_HOME/keras_adamax` (`~/.cache/keras_adamax`),
under a name made from the source, the options, and all that the compiler says
of itself and of the processor it compiles for. So another compiler release,
or another machine that shares the folder, gets a binary of its own. Processes
may compile at the same time: each writes to a folder of its own and moves the
whole binary into its place. Where the folder cannot be written, each process
compiles for itself.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("_torch_cpu.cpp")
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    # A product and a sum are rounded one after the other, as in torch.
    "-ffp-contract=off",
    # These change no result; they let a loop be vectorized. The first needs
    # no OpenMP at run time.
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# What a compiler calls the processor that it runs on; none of them everywhere.
TARGETS = (("-march=native",), ("-mcpu=native",), ())
TIMEOUT = 120


class CompilationError(RuntimeError):
    """There is no compiler that serves."""


@functools.cache
def load() -> ctypes.CDLL:
    """The library, compiled unless this machine has it.

    Raises:
        CompilationError: If it cannot be compiled or loaded.
    """
    compiler = _compiler()
    target, description = _target(compiler)
    command = (*compiler, *OPTIONS, *target)
    source = SOURCE.read_bytes()
    key = hashlib.sha256(
        b"\0".join((source, shlex.join(command).encode(), description))
    )
    name = f"torch_cpu_{key.hexdigest()[:32]}.so"
    folder = cache_folder()
    path = folder / name
    if path.exists():
        return _open(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=".new_", dir=folder)
    except OSError:
        scratch = tempfile.TemporaryDirectory(prefix="keras_adamax_")
        path = Path(scratch.name, name)
    with scratch as new:
        built = Path(new, "torch_cpu.so")
        _run((*command, str(SOURCE), "-o", str(built)))
        os.replace(built, path)
        # Loaded before a folder of this process alone goes.
        return _open(path)


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base, "keras_adamax")


def _compiler() -> tuple[str, ...]:
    """The command in `CXX`, or the first compiler on the path."""
    named = os.environ.get("CXX")
    if named:
        return tuple(shlex.split(named))
    for name in COMPILERS:
        if shutil.which(name):
            return (name,)
    raise CompilationError(f"None of {', '.join(COMPILERS)} was found.")


def _target(compiler: tuple[str, ...]) -> tuple[tuple[str, ...], bytes]:
    """Options for this processor, and what the compiler predefines then."""
    failure = None
    for target in TARGETS:
        try:
            return target, _run(
                (*compiler, *target, "-dM", "-E", "-x", "c++", os.devnull)
            )
        except CompilationError as error:
            failure = error
    assert failure is not None
    raise failure


def _run(command: tuple[str, ...]) -> bytes:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"{shlex.join(command)}: {error}") from error
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        raise CompilationError(
            f"{shlex.join(command)} ended with {done.returncode}: {message}"
        )
    return done.stdout


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilationError(f"{path} could not be loaded: {error}") from (
            error
        )
    pointer = ctypes.c_void_p
    library.keras_adamax_update.restype = None
    library.keras_adamax_update.argtypes = [
        ctypes.c_int64,
        *[pointer] * 11,
        ctypes.c_int64,
    ]
    return library
