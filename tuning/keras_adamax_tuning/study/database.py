"""Opening the database of a search: safely, and with errors that help.

SQLite needs care. Its driver begins a transaction at the first write only, so
that two processes may both read "waiting" and both write "running"; here every
transaction takes the lock at its beginning, and waits for it. And whoever
opens a new database creates its tables, which several processes may do at the
same moment: those that lose try again.
"""

import random
import sqlite3
import time
import weakref
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event
from sqlalchemy import exc as sqlalchemy_errors

from keras_adamax_tuning.errors import StorageUrlError
from keras_adamax_tuning.study import database_errors
from keras_adamax_tuning.study.patient_storage import patiently

# Whoever waits longer is told so, and waits on.
_SECONDS_TO_WAIT_FOR_A_LOCK = 10
# A host that is off does not even refuse: in the midst of a query it would be
# waited for, for hours.
_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
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

# Databases that this process has reached: they exist, and are waited for.
_have_answered: set[str] = set()
_latest_connections: weakref.WeakKeyDictionary[
    sqlalchemy.Engine, list[float]
] = weakref.WeakKeyDictionary()


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path}"


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; `None` for another database."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database).resolve()


def open_storage(storage: str | BaseStorage) -> BaseStorage:
    """Opens what a search keeps its trials in, and creates its tables."""
    if isinstance(storage, RDBStorage):
        _tell_outages(storage)
        _begin_with_the_lock(storage)
        return storage
    if isinstance(storage, BaseStorage):
        if type(storage).__module__.startswith("optuna.storages._cached"):
            raise StorageUrlError(
                "`storage` must be a URL or an Optuna storage such as "
                "RDBStorage. Received: a storage that belongs to a study. "
                "Give its URL instead."
            )
        return storage
    url = parse_url(storage)
    if url.get_backend_name() == "sqlite" and url.database in (
        None,
        "",
        ":memory:",
    ):
        raise StorageUrlError(
            "`storage` must be a database that several connections can open. "
            "Received: SQLite in memory. Name a file (sqlite:///search.db), or "
            "give storage=optuna.storages.InMemoryStorage()."
        )
    text = storage
    if url.get_backend_name() != "sqlite":
        text = url.render_as_string(hide_password=False)
    opened = patiently(
        lambda: _open(text, url), text, known=storage in _have_answered
    )
    _have_answered.add(storage)
    return opened


def expect_answer(storage: str) -> None:
    """Says that the database has answered already, to another process."""
    _have_answered.add(storage)


def _open(storage: str, url: sqlalchemy.URL) -> RDBStorage:
    _create_tables(storage)
    opened = make(storage, _engine_options(url))
    # Connections end with the storage, not when the collector comes by.
    weakref.finalize(opened, opened.engine.dispose)
    _tell_outages(opened)
    _begin_with_the_lock(opened)
    _check_writable(opened)
    return opened


def make(
    url: str, engine_options: dict[str, Any], skip_table_creation: bool = False
) -> RDBStorage:
    """Optuna's storage of a URL, which may have braces in it."""
    # Optuna takes braces for a template of its own.
    template = url.replace("{", "{{").replace("}", "}}")
    return RDBStorage(
        template,
        engine_kwargs=engine_options,
        skip_table_creation=skip_table_creation,
    )


def _create_tables(url: str) -> None:
    for attempt in range(_ATTEMPTS_TO_CREATE_TABLES):
        try:
            # Without a pool, so that a lost race leaves no connection open.
            make(url, {"poolclass": sqlalchemy.NullPool})
            return
        except ImportError as error:
            raise database_errors.DriverMissing() from error
        except RuntimeError as error:
            raise database_errors.OtherRelease() from error
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


def check_storage(storage: Any) -> None:
    """Checks the kind of a storage; no error shows it, for its password."""
    if not isinstance(storage, (str, BaseStorage)):
        raise TypeError(
            "`storage` must be a database URL, an Optuna storage or None. "
            f"Received: storage of type {type(storage).__name__}."
        )


def parse_url(url: str) -> sqlalchemy.URL:
    """Reads a URL; no error has it in it, since it may have a password."""
    check_storage(url)
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy_errors.ArgumentError, ValueError):
        parsed = None
    # Outside of the handler: the error in it may have the password.
    if parsed is None:
        raise StorageUrlError(
            "`storage` must be a database URL such as sqlite:///search.db or "
            "postgresql://user:password@host/database. Received: a text that "
            "is none (not shown, because it may hold a password)."
        ) from None
    if parsed.host and "@" in parsed.host:
        raise StorageUrlError(
            "`storage` must have %40 in place of each @ in a user name or "
            "password, and %2F in place of each /. Received: a URL with more "
            "than one @ (not shown, because it may hold a password)."
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        # Which driver that means depends on the release of SQLAlchemy, which
        # does not know the second name any more.
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def _engine_options(url: sqlalchemy.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _SECONDS_TO_WAIT_FOR_A_LOCK}}
    # A connection that broke while a model was trained is replaced.
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.drivername == "postgresql+psycopg":
        options["connect_args"] = {
            name: seconds
            for name, seconds in _LIBPQ.items()
            if name not in url.query
        }
    return options


def connected_at(storage: RDBStorage) -> float:
    """When its latest connection was opened, on `time.monotonic`'s clock.

    A server that was away has ended the connections from before.
    """
    return _latest_connections[storage.engine][0]


def _tell_outages(storage: RDBStorage) -> None:
    engine = storage.engine
    if engine in _latest_connections:
        return
    latest = _latest_connections[engine] = [time.monotonic()]

    def note(*_: Any) -> None:
        latest[0] = time.monotonic()

    event.listen(engine, "connect", note)
    event.listen(engine, "handle_error", _raise_if_away)


def _raise_if_away(context: sqlalchemy.ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if (
        error is not None
        and not context.is_pre_ping  # then SQLAlchemy connects anew
        and database_errors.may_pass(error)
    ):
        raise database_errors.DatabaseAway(str(context.original_exception))


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
