"""The record of a search as others read it: nothing in it is written."""

import contextlib
import dataclasses
import functools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from keras_adamax_tuning.study import (
    attempt_book,
    database,
    database_errors,
    distributions,
    folder_identity,
    optuna_oracle,
)
from keras_adamax_tuning.study.trials import Trial, trials_of

# What a reader cannot know from the trials alone, as an attribute of a study.
_ARGUMENTS = "keras_adamax:arguments"
_MAX_RETRIES = 3


@dataclasses.dataclass(frozen=True)
class Record:
    """A search, as its folder and its study describe it."""

    output: Path
    objective: str
    direction: str
    hyperparameters: tuple[Any, ...]
    max_trials: int | None
    max_retries: int
    space: dict[str, Any]
    study_name: str | None
    storage: str | None

    def trials(self) -> list[Trial]:
        """The trials that were started, by number, as they are now."""
        if self.study_name is None:
            return []
        with _opened(self.output, self.storage) as storage:
            study = optuna.load_study(
                study_name=self.study_name, storage=storage
            )
            attempts = study.get_trials(deepcopy=False)
        return trials_of(attempt_book.read(attempts), self.max_retries)

    def make_optimizer(self, trial: Trial) -> Any:
        """The optimizer of a trial, as the search would make it."""
        hp = keras_tuner.HyperParameters()
        hp.values = dict(trial.hyperparameters)
        space: Any = keras.saving.deserialize_keras_object(self.space)
        return space.build_optimizer(hp)


def note_arguments(oracle: Any) -> None:
    """Puts into a study what a reader needs to know beside its trials."""
    arguments = {
        "max_trials": oracle.max_trials,
        "max_retries": oracle.max_retries,
        "hyperparameters": distributions.to_config(oracle.hyperparameters),
    }
    study = oracle.study
    if study.user_attrs.get(_ARGUMENTS) != arguments:
        study.set_user_attr(_ARGUMENTS, arguments)


def read(output: Path, storage: str | None) -> Record:
    """Reads what a search is from its folder, and from its study."""
    record = folder_identity.read(output)
    if record is None:
        raise FileNotFoundError(
            f"{output} must be the output folder of a search. It holds no "
            f"{folder_identity.FILE}."
        )
    try:
        objective, direction = record["identity"]["objective"]
        space = record["identity"]["space"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{output} must be the output folder of `run_search`. Its "
            f"{folder_identity.FILE} does not say what was searched: it is "
            "that of a tuner, or was changed."
        ) from error
    attributes: dict[str, Any] = {}
    study_name = None
    with _opened(output, storage) as opened:
        for study in optuna.get_all_study_summaries(
            opened, include_best_trial=False
        ):
            # Its attributes say so before the record is there.
            if folder_identity.has_token(record, study.user_attrs) and (
                folder_identity.has_name(record, study.study_name)
            ):
                study_name, attributes = study.study_name, study.user_attrs
    if study_name is None and storage is not None:
        raise ValueError(
            f"`storage` must name the database of the search in {output}. "
            "Received: a database that holds no study of this folder, though "
            "it may hold another one of the same name."
        )
    arguments = attributes.get(_ARGUMENTS, {})
    declared = attributes.get(
        optuna_oracle.SPACE, arguments.get("hyperparameters")
    )
    hyperparameters: tuple[Any, ...] = ()
    if declared is not None:
        hyperparameters = tuple(
            keras_tuner.HyperParameters.from_config(declared).space
        )
    return Record(
        output,
        objective,
        direction,
        hyperparameters,
        arguments.get("max_trials"),
        arguments.get("max_retries", _MAX_RETRIES),
        space,
        study_name,
        storage,
    )


@contextlib.contextmanager
def _opened(output: Path, storage: str | None) -> Iterator[RDBStorage]:
    """The database, opened to be read."""
    path = output / "study.db"
    shown, options = storage or database.sqlite_url(path), {}
    url = database.parse_url(shown)
    if storage is None and not path.exists():
        raise ValueError(
            "`storage` (--storage) must be the URL of the database of the "
            f"search in {output}, because the folder holds no {path.name}. "
            "If no trial of it has begun yet, there is nothing to read."
        )
    with contextlib.ExitStack() as stack:
        if url.get_backend_name() == "postgresql":
            options["connect_args"] = {
                "options": "-c default_transaction_read_only=on"
            }
        elif url.get_backend_name() == "sqlite":
            # With a scheme, SQLAlchemy's own way to SQLite's options.
            name = (url.database or "").removeprefix("file:")
            path = stack.enter_context(_without_journal(Path(name)))
            options["creator"] = functools.partial(_connect, path)
            options["poolclass"] = sqlalchemy.NullPool
        text = shown
        if url.get_backend_name() != "sqlite":
            text = url.render_as_string(hide_password=False)
        failure = None
        try:
            opened = database.make(text, options, skip_table_creation=True)
            stack.callback(opened.engine.dispose)
            stack.callback(opened.remove_session)
            yield opened
        except database_errors.RAISED as error:
            failure = database_errors.explain(shown, error)
        # Outside of the handler: the error in it may have credentials.
        if failure is not None:
            raise failure


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=60
    )


@contextlib.contextmanager
def _without_journal(path: Path) -> Iterator[Path]:
    """The file, or a copy of it that can be read without being written."""
    journal = path.with_name(f"{path.name}-journal")
    if not journal.exists() or _is_readable(path):
        yield path
        return
    # A process was killed in the middle of a transaction, and SQLite takes
    # back what it wrote before anyone can read.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(journal, copy.with_name(journal.name))
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.execute("SELECT * FROM sqlite_master").fetchall()
        yield copy


def _is_readable(path: Path) -> bool:
    try:
        with contextlib.closing(_connect(path)) as connection:
            connection.execute("SELECT * FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:
        return False
    return True
