"""Which search an output folder holds, and whether all workers reach it."""

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keras_adamax_tuning import _files

FILE = "search.json"
TRIALS = "trials"
_FORMAT = 1
_TOKEN_ATTRIBUTE = "keras_adamax:output_folder"


class IdentityError(ValueError):
    """The folder, or the database, belongs to another search."""


def join_folder(output: Path, identity: Mapping[str, Any]) -> str:
    """Makes `output` the folder of this search, or checks that it is.

    Any number of processes may call this at the same moment: one of them
    creates the record, the others compare theirs with it.

    Args:
        output: Folder; created if it is missing.
        identity: What makes this search the one it is, JSON's types only.

    Returns:
        The folder's token, for `check_token`.

    Raises:
        IdentityError: If the folder holds another search, or other files.
        OSError: If it cannot be written.
    """
    identity = json.loads(json.dumps(identity, allow_nan=False))
    path = output / FILE
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{output} cannot be the output folder of a search: "
            f"{error.strerror}. Choose another one."
        ) from error
    if not path.exists():
        others = [
            entry.name
            for entry in output.iterdir()
            if not entry.name.startswith(".")
        ]
        # Another worker may have begun the search by now.
        if others and not path.exists():
            raise IdentityError(
                f"{output} is neither empty nor the folder of a search (it "
                f"holds {min(others)}, but no {FILE}). Choose another output "
                "folder."
            )
        record = {
            "format": _FORMAT,
            "token": secrets.token_hex(16),
            "identity": identity,
        }
        _create(path, json.dumps(record, indent=2))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known, token = found["identity"], found["token"]
    except (ValueError, KeyError, TypeError) as error:
        raise IdentityError(
            f"{path} cannot be read ({type(error).__name__}: {error}). "
            "Restore it from a backup, or choose another output folder."
        ) from error
    if found.get("format") != _FORMAT:
        raise IdentityError(
            f"{path} was written by another version of this package (format "
            f"{found.get('format')!r}, here {_FORMAT}). Use that version, or "
            "choose another output folder."
        )
    different = _differences(known, identity)
    if different and not any((output / TRIALS).glob("trial_*")):
        # The arguments were mended before anything was done.
        text = json.dumps(found | {"identity": identity}, indent=2)
        _files.write_atomically(path, _writer(text))
    elif different:
        raise IdentityError(
            f"{output} holds another search. It differs in "
            f"{'; '.join(different)}. Choose another output folder, or give "
            "what that search was given to go on with it."
        )
    return token


def check_token(study: Any, token: str, output: Path) -> None:
    """Checks, through the database, that its search lives in this folder.

    The first worker writes its folder's token into the study. Another one
    that finds a different token there looks at a different folder, and would
    write weights where nobody finds them. Two first workers with different
    folders at the very same moment may both pass; hence it is called before
    each trial again.

    Args:
        study: An `optuna.Study`.
        token: What `join_folder` returned.
        output: The folder, for the message.

    Raises:
        IdentityError: If the tokens differ.
    """
    if _TOKEN_ATTRIBUTE not in study.user_attrs:
        study.set_user_attr(_TOKEN_ATTRIBUTE, token)
    if study.user_attrs[_TOKEN_ATTRIBUTE] != token:
        raise IdentityError(
            f"Study {study.study_name!r} in this database has its trials in "
            f"another output folder than {output}. All workers of a search "
            "must reach the same folder: give that one (a shared file system, "
            "the same mount), or another study name for a new search."
        )


def name_of(function: Callable[..., Any]) -> str:
    """The name that stays the same in each process: `module:qualname`."""
    module = getattr(function, "__module__", None) or ""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if module in ("__main__", "__mp_main__"):
        # A script is imported by its file's name where it is not the one
        # that was started.
        main = getattr(sys.modules["__main__"], "__file__", None)
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is not None:
            module = spec.name
        elif main:
            module = Path(main).stem
    return f"{module}:{name}"


def _create(path: Path, text: str) -> None:
    """Writes a file that did not exist; does nothing if it does by now."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        _files.write_atomically(temporary, _writer(text))
        # Unlike a rename it fails where another process was first.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def _writer(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write


def _differences(
    known: Mapping[str, Any], given: Mapping[str, Any]
) -> list[str]:
    """One phrase for each top-level part that differs."""
    phrases = []
    for name in {**known, **given}:
        if known.get(name) != given.get(name):
            where, old, new = _first_difference(
                name, known.get(name), given.get(name)
            )
            phrases.append(f"{where} ({_short(old)} there, {_short(new)} here)")
    return phrases


def _first_difference(where: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old | new:
            if old.get(name) != new.get(name):
                inner = name if where == "space" else f"{where}: {name}"
                if name == "config":
                    inner = where
                return _first_difference(inner, old.get(name), new.get(name))
    return where, old, new


def _short(value: Any, length: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= length else f"{text[:length]}..."
