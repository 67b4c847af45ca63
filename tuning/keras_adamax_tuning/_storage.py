"""Opening the database of a search: safely, and with errors that help.

SQLite needs care. Its driver begins a transaction at the first write only, so
that two processes may both read "waiting" and both write "running"; here every
transaction takes the lock at its beginning, and waits for it. And whoever
opens a new database creates its tables, which several processes may do at the
same moment: those that lose try again.
"""

import contextlib
import random
import re
import sqlite3
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event
from sqlalchemy import exc as sqlalchemy_errors

from keras_adamax_tuning._errors import StorageError

_SECONDS_TO_WAIT_FOR_A_LOCK = 60
_ATTEMPTS_TO_CREATE_TABLES = 12

# What a database answers when another process creates the same tables; not its
# words, which may be in any language. SQLSTATEs:
_LOST_RACE_STATES = {
    "23000",  # integrity constraint violation
    "23505",  # unique violation
    "40001",  # serialization failure
    "40P01",  # deadlock detected
    "42710",  # duplicate object
    "42P06",  # duplicate schema
    "42P07",  # duplicate table
    "42S01",  # table already exists
    "XX000",  # internal error: "tuple concurrently updated" has no other
}
# Numbers of MySQL: table, key or row exists; lock timeout, deadlock.
_LOST_RACE_NUMBERS = {1050, 1061, 1062, 1205, 1213}
# Of SQLite: busy, locked, schema changed, constraint.
_LOST_RACE_SQLITE = {5, 6, 17, 19}


class _DriverMissing(Exception):
    """The package that speaks to the database is not installed."""


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; `None` for another database.

    Raises:
        StorageError: If it is no URL.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database).resolve()


def open_storage(storage: str | BaseStorage) -> BaseStorage:
    """Opens what a search keeps its trials in, and creates its tables.

    Args:
        storage: A URL as SQLAlchemy takes it, or an Optuna storage.

    Returns:
        An Optuna storage. Of a database it is an `RDBStorage`.

    Raises:
        StorageError: If the database cannot be reached or written, or if its
            driver is not installed.
    """
    if isinstance(storage, RDBStorage):
        _begin_with_the_lock(storage)
        return storage
    if isinstance(storage, BaseStorage):
        if type(storage).__module__.startswith("optuna.storages._cached"):
            raise StorageError(
                "`storage` must be a URL or an Optuna storage such as "
                "RDBStorage. Received: a storage that belongs to a study. "
                "Give its URL instead."
            )
        return storage
    url = _parse(storage)
    if url.get_backend_name() == "sqlite" and url.database in (
        None,
        "",
        ":memory:",
    ):
        raise StorageError(
            "`storage` must be a database that several connections can open. "
            "Received: SQLite in memory. Name a file (sqlite:///search.db), or "
            "give storage=optuna.storages.InMemoryStorage()."
        )
    if url.drivername == "postgresql":
        # Which driver that means depends on the release of SQLAlchemy.
        url = url.set(drivername="postgresql+psycopg")
        storage = url.render_as_string(hide_password=False)
    with translated_errors(storage):
        _create_tables(storage)
        opened = RDBStorage(storage, engine_kwargs=_engine_options(url))
        # Connections end with the storage, not when the collector comes by.
        weakref.finalize(opened, opened.engine.dispose)
        _begin_with_the_lock(opened)
        _check_writable(opened)
    return opened


def _create_tables(url: str) -> None:
    for attempt in range(_ATTEMPTS_TO_CREATE_TABLES):
        try:
            # Without a pool, so that a lost race leaves no connection open.
            RDBStorage(url, engine_kwargs={"poolclass": sqlalchemy.NullPool})
            return
        except ImportError as error:
            raise _DriverMissing() from error
        except Exception as error:
            if not _is_lost_race(error) or (
                attempt + 1 == _ATTEMPTS_TO_CREATE_TABLES
            ):
                raise
            time.sleep(random.uniform(0.05, 0.1) * 1.5**attempt)


def _is_lost_race(error: BaseException) -> bool:
    """Whether another process created the tables at the same moment."""
    cause: Any = error
    while cause.__cause__ is not None:  # Optuna and SQLAlchemy wrap it
        cause = cause.__cause__
    if isinstance(cause, sqlite3.Error):
        # A table that exists has no code of its own; SQLite speaks English.
        return (
            cause.sqlite_errorcode & 0xFF in _LOST_RACE_SQLITE
            or "already exists" in str(cause)
        )
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state is not None:
        return state in _LOST_RACE_STATES
    return bool(cause.args) and cause.args[0] in _LOST_RACE_NUMBERS


def _parse(url: str) -> sqlalchemy.URL:
    if not isinstance(url, str):
        raise TypeError(
            "`storage` must be a database URL, an Optuna storage or None. "
            f"Received: storage of type {type(url).__name__}."
        )
    try:
        return sqlalchemy.make_url(url)
    except (sqlalchemy_errors.ArgumentError, ValueError):
        raise StorageError(
            "`storage` must be a database URL such as sqlite:///search.db or "
            "postgresql://user:password@host/database. Received: a text that "
            "is none (not shown, because it may hold a password)."
        ) from None


def _engine_options(url: sqlalchemy.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _SECONDS_TO_WAIT_FOR_A_LOCK}}
    # A connection that broke while a model was trained is replaced.
    return {"pool_pre_ping": True}


def _begin_with_the_lock(storage: RDBStorage) -> None:
    engine = storage.engine
    if engine.dialect.name != "sqlite" or event.contains(
        engine, "begin", _begin_immediate
    ):
        return
    event.listen(engine, "connect", _leave_transactions_to_us)
    event.listen(engine, "begin", _begin_immediate)
    storage.remove_session()
    engine.dispose()  # connections from before know nothing of it


def _leave_transactions_to_us(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _check_writable(storage: RDBStorage) -> None:
    # A row that every database of Optuna's has; it stays as it is.
    statement = "UPDATE version_info SET library_version = library_version"
    try:
        with storage.engine.begin() as connection:
            connection.execute(sqlalchemy.text(statement))
    except sqlalchemy_errors.SQLAlchemyError:
        storage.engine.dispose()
        raise


@contextlib.contextmanager
def translated_errors(storage: str | BaseStorage) -> Iterator[None]:
    """Turns what a database raises into one line without credentials."""
    try:
        yield
    except (
        sqlalchemy_errors.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        _DriverMissing,
    ) as error:
        raise StorageError(_explain(storage, error)) from None


def _explain(storage: str | BaseStorage, error: BaseException) -> str:
    if isinstance(storage, RDBStorage):
        storage = storage.url
    cause: Any = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    cause = getattr(cause, "orig", None) or cause
    lines = str(cause).strip().splitlines()
    said = lines[0] if lines else type(cause).__name__
    if not isinstance(storage, str):
        return f"The storage of the search failed: {said}."
    url = sqlalchemy.make_url(storage)
    if url.password:
        said = said.replace(str(url.password), "***")
    if url.username:
        # A short name may be a part of any word.
        name = rf"(?<!\w){re.escape(url.username)}(?!\w)"
        said = re.sub(name, "***", said)
    place = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    shown = f"{url.drivername}://{place}/{url.database or ''}"
    if isinstance(error, (_DriverMissing, sqlalchemy_errors.NoSuchModuleError)):
        hint = (
            'PostgreSQL\'s comes with `pip install "keras-adamax[postgresql]"` '
            "and a URL that begins with postgresql+psycopg://"
            if url.get_backend_name() == "postgresql"
            else "Install it, or use a sqlite:/// or postgresql+psycopg:// URL"
        )
        return f"The driver for {shown} is not installed. {hint}."
    if "readonly" in said or "read-only" in said:
        return (
            f"The database {shown} is read-only ({said}). Make it writable "
            "for this user, or choose another with `storage`."
        )
    return (
        f"The database {shown} cannot be used: {said.rstrip('.')}. Check that "
        "it exists, that it runs, and that this user may write to it."
    )
