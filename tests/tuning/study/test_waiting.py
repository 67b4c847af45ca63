"""What a worker says when all that is left runs elsewhere."""

import time

import keras
import optuna
import pytest

from keras_adamax_tuning import StorageError
from keras_adamax_tuning.study import owners, waiting
from tests.tuning.oracles import finish, make_oracle, run
from tests.tuning.study.test_optuna_oracle import make_stale

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="the record does not depend on the backend",
)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(waiting, "_SECONDS_OF_SILENCE", 0.4)


def make_journal(folder):
    return optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "log"))
    )


def begin_elsewhere(folder, monkeypatch, **kwargs):
    """A trial that another machine runs, or has left behind."""
    oracle = make_oracle(folder, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(owners, "_machine", lambda: "elsewhere")
        patch.setattr(owners.socket, "gethostname", lambda: "node7")
        return oracle, oracle.create_trial("elsewhere")


def look(oracle, seconds):
    """Asks for trials until there is one, or the time is over."""
    end = time.monotonic() + seconds
    while (trial := oracle.create_trial("here")).status == "IDLE":
        if time.monotonic() > end:
            break
    return trial


def test_a_trial_of_another_machine_is_waited_for_in_words(
    tmp_path, monkeypatch, postgresql_url, capfd
):
    kwargs = dict(
        storage=postgresql_url,
        max_trials=1,
        heartbeat_interval=1,
        grace_period=3,
    )
    begin_elsewhere(tmp_path, monkeypatch, **kwargs)
    here = make_oracle(tmp_path, **kwargs)
    assert look(here, 20).trial_id == "0000-retry1"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("waiting for trial 0, which runs in process ")
    assert "of node7" in line
    assert "is tried again after 3 s without a sign of life" in line


def test_a_process_of_this_machine_is_waited_for_in_words(tmp_path, capfd):
    one, two = (make_oracle(tmp_path, max_trials=1) for _ in "12")
    trial = one.create_trial("1")
    assert look(two, 1.5).status == "IDLE"
    (line,) = capfd.readouterr().err.splitlines()
    assert "of this machine; it is tried again at once if that" in line
    finish(one, trial)
    assert look(two, 0).status == "STOPPED"


def test_an_attempt_that_nobody_owns_is_waited_for_in_words(tmp_path, capfd):
    kwargs = dict(max_trials=1, heartbeat_interval=1, grace_period=3)
    oracle = make_oracle(tmp_path, **kwargs)
    oracle.begin_search()
    oracle.study.add_trial(
        optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING)
    )
    assert oracle._attempts.claims.take(oracle._opened.book()[0].last)
    assert look(oracle, 20).trial_id == "0000-retry1"
    (line,) = capfd.readouterr().err.splitlines()
    assert "which a process has taken without a word since" in line
    # Nothing had begun, so nothing is lost.
    assert oracle._opened.book()[0].losses == 0
    assert oracle.logical_trials()[0].attempts == 1


def test_a_storage_without_signs_of_life_ends_the_wait_with_an_error(
    tmp_path, monkeypatch, capfd
):
    kwargs = dict(max_trials=1, heartbeat_interval=1, grace_period=2)
    begin_elsewhere(
        tmp_path, monkeypatch, storage=make_journal(tmp_path), **kwargs
    )
    here = make_oracle(tmp_path, storage=make_journal(tmp_path), **kwargs)
    with pytest.raises(StorageError, match="has reported nothing for 2 s"):
        look(here, 20)
    (line,) = capfd.readouterr().err.splitlines()
    assert "the wait ends with an error after 2 s without a report" in line
    # The way out that the message names.
    here.study.tell(0, state=optuna.trial.TrialState.FAIL)
    run(here)
    (logical,) = here.logical_trials()
    assert (logical.state, logical.attempts) == ("completed", 2)


def test_a_report_from_elsewhere_prolongs_the_wait(tmp_path, monkeypatch):
    kwargs = dict(max_trials=1, heartbeat_interval=1, grace_period=2)
    elsewhere, trial = begin_elsewhere(
        tmp_path, monkeypatch, storage=make_journal(tmp_path), **kwargs
    )
    here = make_oracle(tmp_path, storage=make_journal(tmp_path), **kwargs)
    for step in range(4):
        assert look(here, 1).status == "IDLE"
        elsewhere.report(trial.trial_id, 1.0, step)
    finish(elsewhere, trial)
    assert look(here, 0).status == "STOPPED"


def test_a_sqlite_file_that_two_machines_use_is_warned_of_once(
    tmp_path, monkeypatch, capfd
):
    elsewhere, trial = begin_elsewhere(tmp_path, monkeypatch)
    here = make_oracle(tmp_path)
    for _ in range(2):
        finish(here, here.create_trial("here"))
    (line,) = capfd.readouterr().err.splitlines()
    assert "warning: another machine or container (node7)" in line
    assert "study.db" in line and "use PostgreSQL" in line
    # One that is off long since is no reason to warn.
    make_stale(elsewhere, trial)
    run(make_oracle(tmp_path))
    assert "warning" not in capfd.readouterr().err


def test_databases_of_many_machines_are_not_warned_of(
    tmp_path, monkeypatch, postgresql_url, capfd
):
    begin_elsewhere(tmp_path, monkeypatch, storage=postgresql_url)
    here = make_oracle(tmp_path, storage=postgresql_url)
    finish(here, here.create_trial("here"))
    assert capfd.readouterr().err == ""
