"""What the tests of searches share: warnings, and a PostgreSQL server."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tests.tuning import postgresql

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


def _skip_without_postgresql() -> None:
    """Skips where PostgreSQL is not installed, but fails in CI."""
    missing = postgresql.what_is_missing()
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must test on PostgreSQL, but {missing}")
        pytest.skip(missing)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a database server on loopback that lives as long as the tests."""
    _skip_without_postgresql()
    server = postgresql.Server()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


@pytest.fixture(scope="module")
def password_server() -> Iterator[postgresql.Server]:
    """A server that tests may stop, and whose password must be right."""
    _skip_without_postgresql()
    server = postgresql.Server(password="hunter2marker")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def running_server(
    password_server: postgresql.Server,
) -> Iterator[postgresql.Server]:
    """The same; it runs before and after the test."""
    yield password_server
    if not password_server.is_running():
        password_server.start()


@pytest.fixture
def postgresql_url(
    postgresql_server: str, request: pytest.FixtureRequest
) -> str:
    """URL of a fresh, empty database."""
    return postgresql.create_database(postgresql_server, request.node.nodeid)


@pytest.fixture
def outage_url(
    running_server: postgresql.Server, request: pytest.FixtureRequest
) -> str:
    """URL of a fresh, empty database of a server that tests may stop."""
    return postgresql.create_database(running_server.url, request.node.nodeid)
