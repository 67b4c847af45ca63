"""What a search does while its database is away, and afterwards.

The server is a real one that is stopped in the midst of its work. No model is
trained except in the command's test, so nothing depends on the backend.
"""

import collections
import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time

import keras
import optuna
import pytest
from optuna.trial import TrialState

from keras_adamax_tuning import OptunaOracle, OptunaTuner, StorageError, cli
from keras_adamax_tuning.study import (
    attempt_book,
    database,
    heartbeats,
    owners,
    patient_storage,
)
from tests.tuning.oracles import finish, make_oracle, run
from tests.tuning.running.test_worker_processes import (
    Search,
    assert_same_trials,
    command,
    rows_of,
)
from tests.tuning.running.test_worker_processes import alone as alone

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="the record does not depend on the backend",
)


def check_error(error):
    text = str(error)
    assert "\n" not in text
    assert "hunter2marker" not in text and "searcher" not in text
    # Nor does anything hang on it that a traceback would print.
    assert error.__cause__ is None and error.__context__ is None


@contextlib.contextmanager
def away(server, seconds=1.5):
    """Stops the server; it is started again while the block runs."""
    server.stop()
    thread = threading.Timer(seconds, server.start)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# A short outage.


@pytest.mark.nightly
@pytest.mark.slow
def test_two_workers_outlive_a_restart(
    tmp_path, running_server, outage_url, alone
):
    more = [f"--storage={outage_url}", "--heartbeat-interval=1"]
    with Search(tmp_path / "out", *more, workers=2) as search:
        search.wait_for_workers(2)
        running_server.stop()
        search.release()  # both report to a server that is away
        search.wait_until(
            lambda: search.printed().count("does not answer") >= 3
        )
        # Longer than the grace period, which is four seconds.
        time.sleep(8)
        running_server.start()
        assert search.finish() == 0, search.printed()
        printed = search.printed()
    rows = rows_of(search.output)
    assert_same_trials(rows, alone)
    assert {row["state"] for row in rows} == {"completed"}
    # No worker took another for dead.
    assert {row["attempts"] for row in rows} == {"1"}
    assert "Traceback" not in printed and "Error" not in printed
    assert "trying again for up to 90 s" in printed
    assert printed.count("answers again") == printed.count("does not answer")
    assert "worker 1: the database " in printed
    assert "hunter2marker" not in printed


def test_every_step_outlives_a_restart(running_server, outage_url, capfd):
    oracle = make_oracle("/nowhere", storage=outage_url, max_trials=2)
    oracle.begin_search()
    with away(running_server):
        trial = oracle.create_trial("x")
    with away(running_server):
        oracle.report(trial.trial_id, 1.0, 0)
    with away(running_server):
        finish(oracle, trial)
    with away(running_server):
        assert [t.state for t in oracle.logical_trials()] == ["completed"]
    with away(running_server):
        run(oracle)
    assert [t.attempts for t in oracle.logical_trials()] == [1, 1]
    assert len(oracle.study.trials) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 10
    for begin, end in zip(lines[::2], lines[1::2], strict=True):
        assert "does not answer" in begin and "for up to 90 s" in begin
        assert end.endswith("answers again")


def on_two_machines(monkeypatch, **arguments):
    """Two oracles of one study, and the trial that the other one has begun."""
    here = make_oracle("/nowhere", **arguments)
    elsewhere = make_oracle("/nowhere", **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(owners, "_machine", lambda: "elsewhere")
        trial = elsewhere.create_trial("elsewhere")
    return here, elsewhere, trial


@pytest.mark.nightly
@pytest.mark.slow
def test_a_living_worker_is_not_taken_for_dead_after_an_outage(
    running_server, outage_url, monkeypatch
):
    kwargs = dict(
        storage=outage_url, heartbeat_interval=4, grace_period=5, max_trials=2
    )
    here, elsewhere, trial = on_two_machines(monkeypatch, **kwargs)
    owners._running_here.clear()
    others_have_looked = threading.Event()
    real = elsewhere._opened.storage.record_heartbeat

    def beat_after_the_others(trial_id):
        others_have_looked.wait(30)
        real(trial_id)

    elsewhere._opened.storage.record_heartbeat = beat_after_the_others
    with elsewhere.heartbeat(trial.trial_id):
        finish(here, here.create_trial("here"))
        running_server.stop()
        time.sleep(6)  # longer than the grace period
        running_server.start()
        stale = heartbeats.stale_trial_ids(
            here._opened.storage, here.study._study_id
        )
        assert len(stale) == 1
        # One that was there, and one that comes at this moment.
        assert here.create_trial("here").status == "IDLE"
        late = make_oracle("/nowhere", **kwargs)
        assert late.create_trial("late").status == "IDLE"
        others_have_looked.set()
        time.sleep(1.5)
        assert here.create_trial("here").status == "IDLE"
        finish(elsewhere, trial)
    assert here.create_trial("here").status == "STOPPED"
    assert [t.attempts for t in here.logical_trials()] == [1, 1]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="it stops processes as on Linux"
)
@pytest.mark.parametrize("caller", ["worker", "heartbeat"])
def test_a_living_worker_is_not_taken_for_dead_after_a_pause_of_the_server(
    running_server, outage_url, monkeypatch, caller
):
    """Nothing fails then: one call takes its time, and all beats are old."""
    here, elsewhere, trial = on_two_machines(
        monkeypatch,
        storage=outage_url,
        heartbeat_interval=1,
        grace_period=3,
        max_trials=2,
    )

    def beat():
        attempt_id = elsewhere._attempts[trial.trial_id].attempt_id
        heartbeats.beat(elsewhere._opened.storage, attempt_id)

    mine = here.create_trial("here")
    time.sleep(2.1)  # so long it has watched, and trusts what it sees
    beat()

    def pause():
        with running_server.paused():
            time.sleep(4)  # longer than the grace period

    if caller == "worker":
        finish(here, mine)
        pausing = threading.Thread(target=pause)
        pausing.start()
        time.sleep(0.2)
    else:
        with here.heartbeat(mine.trial_id):
            pause()
        finish(here, mine)
    assert here.create_trial("here").status == "IDLE"
    stale = heartbeats.stale_trial_ids(
        here._opened.storage, here.study._study_id
    )
    assert len(stale) == 1
    beat()
    time.sleep(1.5)
    beat()
    time.sleep(1)
    assert here.create_trial("here").status == "IDLE"
    if caller == "worker":
        pausing.join()
    # And one that gives no sign any more is noticed.
    time.sleep(3)
    assert here.create_trial("here").trial_id == "0000-retry1"


def test_a_worker_that_an_outage_has_killed_is_noticed_all_the_same(
    running_server, outage_url, monkeypatch
):
    here, _, _ = on_two_machines(
        monkeypatch,
        storage=outage_url,
        heartbeat_interval=1,
        grace_period=3,
        max_trials=1,
    )
    assert here.create_trial("here").status == "IDLE"
    running_server.stop()
    time.sleep(4)
    running_server.start()
    for _ in range(30):
        trial = here.create_trial("here")
        if trial.status != "IDLE":
            break
    assert trial.trial_id == "0000-retry1"


def test_a_database_that_has_answered_is_waited_for_at_a_start(
    running_server, outage_url, capfd
):
    """A worker, or the end of a search, opens it in the midst of an outage."""
    url = outage_url.replace("postgresql+psycopg://", "postgresql://")
    running_server.stop()
    with pytest.raises(StorageError):  # it may not exist
        database.open_storage(url)
    assert capfd.readouterr().err == ""
    database.expect_answer(url)
    running_server.start()
    with away(running_server):
        database.open_storage(url).engine.dispose()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].endswith("answers again")
    # The second time it is known to be there.
    with away(running_server):
        database.open_storage(url).engine.dispose()
    assert len(capfd.readouterr().err.splitlines()) == 2


# An answer that is lost on its way.


class LossyProxy:
    """Passes on what a client and the server say, but loses an answer.

    The server gets the `lost`-th COMMIT and carries it out. The client does
    not hear of it: its connection breaks.
    """

    def __init__(self, port):
        self._port = port
        self.commits = 0
        self.lost = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = []
        self._start(self._accept)

    def close(self):
        # Closing alone would leave `accept` waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                drop = threading.Event()
                self._start(self._pass_on, client, server, True, drop)
                self._start(self._pass_on, server, client, False, drop)

    def _pass_on(self, source, target, is_client, drop):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_client and b"COMMIT" in data:
                    self.commits += 1
                    if self.commits == self.lost:
                        drop.set()
                elif not is_client and drop.is_set():
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


def run_through_proxy(server, url, study_name, lost):
    """A search of all that a worker does; returns its record and commits."""
    proxy = LossyProxy(server.port)
    oracle = make_oracle(
        "/nowhere",
        storage=url.replace(f":{server.port}/", f":{proxy.port}/"),
        study_name=study_name,
        max_trials=3,
        max_retries=0,
    )
    oracle.begin_search()
    proxy.commits, proxy.lost = 0, lost
    trial = oracle.create_trial("x")
    oracle.report(trial.trial_id, 1.0, 0)
    finish(oracle, trial)
    trial = oracle.create_trial("x")
    oracle.report(trial.trial_id, 1.0, 0)
    finish(oracle, trial, status="PRUNED")
    trial = oracle.create_trial("x")
    oracle.put_back(trial.trial_id)
    trial = oracle.create_trial("x")
    finish(oracle, trial, status="FAILED", message="ValueError: no")
    assert oracle.create_trial("x").status == "STOPPED"
    record = [
        (t.number, t.state, t.score, t.attempts, t.hyperparameters, t.reason)
        for t in oracle.logical_trials()
    ]
    states = collections.Counter(t.state for t in oracle.study.trials)
    never_begun = sum(
        attempt_book.was_never_begun(t) for t in oracle.study.trials
    )
    oracle._opened.storage.engine.dispose()
    proxy.close()
    return record, states, never_begun, proxy.commits


@pytest.mark.slow
def test_what_was_written_is_not_written_twice_when_the_answer_is_lost(
    running_server, outage_url, capfd, monkeypatch
):
    monkeypatch.setattr(patient_storage, "_SECONDS_BETWEEN_TRIES", 0.05)
    calm, states, _, commits = run_through_proxy(
        running_server, outage_url, "calm", None
    )
    assert [t[1] for t in calm] == ["completed", "pruned", "failed"]
    assert [t[3] for t in calm] == [1, 1, 2]
    assert commits > 30 and sum(states.values()) == 4
    assert capfd.readouterr().err == ""
    given_back = 0
    for lost in range(1, commits + 1):
        record, found, never_begun, _ = run_through_proxy(
            running_server, outage_url, f"lost{lost}", lost
        )
        assert record == calm, lost
        # Whether a lost claim was this worker's nobody can tell.
        given_back += never_begun
        found[TrialState.FAIL] -= never_begun
        assert found == states, lost
        said = capfd.readouterr().err.splitlines()
        assert len(said) in (0, 2), said  # none if only a read was repeated
    assert given_back == 4  # one for each claim


# A long outage: one line that says "database", everywhere.


def calls_of(oracle, trials, tuner):
    """All that a user or a tuner may call."""

    def end(status, message=None):
        trial = trials.pop()
        finish(oracle, trial, status=status, message=message)

    return {
        "trials": oracle.logical_trials,
        "begin": oracle.begin_search,
        "create": lambda: oracle.create_trial("x"),
        "study": lambda: oracle.study.trials,
        "attrs": lambda: oracle.study.user_attrs,
        "report": lambda: oracle.report(trials[0].trial_id, 1.0, 1),
        "put back": lambda: oracle.put_back(trials.pop().trial_id),
        "completed": lambda: end("COMPLETED"),
        "pruned": lambda: end("PRUNED"),
        "failed": lambda: end("FAILED", "it broke"),
        "space": lambda: oracle.update_space(larger_space(oracle)),
        "get": lambda: oracle.get_trial("0099"),
        "best": oracle.get_best_trials,
        "remaining": oracle.remaining_trials,
        "search": lambda: tuner.search(1),
        "models": tuner.get_best_models,
        "values": tuner.get_best_hyperparameters,
        "summary": tuner.results_summary,
    }


def larger_space(oracle):
    space = oracle.get_space()
    space.Int("more", 1, 3)
    return space


def test_a_long_outage_is_an_error_of_the_database_everywhere(
    running_server, outage_url, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(patient_storage, "SECONDS_TO_WAIT", 0.3)
    monkeypatch.setattr(patient_storage, "_SECONDS_BETWEEN_TRIES", 0.2)
    oracle = make_oracle(tmp_path, storage=outage_url, max_trials=20)
    tuner = OptunaTuner(
        lambda hp: None, oracle=oracle, directory=tmp_path, project_name="t"
    )
    trials = [oracle.create_trial("x") for _ in range(8)]
    for trial in trials:
        oracle.report(trial.trial_id, 1.0, 0)
    running_server.stop()
    for name, call in calls_of(oracle, trials, tuner).items():
        with pytest.raises(StorageError) as raised:
            call()
        check_error(raised.value)
        assert "database" in str(raised.value), name
        assert "0.3 s" in str(raised.value), name
    fresh = OptunaOracle("val_loss", storage=outage_url)
    with pytest.raises(StorageError) as raised:
        fresh.study  # noqa: B018
    check_error(raised.value)
    assert "hunter2marker" not in capfd.readouterr().err


def check_that_one_was_put_back(output, url):
    rows = rows_of(output)
    assert {row["state"] for row in rows} == {"completed"}
    assert [row["attempts"] for row in rows] == ["2", "1", "1", "1"]
    storage = database.open_storage(url)
    study = optuna.load_study(study_name=output.name, storage=storage)
    assert [e.losses for e in attempt_book.read(study.trials)] == [0] * 4
    storage.remove_session()
    storage.engine.dispose()


def test_a_database_that_stays_away_ends_the_command_with_its_own_code(
    tmp_path, running_server, outage_url, monkeypatch, capfd
):
    monkeypatch.setattr(patient_storage, "SECONDS_TO_WAIT", 2)
    output = tmp_path / "out"
    output.mkdir()
    (output / ".hold").touch()

    def stop():
        while not list(output.glob("trials/*/pid")):
            time.sleep(0.05)
        running_server.stop()
        (output / ".hold").unlink()

    stopper = threading.Thread(target=stop)
    stopper.start()
    more = [f"--storage={outage_url}", "--max-retries=0"]
    arguments = command(output, *more, workers=1)[3:]
    assert cli.main(arguments) == 4
    stopper.join()
    *_, begin, last = capfd.readouterr().err.splitlines()
    assert "trying again for up to 2 s" in begin
    assert last.startswith("keras-adamax-tune: error: The database ")
    assert "It has not answered for 2 s" in last
    # The same command goes on, and what the outage ended is no loss.
    running_server.start()
    assert cli.main(arguments) == 0
    check_that_one_was_put_back(output, outage_url)
    assert "hunter2marker" not in "".join(capfd.readouterr())


def test_a_signal_ends_the_wait_for_the_database(
    tmp_path, running_server, outage_url
):
    output = tmp_path / "out"
    more = [f"--storage={outage_url}", "--max-retries=0"]
    with Search(output, *more, workers=1) as search:
        search.wait_for_workers(1)
        running_server.stop()
        search.release()
        search.wait_until(lambda: "does not answer" in search.printed())
        search.process.send_signal(signal.SIGTERM)
        assert search.finish(60) == 130, search.printed()
        assert "Traceback" not in search.printed()
    running_server.start()
    assert cli.main(command(output, *more, workers=1)[3:]) == 0
    check_that_one_was_put_back(output, outage_url)


# Other storages.


def test_a_locked_sqlite_file_is_waited_for_and_that_is_said(
    tmp_path, capfd, monkeypatch
):
    oracle = make_oracle(tmp_path, max_trials=1)
    oracle.begin_search()
    oracle._opened.storage.engine.dispose()
    # A connection gives up after so many seconds, and the search does not.
    short = f"sqlite:///{tmp_path}/trials/study.db?timeout=1"
    storage = optuna.storages.RDBStorage(short)
    oracle = make_oracle(tmp_path, max_trials=1, storage=storage)
    oracle.begin_search()
    busy = sqlite3.connect(
        tmp_path / "trials" / "study.db", check_same_thread=False
    )
    busy.execute("BEGIN IMMEDIATE")
    threading.Timer(4.0, busy.rollback).start()
    run(oracle)
    assert [t.attempts for t in oracle.logical_trials()] == [1]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert "does not answer (database is locked)" in lines[0]
    busy.close()
    storage.remove_session()
    storage.engine.dispose()


def test_a_journal_that_cannot_be_written_is_an_error_of_the_storage(tmp_path):
    file = tmp_path / "log"
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(file))
    )
    oracle = make_oracle(tmp_path, storage=storage)
    trial = oracle.create_trial("x")
    os.rename(tmp_path / "log", tmp_path / "elsewhere")
    os.mkdir(tmp_path / "log")
    with pytest.raises(StorageError, match="storage of the search failed"):
        oracle.report(trial.trial_id, 1.0, 0)
