"""Errors in a user's own functions: which line it was, in which process."""

import base64
import builtins
import functools
import importlib.util
import os
import pickle
import re
import site
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

# How Keras prints parts of its messages.
_BOLD = re.compile("\x1b\\[[0-9;]*m")
_PLACE = "_keras_adamax_place"
_LIBRARIES = {"keras", "keras_adamax", "keras_adamax_tuning", "keras_tuner"}
# Top-level packages that are the user's own, though they may be installed.
_own_packages: set[str] = set()


def note_own(*given: Any) -> None:
    """Takes the packages of functions, or of names of modules, for own code."""
    for value in given:
        name = value
        if not isinstance(value, str):
            name = getattr(value, "__module__", None) if callable(value) else ""
        package = (name or "").partition(".")[0]
        if package and package not in _LIBRARIES | sys.stdlib_module_names:
            _own_packages.add(package)


def place_of(error: BaseException) -> str | None:
    """The last line of the user's own code that an error passed through.

    Own code is what belongs neither to Python, nor to an installed package,
    nor to this one; and the packages that `note_own` was told of.

    Returns:
        For example `"/home/me/models.py, line 7, in build_model"`; `None` if
        no such code took part.
    """
    known: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in known:
        known.add(id(current))
        place = getattr(current, _PLACE, None) or _place_in_traceback(current)
        if place is not None:
            return place
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    return None


def describe(error: BaseException) -> str:
    """Type, message and place of an error, in one line."""
    text = first_lines(error)
    name = type(error).__name__
    said = f"{name}: {text}" if text else name
    place = place_of(error)
    # Keras and Python's parser may have named the same line.
    return said if place is None or place in said else f"{said} ({place})"


def first_lines(error: BaseException, length: int = 500) -> str:
    """The message of an error in one line, without what Keras adds to it."""
    text = " ".join(_BOLD.sub("", _text(error)).split())
    # What Keras adds repeats the shapes.
    text = text.partition(" Arguments received by ")[0]
    return text if len(text) <= length else f"{text[:length]}..."


def pack(error: BaseException) -> tuple[str, ...]:
    """Texts that say all of an error to another process: see `unpack`."""
    kind = next(
        cls.__name__
        for cls in type(error).__mro__
        if cls.__module__ == "builtins"
    )
    try:
        pickled = pickle.dumps(error)
        str(pickle.loads(pickled))
    except Exception:  # whatever a user's class does when it is pickled
        pickled = b""
    return (
        base64.b64encode(pickled).decode(),
        kind,
        f"{type(error).__name__}: {_text(error)}",
        place_of(error) or "",
        "".join(traceback.format_exception(error)),
    )


def unpack(
    where: str, pickled: str, kind: str, text: str, place: str, trace: str
) -> BaseException:
    """The error that another process has packed.

    Args:
        where: Words for the other process.
        pickled: The error itself, or nothing if it cannot be pickled.
        kind: Name of the built-in class that it is of.
        text: Its type and message.
        place: The user's line.
        trace: Its traceback, which becomes a note.
    """
    try:
        error = pickle.loads(base64.b64decode(pickled))
    except Exception:  # nothing was sent, or it is not known here
        try:
            error = getattr(builtins, kind)(text)
        except TypeError:  # some take more than a text
            error = RuntimeError(text)
    error.add_note(f"In {where}:\n{trace}")
    if place:
        setattr(error, _PLACE, place)
    return error


def _place_in_traceback(error: BaseException) -> str | None:
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if _is_own_code(frame):
            code = frame.f_code
            place = f"{code.co_filename}, line {line}"
            if code.co_name != "<module>":
                place += f", in {code.co_name}"
    return place


def _is_own_code(frame: Any) -> bool:
    name = frame.f_code.co_filename
    if name.startswith("<"):
        # Of a prompt, a notebook or `python -c`, not what Python generates.
        return frame.f_globals.get("__name__") == "__main__"
    if "__autograph_generated_file" in name:  # TensorFlow's copy of the code
        return False
    module = frame.f_globals.get("__name__") or ""
    if module.partition(".")[0] in _own_packages:
        return True
    if {"site-packages", "dist-packages"} & set(Path(name).parts):
        return False
    return not os.path.abspath(name).startswith(_folders_of_others())


@functools.cache
def _folders_of_others() -> tuple[str, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(kind) for kind in kinds]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    # These may be installed from a checkout.
    for package in ("keras_adamax", "keras_adamax_tuning"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(os.path.dirname(spec.origin))
    return tuple(
        f"{form(folder)}{os.sep}"
        for folder in folders
        for form in (os.path.abspath, os.path.realpath)
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as other:  # of a class of the user's
        return f"its text raises {type(other).__name__}"
