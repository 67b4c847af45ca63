"""What databases raise: what passes by itself, and what it means in words."""

import re
from typing import Any
from urllib.parse import unquote

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import exc as sqlalchemy_errors

from keras_adamax_tuning.base import credentials
from keras_adamax_tuning.errors import StorageError, StorageUrlError

# No repetition helps against these.
_LASTING = re.compile(
    r"read-?only|authentication failed|no password|pg_hba|access denied"
    r"|(role|database) .* does not exist|unknown database|permission denied"
    r"|no such|unable to open|not a database|malformed|variables|syntax",
    re.IGNORECASE,
)
# These come from a database that is there.
_BUSY = re.compile(
    r"locked|starting up|shutting down|recovery mode", re.IGNORECASE
)


class DatabaseAway(Exception):
    """The database does not answer at the moment.

    It is none of SQLAlchemy's errors, because Optuna repeats what those end,
    and a transaction that is repeated blindly may be applied twice.
    """


class DriverMissing(Exception):
    """The package that speaks to the database is not installed."""


class OtherRelease(Exception):
    """The tables are those of another release of Optuna."""


# What a call of a storage may raise when the storage is in trouble.
RAISED = (
    sqlalchemy_errors.SQLAlchemyError,
    optuna.exceptions.StorageInternalError,
    DatabaseAway,
    DriverMissing,
    OtherRelease,
    OSError,  # of a journal
)


def may_pass(error: BaseException, known: bool = True) -> bool:
    """Whether the same call may succeed in a while.

    Args:
        error: What the call raised.
        known: Whether the database has answered before. One that never has
            may not exist. Defaults to `True`.
    """
    root = _sqlalchemy_error(error)
    if isinstance(root, sqlalchemy_errors.PendingRollbackError):
        return known
    if not isinstance(root, (sqlalchemy_errors.DBAPIError, DatabaseAway)):
        return False
    said = str(getattr(root, "orig", None) or root)
    if _LASTING.search(said):
        return False
    return bool(_BUSY.search(said)) or (
        known
        and (
            isinstance(
                root,
                (
                    DatabaseAway,
                    sqlalchemy_errors.OperationalError,
                    sqlalchemy_errors.InterfaceError,
                ),
            )
            or root.connection_invalidated
        )
    )


def reason(place: str | BaseStorage, error: BaseException) -> str:
    """The first line of what the database said, without credentials."""
    root = _sqlalchemy_error(error)
    cause: Any = getattr(root, "orig", None) or root
    lines = str(cause).strip().splitlines()
    said = lines[0] if lines else type(cause).__name__
    secrets = secrets_of(place)
    url = _url_of(place)
    if url is not None:
        secrets.add(url.username or "")
    return credentials.hide(said, secrets).rstrip(".")


def secrets_of(place: str | BaseStorage) -> set[str]:
    """The passwords in the URL of a database, as given and decoded."""
    text = _place_of(place)
    if text is None:
        return set()
    # SQLAlchemy encodes the : and @ in what it takes for a database's name.
    return credentials.secrets([text, unquote(text)])


def name_of(place: str | BaseStorage) -> str:
    """How messages call the database."""
    url = _url_of(place)
    if url is None:
        return "the storage of the search"
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    name = f"the database {url.drivername}://{host}/{url.database or ''}"
    # With a slash too many, all that follows is the name of a database.
    return credentials.hide(name, secrets_of(place))


def explain(place: str | BaseStorage, error: BaseException) -> StorageError:
    """An error of one line, without credentials, that says what to do."""
    name, said = name_of(place), reason(place, error)
    url = _url_of(place)
    if url is None:
        return StorageError(f"{_capital(name)} failed: {said}.")
    if isinstance(error, (DriverMissing, sqlalchemy_errors.NoSuchModuleError)):
        hint = (
            'PostgreSQL\'s comes with `pip install "psycopg[binary]"` and a '
            "URL that begins with postgresql+psycopg://"
            if url.get_backend_name() == "postgresql"
            else "Install it, or use a sqlite:/// or postgresql+psycopg:// URL"
        )
        shown = name.removeprefix("the database ")
        return StorageUrlError(
            f"The driver for {shown} is not installed. {hint}."
        )
    if isinstance(error, OtherRelease):
        return StorageError(
            f"{_capital(name)} has the tables of another release of Optuna: "
            f"{said}. Or choose another with `storage`."
        )
    if "readonly" in said or "read-only" in said:
        return StorageError(
            f"{_capital(name)} is read-only ({said}). Make it writable for "
            "this user, or choose another with `storage`."
        )
    return StorageError(
        f"{_capital(name)} cannot be used: {said}. Check that it exists, that "
        "it runs, and that this user may write to it."
    )


def _place_of(place: str | BaseStorage) -> str | None:
    if isinstance(place, RDBStorage):
        return place.engine.url.render_as_string(hide_password=False)
    return place if isinstance(place, str) else None


def _url_of(place: str | BaseStorage) -> sqlalchemy.URL | None:
    text = _place_of(place)
    return None if text is None else sqlalchemy.make_url(text)


def _sqlalchemy_error(error: BaseException) -> Any:
    """The one that Optuna or we have wrapped, or the error itself."""
    while error.__cause__ is not None and not isinstance(
        error, (sqlalchemy_errors.SQLAlchemyError, DatabaseAway)
    ):
        error = error.__cause__
    return error


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
