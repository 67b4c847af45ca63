"""What the tests of searches share: warnings, and a PostgreSQL server."""

import contextlib
import gc
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

# What KerasTuner and Optuna do under "every warning is an error".
IGNORED_WARNINGS = (
    # Each locked method of KerasTuner's oracles calls `currentThread()`.
    r"ignore:currentThread\(\) is deprecated:DeprecationWarning:keras_tuner",
    r"ignore:getName\(\) is deprecated:DeprecationWarning:keras_tuner",
    # Optuna says so of whatever it may still change.
    "ignore::optuna.exceptions.ExperimentalWarning",
)

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for ignored in IGNORED_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(ignored))


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> Iterator[None]:
    """KerasTuner collects garbage before each trial.

    With all that the tests before these have left, each time takes a second.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def _postgresql_programs() -> Path | None:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    # Debian keeps them out of the path, a folder a version.
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: int(path.parent.name),
    )
    return folders[-1] if folders else None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _as_unprivileged() -> list[str]:
    # The server refuses to run as root.
    if os.getuid() != 0:
        return []
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory):
    """URL of a database server on loopback that lives as long as the tests.

    Skips where PostgreSQL is not installed, but fails in CI, which has it.
    """
    programs = _postgresql_programs()
    missing = None
    if sys.platform == "win32":
        missing = "the fixture starts the server as on Unix"
    elif programs is None:
        missing = "PostgreSQL (Debian: apt-get install postgresql) is missing"
    elif os.getuid() == 0 and shutil.which("setpriv") is None:
        missing = "setpriv is missing, and the server refuses to run as root"
    elif importlib.util.find_spec("psycopg") is None:
        missing = "the driver psycopg is missing"
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must test on PostgreSQL, but {missing}")
        pytest.skip(missing)
    assert programs is not None
    with contextlib.ExitStack() as stack:
        # Not below pytest's own folder, which only its owner may enter.
        folder = Path(
            subprocess.check_output(["mktemp", "-d"], text=True).strip()
        )
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        user = _as_unprivileged()
        if user:
            os.chown(folder, 65534, 65534)
        data, port = folder / "data", _free_port()
        log = tmp_path_factory.mktemp("postgresql") / "server.log"
        subprocess.run(
            [
                *user,
                programs / "initdb",
                *("--pgdata", data, "--username=searcher", "--auth=trust"),
                *("--encoding=UTF8", "--no-sync", "--no-locale"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        with open(log, "w") as log_file:
            server = subprocess.Popen(
                [
                    *user,
                    programs / "postgres",
                    *("-D", data, "-p", str(port), "-k", folder),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                ],
                stdout=log_file,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        stack.callback(server.wait, 30)
        # Fast: without waiting for clients.
        stack.callback(server.send_signal, signal.SIGINT)
        import psycopg

        address = {"host": "127.0.0.1", "port": port, "user": "searcher"}
        for _ in range(300):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(dbname="postgres", **address).close()
                break
            if server.poll() is not None:
                pytest.fail(f"PostgreSQL has ended: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        else:
            pytest.fail(f"PostgreSQL is not ready: {log.read_text()[-2000:]}")
        yield f"postgresql+psycopg://searcher:secret@127.0.0.1:{port}"


@pytest.fixture
def postgresql_url(
    postgresql_server: str, request: pytest.FixtureRequest
) -> str:
    """URL of a fresh, empty database."""
    import sqlalchemy

    name = f"search_{abs(hash(request.node.nodeid))}"
    admin = sqlalchemy.create_engine(
        f"{postgresql_server}/postgres", isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'CREATE DATABASE "{name}"'))
    admin.dispose()
    return f"{postgresql_server}/{name}"
