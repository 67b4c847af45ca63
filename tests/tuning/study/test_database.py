import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from keras_adamax_tuning import StorageError
from keras_adamax_tuning.study import database, heartbeats, patient_storage
from tests.tuning.oracles import make_oracle, run


def sqlite(folder):
    return f"sqlite:///{folder}/study.db"


# First starts.

CREATOR = """
import sys
sys.path[:0] = {path!r}
from keras_adamax_tuning.study import database
import optuna
print("ready", flush=True)
sys.stdin.readline()
storage = database.open_storage({url!r})
optuna.create_study(
    storage=storage, study_name="s", load_if_exists=True
)
print("done", flush=True)
"""


def start_many(url, count):
    script = CREATOR.format(path=[p for p in sys.path if p], url=url)
    # The package imports Keras, which is all that takes time here.
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=400)
        assert process.returncode == 0 and "done" in out, errors


@pytest.mark.parametrize(
    ("state", "text", "expected"),
    [
        ("42P07", "Relation »studies« existiert bereits", True),
        ("23505", "la valeur d'une clé dupliquée rompt la contrainte", True),
        ("40P01", "Verklemmung (Deadlock) entdeckt", True),
        ("42501", 'no permission for schema "already exists"', False),
        ("28P01", "password of user deadlock is wrong", False),
    ],
)
def test_a_lost_race_is_known_in_every_language(state, text, expected):
    psycopg = pytest.importorskip("psycopg")
    # What Optuna raises around what SQLAlchemy raises.
    driver = psycopg.errors.lookup(state)(text)
    wrapped = sqlalchemy.exc.ProgrammingError("CREATE TABLE", {}, driver)
    wrapped.__cause__ = driver
    error = optuna.exceptions.StorageInternalError("An exception is raised")
    error.__cause__ = wrapped
    assert database._is_lost_race(wrapped) is expected
    assert database._is_lost_race(error) is expected


def test_a_lost_race_of_sqlite(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("CREATE TABLE a (b INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO a VALUES (1)")
        for statement, expected in (
            ("CREATE TABLE a (b INTEGER)", True),
            ("INSERT INTO a VALUES (1)", True),
            ("SELECT * FROM c", False),
        ):
            with pytest.raises(sqlite3.Error) as error:
                connection.execute(statement)
            assert database._is_lost_race(error.value) is expected


def start_many_threads(url, count):
    barrier, errors = threading.Barrier(count, timeout=120), []

    def start():
        barrier.wait()
        try:
            storage = database.open_storage(url)
            optuna.create_study(
                storage=storage, study_name="s", load_if_exists=True
            )
            storage.remove_session()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def check_one_study(url):
    storage = database.open_storage(url)
    assert [s.study_name for s in storage.get_all_studies()] == ["s"]
    with storage.engine.begin() as connection:
        for table in ("version_info", "alembic_version"):
            count = connection.execute(
                sqlalchemy.text(f"SELECT count(*) FROM {table}")
            ).scalar()
            assert count == 1, table


@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND") != "jax",
    reason="no model is trained: JAX, which starts fastest, stands for all",
)
def test_processes_that_start_at_once_do_not_race_on_sqlite(tmp_path):
    start_many(sqlite(tmp_path), 3)
    check_one_study(sqlite(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(3))
def test_connections_that_start_at_once_do_not_race_on_sqlite(
    tmp_path, repetition
):
    del repetition
    start_many_threads(sqlite(tmp_path), 6)
    check_one_study(sqlite(tmp_path))


@pytest.mark.slow
def test_connections_that_start_at_once_do_not_race_on_postgresql(
    postgresql_url,
):
    start_many_threads(postgresql_url, 6)
    check_one_study(postgresql_url)


# Transactions.


def run_transitions(url, state, count=8):
    """How many of `count` connections win the same transition."""
    storage = database.open_storage(url)
    study = optuna.create_study(storage=storage, study_name="s")
    before = TrialState.WAITING
    if state != TrialState.RUNNING:
        before = TrialState.RUNNING
    wins = 0
    for _ in range(4):
        trial_id = storage.create_new_trial(
            study._study_id, optuna.trial.create_trial(state=before)
        )
        barrier, won = threading.Barrier(count, timeout=120), []

        def go(trial_id=trial_id, barrier=barrier, won=won):
            mine = database.open_storage(url)
            mine.get_trial(trial_id)
            barrier.wait()
            try:
                if mine.set_trial_state_values(
                    trial_id,
                    state,
                    [1.0] if state == TrialState.COMPLETE else None,
                ):
                    won.append(1)
            except optuna.exceptions.UpdateFinishedTrialError:
                pass
            mine.remove_session()

        threads = [threading.Thread(target=go) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wins += len(won)
    return wins


@pytest.mark.slow
@pytest.mark.parametrize(
    "state", [TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL]
)
def test_only_one_wins_a_transition_on_sqlite(tmp_path, state):
    assert run_transitions(sqlite(tmp_path), state) == 4


@pytest.mark.slow
@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.COMPLETE])
def test_only_one_wins_a_transition_on_postgresql(postgresql_url, state):
    assert run_transitions(postgresql_url, state, count=4) == 4


def test_a_storage_of_the_users_own_is_made_safe_too(tmp_path):
    storage = RDBStorage(sqlite(tmp_path))
    assert database.open_storage(storage) is storage
    assert database.open_storage(storage) is storage  # twice is once
    with storage.engine.begin():
        other = sqlite3.connect(tmp_path / "study.db", timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
    storage.remove_session()
    storage.engine.dispose()


def test_a_busy_database_is_waited_for(tmp_path):
    oracle = make_oracle(tmp_path, max_trials=1)
    oracle.begin_search()
    path = tmp_path / "trials" / "study.db"
    busy = sqlite3.connect(path, check_same_thread=False)
    busy.execute("BEGIN IMMEDIATE")
    threading.Timer(1.0, busy.rollback).start()
    began = time.monotonic()
    run(oracle)
    assert time.monotonic() - began > 0.5
    assert oracle.logical_trials()[0].state == "completed"
    busy.close()


# Errors: one line, no credentials, and what to do.


def check_message(error, *said):
    text = str(error)
    assert "\n" not in text and "hunter2" not in text and "bob" not in text
    for words in said:
        assert words in text, text
    # Nor is there a chained exception that would print them.
    assert error.__cause__ is None and error.__suppress_context__


def test_an_unreachable_database():
    url = "postgresql+psycopg://bob:hunter2@127.0.0.1:1/search"
    with pytest.raises(StorageError) as raised:
        database.open_storage(url)
    check_message(
        raised.value, "postgresql+psycopg://127.0.0.1:1/search", "Check that"
    )


def test_a_database_that_does_not_exist(postgresql_server):
    url = postgresql_server.replace("searcher:secret", "bob:hunter2")
    with pytest.raises(StorageError) as raised:
        database.open_storage(f"{url}/search")
    check_message(raised.value, "cannot be used", "Check that")


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(StorageError) as raised:
        database.open_storage(f"sqlite:///{tmp_path}/nowhere/study.db")
    check_message(raised.value, "unable to open database file")


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "study.db").write_text("hello, this is a text" * 99)
    with pytest.raises(StorageError) as raised:
        database.open_storage(sqlite(tmp_path))
    check_message(raised.value, "file is not a database")


def test_a_database_of_another_release_of_optuna(tmp_path):
    database.open_storage(sqlite(tmp_path)).engine.dispose()
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as file:
        file.execute("UPDATE alembic_version SET version_num = 'v9.9.9'")
        file.commit()
    with pytest.raises(StorageError) as raised:
        database.open_storage(sqlite(tmp_path))
    check_message(raised.value, "another release of Optuna", "choose another")


def test_a_read_only_sqlite_file(tmp_path):
    oracle = make_oracle(tmp_path)
    run(oracle, limit=1)
    path = tmp_path / "trials" / "study.db"
    # Permissions would not hinder root.
    url = f"sqlite:///file:{path}?mode=ro&uri=true"
    with pytest.raises(StorageError) as raised:
        make_oracle(tmp_path, storage=url).begin_search()
    check_message(raised.value, "is read-only", "Make it writable")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_the_driver_of_a_url_without_one(postgresql_url, scheme):
    """Ours, in any release of SQLAlchemy; some hosts give `postgres`."""
    opened = database.open_storage(
        postgresql_url.replace("postgresql+psycopg://", f"{scheme}://")
    )
    assert opened.engine.url.drivername == "postgresql+psycopg"
    assert opened.engine.url.password == "secret"
    assert opened.get_all_studies() == []


def test_a_short_name_is_hidden_and_no_part_of_a_word():
    with pytest.raises(StorageError, match="refused") as raised:
        database.open_storage("postgresql+psycopg://u:hunter2@127.0.0.1:1/s")
    check_message(raised.value, "Check that")


def test_a_read_only_postgresql(postgresql_url):
    database.open_storage(postgresql_url)
    options = "options=-c%20default_transaction_read_only%3Don"
    with pytest.raises(StorageError) as raised:
        database.open_storage(f"{postgresql_url}?{options}")
    check_message(raised.value, "is read-only", "Make it writable")


@pytest.mark.parametrize(
    "url, said",
    [
        ("postgresql+nodriver://bob:hunter2@h/d", "driver for postgresql+nod"),
        ("nobase://bob:hunter2@h/d", "driver for nobase://h/d"),
        ("mysql+pymysql://bob:hunter2@h/d", "is not installed"),
    ],
)
def test_a_driver_that_is_missing(url, said):
    with pytest.raises(StorageError) as raised:
        database.open_storage(url)
    check_message(raised.value, said, "sqlite:///" if "nob" in url else "")


@pytest.mark.parametrize("url", ["bob:hunter2@host", "", "hello"])
def test_a_text_that_is_no_url(url):
    with pytest.raises(StorageError) as raised:
        database.open_storage(url)
    check_message(raised.value, "must be a database URL")


def test_braces_are_no_template(tmp_path):
    folder = tmp_path / "{SCHEMA_VERSION}{a}"
    folder.mkdir()
    database.open_storage(sqlite(folder)).engine.dispose()
    assert (folder / "study.db").exists()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_sqlite_in_memory_is_refused(url):
    with pytest.raises(StorageError, match="InMemoryStorage"):
        database.open_storage(url)


def test_a_database_that_goes_away_ends_the_search_without_a_verdict(
    postgresql_url, monkeypatch
):
    monkeypatch.setattr(patient_storage, "SECONDS_TO_WAIT", 1)
    oracle = make_oracle("/nowhere", storage=postgresql_url)
    trial = oracle.create_trial("x")
    real = oracle._opened.storage.set_trial_intermediate_value

    def gone(*args):
        raise sqlalchemy.exc.OperationalError(
            "UPDATE", {}, Exception("server closed the connection of searcher")
        )

    oracle._opened.storage.set_trial_intermediate_value = gone
    with pytest.raises(StorageError) as raised:
        oracle.report(trial.trial_id, 1.0, 0)
    assert "searcher" not in str(raised.value)
    oracle._opened.storage.set_trial_intermediate_value = real
    (logical,) = oracle.logical_trials()
    assert logical.state == "running"


# Heartbeats.


def last_beat(storage, trial_id):
    with storage.engine.begin() as connection:
        return connection.execute(
            sqlalchemy.text(
                "SELECT heartbeat FROM trial_heartbeats WHERE trial_id = :id"
            ),
            {"id": trial_id},
        ).scalar()


@pytest.mark.slow
def test_a_running_trial_beats_and_is_stale_when_it_stops(tmp_path):
    oracle = make_oracle(tmp_path, heartbeat_interval=1, grace_period=3)
    trial = oracle.create_trial("x")
    attempt_id = oracle._attempts[trial.trial_id].attempt_id
    study_id = oracle.study._study_id
    first = last_beat(oracle._opened.storage, attempt_id)
    with oracle.heartbeat(trial.trial_id):
        time.sleep(4.5)
        # Longer than the grace period, and still alive.
        assert (
            heartbeats.stale_trial_ids(oracle._opened.storage, study_id) == []
        )
        assert last_beat(oracle._opened.storage, attempt_id) > first
    time.sleep(4.5)
    stale = heartbeats.stale_trial_ids(oracle._opened.storage, study_id)
    assert stale == [attempt_id]


def test_a_beat_that_fails_is_tried_again(tmp_path, monkeypatch):
    oracle = make_oracle(tmp_path, heartbeat_interval=1, grace_period=3)
    trial = oracle.create_trial("x")
    real, calls = oracle._opened.storage.record_heartbeat, []

    def sometimes(trial_id):
        calls.append(trial_id)
        if len(calls) == 1:
            raise RuntimeError("away")
        real(trial_id)

    monkeypatch.setattr(oracle._opened.storage, "record_heartbeat", sometimes)
    with oracle.heartbeat(trial.trial_id) as heartbeat:
        time.sleep(1.5)
        assert str(heartbeat.last_error) == "away"
        time.sleep(1.2)
    assert heartbeat.last_error is None and len(calls) >= 2
