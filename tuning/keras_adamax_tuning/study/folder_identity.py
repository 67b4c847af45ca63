"""Which search a folder holds: its settings, and the study of its trials.

A folder and a study name each other by a random token, not by path or URL: a
shared folder may be mounted elsewhere on another machine, and a database may
be known there under another host or password, or have been moved.

The record of the folder, `search.json`, is created once, by one process, and
is never changed. It is created when all that can be wrong has been checked,
before the first trial. Each process that would create it first writes its own
token into its study. So whoever reads the record sees whether the study at
hand is the one that the record was made for, whenever a process was killed.
"""

import json
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from keras_adamax import _atomic_files
from keras_adamax_tuning.errors import SearchMismatchError
from keras_adamax_tuning.study import attempt_book

FILE = "search.json"
TRIALS = "trials"
_FORMAT = 2
# Made records before any check, and rewrote them until the first trial.
_OLD_FORMAT = 1
# Attributes of a study: the token of its folder; and, with a token behind it,
# that a record with this token was made for it.
_FOLDER = "keras_adamax:output_folder"
_MADE_FOR = "keras_adamax:output_folder:"


class IdentityError(SearchMismatchError):
    """The folder, or the study, belongs to another search."""


class Folder:
    """The folder of a search.

    Args:
        path: Where the record is.
        trials: Where the trials' folders are: in `path`, or `path` itself.
        identity: What makes this search the one it is, JSON's types only.
            `None` takes any.
        database: A file that may be in the folder before its record.
            Defaults to `None`.
    """

    def __init__(
        self,
        path: Path,
        trials: Path,
        identity: Mapping[str, Any] | None,
        database: Path | None = None,
    ):
        self.path = path
        self._trials = trials
        self._database = database
        self._identity = None
        if identity is not None:
            self._identity = json.loads(json.dumps(identity, allow_nan=False))
        self._token: str | None = None

    @classmethod
    def of_project(cls, project: Path, identity: Mapping[str, Any]) -> "Folder":
        """That of a tuner, which may be in the folder of `run_search`."""
        output = project.parent
        if project.name == TRIALS and (output / FILE).exists():
            return cls(output, project, None)
        return cls(project, project, identity)

    def check_unused(self) -> None:
        """Checks that the folder, if it has no record yet, is empty."""
        if read(self.path) is not None or not self.path.is_dir():
            return
        own = () if self._database is None else (self._database.name,)
        others = [
            entry.name
            for entry in self.path.iterdir()
            # SQLite has files beside its own, of longer names.
            if not entry.name.startswith((".", *own))
            and not (entry == self._trials and not any(entry.iterdir()))
        ]
        # Another worker may have begun the search by now.
        if others and read(self.path) is None:
            raise IdentityError(
                f"{self.path} is neither empty nor the folder of a search (it "
                f"holds {min(others)}, but no {FILE}). Choose another output "
                "folder."
            )

    def look(self) -> dict[str, Any] | None:
        """Makes the folder, or checks that its search has these settings.

        Nothing is written into a folder that exists.

        Returns:
            The record; `None` if there is none yet.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"{self.path} cannot be the output folder of a search: "
                f"{error.strerror}. Choose another one."
            ) from error
        record = read(self.path)
        if record is not None and not self._may_be_replaced(record):
            self._check_settings(record)
        return record

    def claim(self, study: optuna.Study) -> None:
        """Makes this the folder of a study's trials, or checks that it is.

        Any number of processes may call this at the same moment, with any
        studies and any settings: one of them creates the record, and the
        others compare theirs with it.
        """
        record = self.look()
        if record is None or self._may_be_replaced(record):
            self._create(study, record)
            record = read(self.path)
            if record is None:
                raise IdentityError(
                    f"{self.path / FILE} was removed a moment ago. Start the "
                    "same search again."
                )
            self._check_settings(record)
        token = record["token"]
        attributes = study.user_attrs
        if not has_token(record, attributes):
            raise IdentityError(self._describe_other_study(record, study))
        if not has_name(record, study.study_name):
            raise IdentityError(self._describe_copy(record, study))
        if folder_of(attributes) in (None, record.get("replaces")):
            study.set_user_attr(_FOLDER, token)
        self._token = token
        self.check(study)

    def check(self, study: optuna.Study) -> None:
        """Checks that folder and study still are each other's.

        Two workers with one study and different folders at the very same
        moment may both pass `claim`; hence it is called before each trial.
        """
        if folder_of(study.user_attrs) != self._token:
            raise IdentityError(self._describe_other_folder(study))
        record = read(self.path)
        if record is None or record["token"] != self._token:
            raise IdentityError(
                f"{self.path / FILE} was removed or replaced while the search "
                "ran. Restore it, or begin a new search in another output "
                "folder."
            )

    def _create(
        self, study: optuna.Study, old: Mapping[str, Any] | None
    ) -> None:
        replaced = None if old is None else old["token"]
        if folder_of(study.user_attrs) not in (None, replaced):
            raise IdentityError(self._describe_other_folder(study))
        self._check_trials(study)
        token = secrets.token_hex(16)
        study.set_user_attr(f"{_MADE_FOR}{token}", True)
        record = {
            "format": _FORMAT,
            "token": token,
            "study_name": study.study_name,
            "identity": self._identity or {},
        }
        path = self.path / FILE
        if old is None:
            _atomic_files.create(path, _to_bytes(record))
            return
        # One of those that would replace it wins.
        winner = path.with_name(f".{replaced}.{FILE}")
        _atomic_files.create(
            winner, _to_bytes({**record, "replaces": replaced})
        )
        _atomic_files.replace(path, winner.read_bytes())

    def _check_trials(self, study: optuna.Study) -> None:
        """Checks that trials which earlier versions ran are the study's."""
        attempts = {
            entry.trial_id(attempt): attempt
            for entry in attempt_book.read(study.get_trials(deepcopy=False))
            for attempt in entry.attempts
        }
        here = self._trial_names()
        unknown = here - set(attempts)
        if unknown:
            raise IdentityError(
                f"{self._trials} holds trials of another study: "
                f"{study.study_name!r} in this storage has no trial "
                f"{min(unknown)}. Choose another folder, or give the storage "
                "and the study name that it began with to go on with it."
            )
        missing = {
            name
            for name, attempt in attempts.items()
            if "checkpoint" in attempt_book.result_of(attempt)
        } - here
        if missing:
            raise IdentityError(self._describe_other_folder(study))

    def _check_settings(self, record: Mapping[str, Any]) -> None:
        if self._identity is None:
            return
        different = _differences(record["identity"], self._identity)
        if different:
            raise IdentityError(
                f"{self.path} holds another search. It differs in "
                f"{'; '.join(different)}. Choose another output folder, or "
                "give what that search was given to go on with it."
                f"{self._advice()}"
            )

    def _may_be_replaced(self, record: Mapping[str, Any]) -> bool:
        return record["format"] == _OLD_FORMAT and not self._trial_names()

    def _trial_names(self) -> set[str]:
        return {
            path.name.removeprefix("trial_")
            for path in self._trials.glob("trial_*")
        }

    def _describe_other_study(
        self, record: Mapping[str, Any], study: optuna.Study
    ) -> str:
        name = record.get("study_name")
        if name is None:
            difference = "storage or study_name"
        elif name != study.study_name:
            difference = (
                f"study_name ({_short(name)} there, "
                f"{_short(study.study_name)} here)"
            )
        else:
            difference = (
                f"storage (its study {_short(name)} is another one than that "
                "of this name here)"
            )
        return (
            f"{self.path} holds the trials of another study. It differs in "
            f"{difference}. Choose another output folder, or give the storage "
            "and the study name that it began with to go on with it."
            f"{self._advice()}"
        )

    def _describe_copy(
        self, record: Mapping[str, Any], study: optuna.Study
    ) -> str:
        name, here = record["study_name"], study.study_name
        return (
            f"{self.path} holds the trials of study {_short(name)}. Study "
            f"{_short(here)} in this storage is a copy of it, which would "
            "write its own trials over them. Give the study name "
            f"{_short(name)} to go on with that search, or another output "
            "folder and a study name without trials to begin a new one."
        )

    def _describe_other_folder(self, study: optuna.Study) -> str:
        return (
            f"Study {study.study_name!r} in this database has its trials in "
            f"another output folder than {self.path}. All workers of a search "
            "must reach the same folder: give that one (a shared file system, "
            "the same mount), or another study name for a new search."
        )

    def _advice(self) -> str:
        if self._trial_names():
            return ""
        return (
            " No trial has begun in it: if no other process works there, "
            f"remove {FILE} from it to begin anew."
        )


def read(path: Path) -> dict[str, Any] | None:
    """The record of a folder; `None` if it has none."""
    file = path / FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        known = record["format"] in (_OLD_FORMAT, _FORMAT)
        if known and not (
            isinstance(record["token"], str)
            and isinstance(record["identity"], dict)
        ):
            raise TypeError("a value of the wrong type")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise IdentityError(
            f"{file} cannot be read ({type(error).__name__}: {error}). "
            "Restore it from a backup, or choose another output folder."
        ) from error
    if not known:
        raise IdentityError(
            f"{file} was written by another version of this package (format "
            f"{record['format']!r}, here {_FORMAT}). Use that version, or "
            "choose another output folder."
        )
    return record


def folder_of(attributes: Mapping[str, Any]) -> str | None:
    """The token of the folder that a study's attributes name; None if none."""
    return attributes.get(_FOLDER)


def has_token(record: Mapping[str, Any], attributes: Mapping[str, Any]) -> bool:
    """Whether a study's attributes say that a record is the study's."""
    token = record["token"]
    return folder_of(attributes) == token or (
        f"{_MADE_FOR}{token}" in attributes
    )


def has_name(record: Mapping[str, Any], study_name: str) -> bool:
    """Whether a record may be that of a study of this name.

    A copy of a study has the token, too, since Optuna copies attributes.
    """
    return record.get("study_name", study_name) == study_name


def study_name_of(
    path: Path, open_storage: Callable[[], optuna.storages.BaseStorage]
) -> str:
    """The name of a folder's study; a new one is named like the folder.

    The folder may have been renamed since, or have another name on another
    machine.
    """
    record = read(path)
    if record is None:
        return path.name
    if "study_name" in record:
        return record["study_name"]
    for summary in optuna.get_all_study_summaries(
        open_storage(), include_best_trial=False
    ):
        if folder_of(summary.user_attrs) == record["token"]:
            return summary.study_name
    return path.name


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


def _to_bytes(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=2).encode()


def _differences(
    known: Mapping[str, Any], given: Mapping[str, Any]
) -> list[str]:
    """One phrase for each top-level part that differs."""
    known, given = _without_modules(known), _without_modules(given)
    phrases = []
    for name in {**known, **given}:
        if known.get(name) != given.get(name):
            where, old, new = _first_difference(
                name, known.get(name), given.get(name)
            )
            phrases.append(f"{where} ({_short(old)} there, {_short(new)} here)")
    return phrases


def _without_modules(value: Any) -> Any:
    """The same, with registered classes known by their names alone.

    Keras finds them by these; their modules may be others in another release.
    """
    if isinstance(value, list):
        return [_without_modules(part) for part in value]
    if not isinstance(value, dict):
        return value
    # A class that nobody has registered has no package in its name.
    is_registered = ">" in str(value.get("registered_name"))
    return {
        name: _without_modules(part)
        for name, part in value.items()
        if not (is_registered and name == "module")
    }


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
