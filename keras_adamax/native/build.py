"""Compiles the C++ updates of CPU tensors once a machine, and loads them.

For torch, neither `torch.compile` nor its extension loader is used: the first
costs seconds of imports in each process even when its cache is warm, and tens
of microseconds a tensor; the second needs ninja and half a minute for torch's
headers, has to be built again for each release of torch, and a process that is
killed while it builds leaves a lock behind. These sources need a compiler and
a second; TensorFlow's, which needs its headers, some more.

A binary is kept in `$XDG_CACHE_HOME/keras_adamax` (`~/.cache/keras_adamax`),
under a name made from the options and the preprocessed source with all macros:
so another release of the compiler or of a header, or another processor that
shares the folder, gets a binary of its own. Processes may compile at the same
time: each writes to a folder of its own and moves the whole binary into its
place. Where the folder cannot be written, each process compiles for itself.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_adamax import _atomic_files

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
OPTIONS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=hidden",
    # A product and a sum are rounded one after the other, as in torch.
    "-ffp-contract=off",
    # These change no result; they let a loop be vectorized. The first needs
    # no OpenMP at run time.
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# For libraries that need nothing of the C++ runtime.
WITHOUT_RUNTIME = ("-fno-exceptions", "-fno-rtti")
# What a compiler calls the processor that it runs on; none of them everywhere.
# GCC 12 cannot compile TensorFlow's headers for AVX512-FP16, which no kernel
# here would use.
TARGETS = (
    ("-march=native", "-mno-avx512fp16"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
TIMEOUT = 120


class CompilationError(RuntimeError):
    """There is no compiler that serves."""


@functools.cache
def load(
    name: str,
    options: tuple[str, ...] = WITHOUT_RUNTIME,
    links: tuple[str, ...] = (),
    release: str = "",
    open_library: Callable[[str], Any] = ctypes.CDLL,
) -> Any:
    """The library of a source beside this file, compiled unless it is here.

    Args:
        name: The source's name.
        options: Of the compiler, beside `OPTIONS`.
        links: What to link with, as options of the compiler.
        release: Names what the source includes where
            `KERAS_ADAMAX_OWN_HEADERS_ONLY` is not defined.
        open_library: Loads the library from its path.

    Raises:
        CompilationError: If it cannot be compiled or loaded.
    """
    compiler = _compiler()
    source = SOURCES / name
    target, text = _target(compiler, source, options)
    command = (*compiler, *OPTIONS, *target, *options)
    key = hashlib.sha256(
        b"\0".join((shlex.join((*command, *links, release)).encode(), text))
    )
    file = f"{source.stem.lstrip('_')}_{key.hexdigest()[:32]}.so"
    folder = cache_folder()
    path = folder / file
    if path.exists():
        # One that is damaged is compiled again.
        with contextlib.suppress(CompilationError):
            return _open(path, open_library)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            new = stack.enter_context(_atomic_files.temporary_folder(path))
        except OSError:
            new = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="keras_adamax_")
                )
            )
            path = new / file
        built = new / "library.so"
        _run((*command, str(source), "-o", str(built), *links))
        # The name must not be there before the content is.
        _atomic_files.sync(built)
        os.replace(built, path)
        # Loaded before a folder of this process alone goes.
        return _open(path, open_library)


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


def _target(
    compiler: tuple[str, ...], source: Path, options: Sequence[str]
) -> tuple[tuple[str, ...], bytes]:
    """Options for this processor, and what the compiler would read.

    That is the source with what it includes, and every macro: they say which
    compiler it is, and what the processor has.
    """
    failure = None
    for target in TARGETS:
        try:
            return target, _run(
                (
                    *(*compiler, *OPTIONS, *target, *options),
                    *("-E", "-dD", "-P", "-DKERAS_ADAMAX_OWN_HEADERS_ONLY"),
                    str(source),
                )
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


def _open(path: Path, open_library: Callable[[str], Any]) -> Any:
    try:
        return open_library(str(path))
    except Exception as error:  # each has errors of its own
        raise CompilationError(f"{path} could not be loaded: {error}") from (
            error
        )
