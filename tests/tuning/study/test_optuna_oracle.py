import json
import os
import subprocess
import sys
import time

import keras
import keras_tuner
import optuna
import pytest
from optuna.trial import TrialState

from keras_adamax._processes import start_time
from keras_adamax_tuning import (
    ConsecutiveFailuresError,
    OptunaOracle,
    SearchMismatchError,
    StorageError,
)
from keras_adamax_tuning.study import (
    attempt_book,
    heartbeats,
    owners,
    patient_storage,
)
from keras_adamax_tuning.study.running_attempts import AttemptLost
from keras_adamax_tuning.study.trials import best_of
from tests.tuning.oracles import (
    finish,
    forget,
    make_finite_space,
    make_large_finite_space,
    make_oracle,
    make_space,
    proposals,
    run,
    score_of,
)


def make_stale(oracle, trial) -> None:
    """As if the worker had not given a sign of life for an hour."""
    attempt_id = oracle._attempts[trial.trial_id].attempt_id
    import sqlalchemy

    with oracle._opened.storage.engine.begin() as connection:
        changed = connection.execute(
            sqlalchemy.text(
                "UPDATE trial_heartbeats SET heartbeat = "
                "'2020-01-01 00:00:00' WHERE trial_id = :trial_id"
            ),
            {"trial_id": attempt_id},
        )
    assert changed.rowcount == 1


# A whole search.


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes"])
def test_every_sampler_runs_max_trials_and_knows_its_best(tmp_path, sampler):
    if sampler == "gp":
        pytest.importorskip("torch", reason="the GP sampler needs torch")
        pytest.importorskip("scipy", reason="the GP sampler needs scipy")
    if sampler == "cmaes":
        pytest.importorskip("cmaes", reason="the CMA-ES sampler needs cmaes")
    # GP begins to model after 10.
    number = 12 if sampler == "gp" else 7
    oracle = make_oracle(tmp_path, sampler=sampler, max_trials=number)
    run(oracle)
    trials = oracle.logical_trials()
    assert [t.number for t in trials] == list(range(number))
    assert {t.state for t in trials} == {"completed"}
    for t in trials:
        assert t.score == score_of(t.hyperparameters)
        assert ("units" in t.hyperparameters) == (
            t.hyperparameters["kind"] == "a"
        )
        assert t.hyperparameters["batch"] == 32
    best = oracle.get_best_trials(2)
    assert [b.score for b in best] == sorted(t.score for t in trials)[:2]
    assert oracle.remaining_trials() == 0
    # Another process reads the same.
    assert make_oracle(tmp_path).logical_trials() == trials


def test_tpe_learns_from_the_record(tmp_path):
    kwargs = dict(max_trials=40, storage=optuna.storages.InMemoryStorage())
    learned = make_oracle(tmp_path, sampler="tpe", study_name="a", **kwargs)
    blind = make_oracle(tmp_path, sampler="random", study_name="b", **kwargs)
    run(learned)
    run(blind)

    def tail(oracle):
        scores = sorted(t.score for t in oracle.logical_trials()[20:])
        return scores[len(scores) // 2]

    assert tail(learned) < tail(blind)


def test_the_grid_is_complete_whoever_runs_it(tmp_path):
    kwargs = dict(
        sampler="grid", max_trials=99, hyperparameters=make_finite_space()
    )
    one, two = make_oracle(tmp_path, **kwargs), make_oracle(tmp_path, **kwargs)
    running = [one.create_trial("1"), two.create_trial("2")]
    finish(one, running[0])
    finish(two, running[1])
    run(one, limit=3)
    run(two)
    found = [json.dumps(p, sort_keys=True) for p in proposals(one)]
    assert len(found) == len(set(found)) == (3 + 1) * 2
    assert one.create_trial("1").status == "STOPPED"


def test_a_grid_needs_finite_values_before_trial_1(tmp_path):
    oracle = make_oracle(tmp_path, sampler="grid")
    with pytest.raises(ValueError, match="'rate', any number"):
        oracle.create_trial("worker")
    assert oracle.study.trials == []


def test_an_enqueued_trial_is_a_logical_trial(tmp_path):
    oracle = make_oracle(tmp_path)
    oracle.study.enqueue_trial({"rate": 0.5, "kind": "b"})
    run(oracle)
    assert len(oracle.logical_trials()) == 5
    assert proposals(oracle)[0] == {"rate": 0.5, "kind": "b", "batch": 32}


def test_a_trial_that_the_user_added_is_never_the_best(tmp_path, capsys):
    oracle = make_oracle(tmp_path)
    oracle.study.add_trial(optuna.trial.create_trial(value=-9.0))
    oracle.verbose = 1
    run(oracle)
    assert "Trial 4: score " in capsys.readouterr().out
    trials = oracle.logical_trials()
    assert [t.state for t in trials] == ["completed"] * 5
    assert [t.score is None for t in trials] == [True] + 4 * [False]
    best = [t.trial_id for t in oracle.get_best_trials(5)]
    assert len(best) == 4 and "0000" not in best
    assert best_of(trials, "min").trial_id == best[0]


def test_a_hyperparameter_found_while_building_is_searched_from_then_on(
    tmp_path,
):
    oracle = make_oracle(tmp_path, max_trials=3)
    trial = oracle.create_trial("worker")
    assert trial.hyperparameters.Int("late", 0, 10**6, default=5) == 5
    finish(oracle, trial)
    resumed = make_oracle(tmp_path, max_trials=3)
    run(resumed)
    late = [p["late"] for p in proposals(resumed)]
    assert late[0] == 5 and late[1] != 5 and late[2] not in (5, late[1])


def test_a_retry_is_older_than_a_hyperparameter_that_was_found_since(tmp_path):
    def build(trial):
        hp = trial.hyperparameters
        if hp.Boolean("decay", default=True):
            with hp.conditional_scope("decay", [True]):
                return hp.Float("weight_decay", 0.0, 0.1, default=0.05)

    space = keras_tuner.HyperParameters()
    space.Fixed("decay", True)
    one, two = (
        make_oracle(tmp_path, hyperparameters=space.copy()) for _ in range(2)
    )
    old, other = one.create_trial("one"), two.create_trial("two")
    # Both build; neither knew of the weight decay when it was proposed to.
    assert build(old) == build(other) == 0.05
    finish(two, other)
    forget(one, old)
    retry = two.create_trial("two")
    assert retry.trial_id == "0000-retry1"
    assert build(retry) == 0.05
    finish(two, retry)
    assert proposals(two)[0] == {"decay": True, "weight_decay": 0.05}
    # From then on it is searched.
    assert build(two.create_trial("two")) not in (0.0, 0.05)


# Seeds.


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_seeds_decide_and_0_is_one(tmp_path, sampler):
    found = {}
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        oracle = make_oracle(tmp_path / name, seed=seed, sampler=sampler)
        run(oracle)
        found[name] = proposals(oracle)
    assert found["a"] == found["b"] != found["c"]


def test_without_a_seed_searches_differ(tmp_path):
    found = []
    for name in ("a", "b"):
        oracle = make_oracle(tmp_path / name, seed=None, max_trials=2)
        run(oracle)
        found.append(proposals(oracle))
    assert found[0] != found[1]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_several_workers_propose_the_set_that_one_does(tmp_path, sampler):
    kwargs = dict(sampler=sampler, max_trials=6)
    if sampler == "grid":
        kwargs["hyperparameters"] = make_finite_space()
    alone = make_oracle(tmp_path / "alone", **kwargs)
    run(alone)
    workers = [make_oracle(tmp_path / "many", **kwargs) for _ in range(3)]
    running = [(w, w.create_trial("x")) for w in workers]
    for worker, trial in reversed(running):
        finish(worker, trial)
    run(workers[1], limit=1)
    run(workers[2])
    assert proposals(workers[0]) == proposals(alone)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "gp", "grid"])
@pytest.mark.parametrize("pruner", [None, "hyperband"])
def test_a_killed_and_resumed_search_is_as_an_undisturbed_one(
    tmp_path, sampler, pruner
):
    if sampler == "cmaes":
        pytest.importorskip("cmaes", reason="the CMA-ES sampler needs cmaes")
    if sampler == "gp":
        pytest.importorskip("torch", reason="the GP sampler needs torch")
        pytest.importorskip("scipy", reason="the GP sampler needs scipy")
    # In memory, which is faster; `test_kills` does it with a database.
    kwargs = dict(
        sampler=sampler,
        max_trials=16,
        pruner=pruner,
        storage=optuna.storages.InMemoryStorage(),
    )
    if sampler == "grid":
        kwargs["hyperparameters"] = make_large_finite_space()

    def work(oracle, die_in=None):
        while True:
            trial = oracle.create_trial("x")
            if trial.status == "STOPPED":
                return False
            number = oracle._attempts[trial.trial_id].number
            status = "COMPLETED"
            for step in range(4):
                value = score_of(trial.hyperparameters.values) / (step + 1)
                if oracle.report(trial.trial_id, value, step):
                    status = "PRUNED"
                    break
                if number == die_in:
                    forget(oracle, trial)
                    return True
            finish(oracle, trial, status=status)

    calm = make_oracle(tmp_path, **kwargs)
    work(calm)
    kwargs["storage"] = optuna.storages.InMemoryStorage()
    for number in (0, 3, 7, 13):
        assert work(make_oracle(tmp_path, **kwargs), die_in=number)
    killed = make_oracle(tmp_path, **kwargs)
    work(killed)
    assert proposals(killed) == proposals(calm)
    assert [(t.state, t.score) for t in killed.logical_trials()] == [
        (t.state, t.score) for t in calm.logical_trials()
    ]
    assert [t.attempts for t in killed.logical_trials()] == [
        2 if n in (0, 3, 7, 13) else 1 for n in range(16)
    ]
    if pruner:
        states = {t.state for t in calm.logical_trials()}
        assert states == {"completed", "pruned"}


# Lost workers.


@pytest.mark.slow
def test_a_worker_elsewhere_is_judged_by_its_beats(
    tmp_path, monkeypatch, postgresql_url
):
    """Of its process this machine knows nothing."""
    kwargs = dict(
        storage=postgresql_url,
        heartbeat_interval=1,
        grace_period=3,
        max_trials=2,
    )
    here = make_oracle(tmp_path, **kwargs)
    elsewhere = make_oracle(tmp_path, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(owners, "_machine", lambda: "elsewhere")
        trial = elsewhere.create_trial("elsewhere")
    # By its process it would be taken for dead.
    owners._running_here.clear()
    with elsewhere.heartbeat(trial.trial_id):
        time.sleep(4)
        other = here.create_trial("here")
        assert other.trial_id == "0001"
        finish(here, other)
        assert here.create_trial("here").status == "IDLE"
    time.sleep(4.5)
    assert here.create_trial("here").trial_id == "0000-retry1"


@pytest.mark.slow
def test_after_a_suspend_a_living_worker_is_not_taken_for_dead(
    tmp_path, monkeypatch
):
    """The clock that runs on says so; all signs of life are old then."""
    kwargs = dict(heartbeat_interval=1, grace_period=3, max_trials=1)
    here = make_oracle(tmp_path, **kwargs)
    other = make_oracle(tmp_path, **kwargs)
    trial = other.create_trial("other")
    assert here.create_trial("here").status == "IDLE"
    time.sleep(2.1)  # so long it has watched, and trusts what it sees
    real = patient_storage._clocks
    monkeypatch.setattr(
        patient_storage,
        "_clocks",
        lambda: (real()[0] + 1e9, real()[1]),
    )
    make_stale(other, trial)
    assert here.create_trial("here").status == "IDLE"
    heartbeats.beat(
        other._opened.storage, other._attempts[trial.trial_id].attempt_id
    )
    time.sleep(2.1)
    assert here.create_trial("here").status == "IDLE"
    make_stale(other, trial)
    assert here.create_trial("here").trial_id == "0000-retry1"


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="nobody says when a process began"
)
def test_a_process_that_lives_here_is_not_judged_by_its_beats(
    tmp_path, monkeypatch
):
    """Its beats may be late, if the processor or a lock is taken."""
    other = make_oracle(tmp_path, heartbeat_interval=1, grace_period=3)
    here = make_oracle(
        tmp_path, heartbeat_interval=1, grace_period=3, max_trials=1
    )
    with subprocess.Popen(["sleep", "60"]) as process:
        claim = owners.claim()
        claim |= {"pid": process.pid, "started": start_time(process.pid)}
        with monkeypatch.context() as patch:
            patch.setattr(owners, "claim", lambda: claim)
            trial = other.create_trial("other")
        assert here.create_trial("here").status == "IDLE"
        time.sleep(2.1)  # so long it has watched, and trusts what it sees
        make_stale(other, trial)
        assert here.create_trial("here").status == "IDLE"
        process.kill()
    assert here.create_trial("here").trial_id == "0000-retry1"


def test_a_dead_workers_trial_keeps_number_values_and_seed(tmp_path):
    first = make_oracle(tmp_path)
    trial = first.create_trial("x")
    seed = first.seed_of(trial.trial_id)
    forget(first, trial)
    second = make_oracle(tmp_path, seed=99)
    again = second.create_trial("x")
    assert trial.trial_id == "0000" and again.trial_id == "0000-retry1"
    assert again.hyperparameters.values == trial.hyperparameters.values
    assert second.seed_of(again.trial_id) == seed
    (logical,) = second.logical_trials()
    assert (logical.state, logical.attempts) == ("running", 2)


def gone(*args):
    raise StorageError("gone")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["killed", "interrupted", "outage", "interrupted in an outage"]
)
def test_a_worker_that_died_in_the_midst_of_proposing_loses_nothing(
    tmp_path, how
):
    calm = make_oracle(tmp_path / "calm", max_trials=2)
    run(calm)
    oracle = make_oracle(tmp_path / "killed", max_trials=2)

    class Killed(BaseException):
        pass

    error = StorageError if how == "outage" else Killed
    real, calls = oracle.study._storage.set_trial_param, []

    def killed_at_the_second(*args):
        if calls:
            if how == "interrupted in an outage":
                oracle._opened.cached.set_trial_user_attr = gone
            raise error
        calls.append(args)
        real(*args)

    oracle._opened.cached.set_trial_param = killed_at_the_second
    if how == "killed":  # then nothing is cleared up
        retries = oracle._attempts.retries
        retries.put_back = lambda *args: owners.release(args[-1])
    with pytest.raises((Killed, StorageError)):
        oracle.create_trial("x")
    resumed = make_oracle(tmp_path / "killed", max_trials=2)
    run(resumed)
    assert proposals(resumed) == proposals(calm)
    assert resumed.logical_trials()[0].attempts == 2
    assert resumed._opened.book()[0].losses == (1 if how == "killed" else 0)


@pytest.mark.slow
def test_a_worker_that_died_before_it_said_who_it_is_is_waited_for(tmp_path):
    oracle = make_oracle(tmp_path, heartbeat_interval=1, grace_period=2)
    oracle.begin_search()
    book = oracle._opened.book()
    oracle._opened.cached.create_new_trial(
        oracle.study._study_id,
        optuna.trial.create_trial(state=TrialState.WAITING),
    )
    (entry,) = oracle._opened.book()
    assert book == [] and oracle._attempts.claims.take(entry.last)
    # Nobody knows whether it lives; going on would change what TPE sees.
    assert oracle.create_trial("x").status == "IDLE"
    time.sleep(3.1)
    assert oracle.create_trial("x").trial_id == "0000-retry1"


@pytest.mark.parametrize("max_retries", [2, None])
def test_retries_end_and_the_trial_has_failed(tmp_path, max_retries):
    given = {} if max_retries is None else {"max_retries": max_retries}
    oracle = make_oracle(tmp_path, max_trials=2, **given)
    max_retries = 3 if max_retries is None else max_retries
    for attempt in range(1 + max_retries):
        trial = oracle.create_trial("x")
        assert oracle._attempts[trial.trial_id].number == 0, attempt
        forget(oracle, trial)
    run(oracle)
    failed, completed = oracle.logical_trials()
    assert failed.state == "failed" and failed.attempts == 1 + max_retries
    assert f"lost {1 + max_retries} times" in failed.reason
    assert f"max_retries={max_retries}" in failed.reason
    assert failed.score is None and completed.state == "completed"


def test_putting_back_is_no_loss(tmp_path):
    oracle = make_oracle(tmp_path, max_trials=1, max_retries=0)
    values = []
    for _ in range(3):
        trial = oracle.create_trial("x")
        values.append(trial.hyperparameters.values)
        oracle.put_back(trial.trial_id)
    run(oracle)
    (logical,) = oracle.logical_trials()
    assert logical.state == "completed" and logical.attempts == 4
    assert values[0] == values[1] == values[2] == logical.hyperparameters


def test_a_trial_whose_end_is_interrupted_is_put_back(tmp_path, monkeypatch):
    oracle = make_oracle(tmp_path, max_trials=1, max_retries=0)
    trial = oracle.create_trial("x")

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(oracle._attempts, "publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finish(oracle, trial)
    assert oracle.create_trial("x").trial_id == "0000-retry1"


def test_an_attempt_is_put_back_later_without_a_loss(tmp_path):
    def make():
        return make_oracle(tmp_path, max_trials=1, max_retries=1)

    oracle = make()
    for name in ("0000", "0000-retry1"):
        trial = oracle.create_trial("x")
        assert trial.trial_id == name
        oracle.put_back_later(trial.trial_id)
        oracle = make()  # another worker
    # The word of another attempt is none, nor is a word that is not there.
    forget(oracle, oracle.create_trial("x"))
    folders = tmp_path / "trials"
    (folders / "trial_0000-retry1").rename(folders / "trial_0000-retry2")
    trial = oracle.create_trial("x")
    assert trial.trial_id == "0000-retry3"
    assert [entry.losses for entry in oracle._opened.book()] == [1]


def test_no_word_is_left_in_a_folder_that_is_lost(tmp_path):
    oracle = make_oracle(tmp_path, max_trials=1)
    trial = oracle.create_trial("x")
    folder = tmp_path / "trials"
    folder.rename(tmp_path / "moved")
    oracle.put_back_later(trial.trial_id)
    assert not folder.exists()
    (tmp_path / "moved").rename(folder)
    assert oracle.create_trial("x").trial_id == "0000-retry1"
    assert [entry.losses for entry in oracle._opened.book()] == [1]


def test_a_slow_but_living_worker_cannot_report_twice(tmp_path):
    slow = make_oracle(tmp_path, max_trials=1)
    fast = make_oracle(tmp_path, max_trials=1)
    late = slow.create_trial("slow")
    make_stale(slow, late)
    retry = fast.create_trial("fast")
    assert retry.trial_id == "0000-retry1"
    with pytest.raises(AttemptLost):
        slow.report(late.trial_id, 1.0, 0)
    finish(slow, late, score=-100.0)  # too late, and without effect
    finish(fast, retry, score=1.0)
    (logical,) = fast.logical_trials()
    assert (logical.score, logical.attempts) == (1.0, 2)
    assert logical.trial_id == "0000-retry1"
    assert [t.state for t in fast.study.trials] == [
        TrialState.FAIL,
        TrialState.COMPLETE,
    ]


def test_the_slow_one_wins_if_it_is_first(tmp_path):
    slow = make_oracle(tmp_path, max_trials=1)
    late = slow.create_trial("slow")
    make_stale(slow, late)
    finish(slow, late, score=2.0)  # before anyone has looked
    other = make_oracle(tmp_path, max_trials=1)
    assert other.create_trial("x").status == "STOPPED"
    assert other.logical_trials()[0].score == 2.0


def test_a_living_worker_is_left_in_peace(tmp_path):
    one, two = make_oracle(tmp_path), make_oracle(tmp_path)
    first = one.create_trial("1")
    second = two.create_trial("2")
    assert [first.trial_id, second.trial_id] == ["0000", "0001"]
    finish(one, first)
    finish(two, second)
    assert [t.attempts for t in one.logical_trials()] == [1, 1]


def test_two_that_replace_the_same_attempt_do_not_double_it(tmp_path):
    one, two = make_oracle(tmp_path), make_oracle(tmp_path)
    trial = one.create_trial("1")
    forget(one, trial)
    two.begin_search()
    assert two._attempts.retries.replace_lost(
        two._opened.read(), []
    )  # dead, and not yet replaced
    (entry,) = two._opened.book()
    for _ in range(2):  # two workers at the same moment
        two._attempts.retries.add(entry)
    run(two)
    assert [t.number for t in two.logical_trials()] == [0, 1, 2, 3, 4]
    completed = [t for t in two.study.trials if t.state == TrialState.COMPLETE]
    assert len(completed) == 5
    waiting = [t for t in two.study.trials if t.state == TrialState.WAITING]
    assert waiting == []


def test_a_surplus_trial_waits_for_a_larger_search(tmp_path):
    oracle = make_oracle(tmp_path, max_trials=2)
    run(oracle)
    # As when two workers make the last one at the same moment.
    oracle.study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
    assert oracle.create_trial("x").status == "STOPPED"
    assert len(oracle.logical_trials()) == 2
    larger = make_oracle(tmp_path, max_trials=4)
    run(larger)
    assert [t.number for t in larger.logical_trials()] == [0, 1, 2, 3]


def test_a_larger_search_goes_on_where_the_smaller_ended(tmp_path):
    kwargs = dict(sampler="tpe", storage=optuna.storages.InMemoryStorage())
    whole = make_oracle(tmp_path, max_trials=14, study_name="w", **kwargs)
    run(whole)
    for max_trials in (4, 14):
        oracle = make_oracle(tmp_path, max_trials=max_trials, **kwargs)
        run(oracle)
    assert proposals(oracle) == proposals(whole)


def test_whoever_is_done_waits_for_those_who_may_die(tmp_path):
    one, two = (make_oracle(tmp_path, max_trials=1) for _ in "12")
    trial = one.create_trial("1")
    assert two.create_trial("2").status == "IDLE"
    forget(one, trial)
    assert two.create_trial("2").trial_id == "0000-retry1"


WORKER = """
import sys
sys.path[:0] = {path!r}
from tests.tuning.oracles import make_oracle, run
oracle = make_oracle({folder!r}, max_trials=12, storage={storage!r})
print("ready", flush=True)
sys.stdin.readline()
print(len(run(oracle)))
"""


only_on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="no model is trained: JAX, which starts fastest, stands for all",
)


def run_two_processes(folder, storage):
    script = WORKER.format(
        path=[p for p in sys.path if p], folder=str(folder), storage=storage
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    for worker in workers:  # the tables are made by both at once
        worker.stdin.write("go\n")
        worker.stdin.flush()
    done = []
    for worker in workers:
        out, errors = worker.communicate(timeout=400)
        assert worker.returncode == 0, errors
        done.append(int(out))
    oracle = make_oracle(folder, max_trials=12, storage=storage)
    trials = oracle.logical_trials()
    assert [t.number for t in trials] == list(range(12))
    assert {t.state for t in trials} == {"completed"}
    assert sum(done) == 12
    finished = [t for t in oracle.study.trials if t.state.is_finished()]
    assert len(finished) == 12
    alone = make_oracle(folder / "alone", max_trials=12)
    run(alone)
    assert proposals(oracle) == proposals(alone)


@only_on_jax
def test_two_processes_on_sqlite_make_exactly_max_trials(tmp_path):
    run_two_processes(tmp_path, None)


@only_on_jax
def test_two_processes_on_postgresql_make_exactly_max_trials(
    tmp_path, postgresql_url
):
    run_two_processes(tmp_path, postgresql_url)


# Failures.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_objective_that_is_not_finite_is_a_failure(tmp_path, value):
    oracle = make_oracle(tmp_path, max_trials=2)
    trial = oracle.create_trial("x")
    finish(oracle, trial, score=value)
    (failed,) = oracle.logical_trials()
    assert failed.state == "failed" and failed.score is None
    assert failed.reason == f"The objective 'score' is {value}."
    # No sampler sees a value of it.
    assert oracle.study.trials[0].values is None
    run(oracle)
    assert [t.state for t in oracle.logical_trials()] == [
        "failed",
        "completed",
    ]
    assert oracle.get_best_trials(2)[0].trial_id == "0001"
    assert len(oracle.get_best_trials(2)) == 1


def test_an_exception_is_a_failure_with_its_traceback(tmp_path):
    oracle = make_oracle(tmp_path, max_trials=1)
    trial = oracle.create_trial("x")
    finish(oracle, trial, status="INVALID", message="Traceback ...\nE: no\n")
    (failed,) = oracle.logical_trials()
    assert (failed.state, failed.reason) == ("failed", "E: no")
    assert failed.traceback == "Traceback ...\nE: no\n"
    assert failed.attempts == 1  # its own fault: not tried again
    assert oracle.create_trial("x").status == "STOPPED"


def test_failures_in_a_row_end_the_search(tmp_path):
    oracle = make_oracle(tmp_path, max_trials=9, max_consecutive_failures=2)

    def fail(message):
        trial = oracle.create_trial("x")
        finish(oracle, trial, status="INVALID", message=message)

    fail("E: first")
    run(oracle, limit=1)
    fail("E: second")
    with pytest.raises(ConsecutiveFailuresError) as raised:
        fail("E: third")
    assert str(raised.value).startswith("2 trials failed one after another")
    assert "trial 3: E: third" in str(raised.value)
    assert "\n" not in str(raised.value)
    # Once it is mended, what was before does not count.
    resumed = make_oracle(tmp_path, max_trials=9, max_consecutive_failures=2)
    trial = resumed.create_trial("x")
    finish(resumed, trial, status="INVALID", message="E: fourth")
    run(resumed)
    assert len(resumed.logical_trials()) == 9


# Another search.


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"objective": keras_tuner.Objective("loss", "min")}, "score (min)"),
        ({"objective": keras_tuner.Objective("score", "max")}, "minimized"),
        ({"hyperparameters": make_finite_space()}, "'kind'|no hyperparam"),
    ],
)
def test_a_resume_of_another_search_is_an_error(tmp_path, changed, said):
    import re

    run(make_oracle(tmp_path), limit=1)
    other = make_oracle(tmp_path, **changed)
    with pytest.raises(SearchMismatchError, match="another") as raised:
        other.create_trial("x")
    if "|" not in said:
        assert re.search(re.escape(said), str(raised.value))
    assert "\n" not in str(raised.value)
    assert len(make_oracle(tmp_path).study.trials) == 1


def change(kind):
    hp = keras_tuner.HyperParameters()
    hp.Float("rate", 1e-4, 2.0 if kind == "range" else 1.0, sampling="log")
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["a"]):
        hp.Int("units", 1, 9)
    if kind != "fixed is gone":
        hp.Fixed("batch", 33 if kind == "fixed" else 32)
    if kind == "new":
        hp.Boolean("new")
    return hp


@pytest.mark.parametrize(
    "kind, said",
    [
        ("range", "'rate' has {'max_value': 1.0}, not {'max_value': 2.0}"),
        ("fixed", "'batch' has {'value': 32}, not {'value': 33}"),
        ("new", "it has no hyperparameter 'new'"),
        ("fixed is gone", "'batch' that is missing now"),
    ],
)
def test_a_resume_with_another_space_says_what_differs(tmp_path, kind, said):
    run(make_oracle(tmp_path), limit=1)
    with pytest.raises(SearchMismatchError) as raised:
        make_oracle(tmp_path, hyperparameters=change(kind)).begin_search()
    assert said in str(raised.value)
    assert "output folder or `study_name`" in str(raised.value)
    make_oracle(tmp_path, hyperparameters=make_space()).begin_search()


# Pruning.


@pytest.mark.parametrize(
    "name, kind",
    [
        ("median", optuna.pruners.MedianPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        (None, optuna.pruners.NopPruner),
    ],
)
def test_pruners_by_name(tmp_path, name, kind):
    oracle = make_oracle(tmp_path, pruner=name)
    assert type(oracle.pruner) is kind


def test_the_median_pruner_ends_bad_trials(tmp_path):
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    oracle = make_oracle(tmp_path, max_trials=3, pruner=pruner)
    for value in (1.0, 2.0, 9.0):
        trial = oracle.create_trial("x")
        pruned = oracle.report(trial.trial_id, value, 0)
        assert pruned == (value == 9.0)
        status = "PRUNED" if pruned else "COMPLETED"
        finish(oracle, trial, score=value, status=status)
    states = [t.state for t in oracle.logical_trials()]
    assert states == ["completed", "completed", "pruned"]
    assert oracle.study.trials[2].value == 9.0
    assert len(oracle.get_best_trials(9)) == 2


# Arguments.


@pytest.mark.parametrize(
    "kwargs, error, said",
    [
        ({"max_trials": 0}, ValueError, "`max_trials` must be an integer >="),
        ({"max_trials": 1.5}, TypeError, "`max_trials`"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0 or None"),
        ({"sampler": "best"}, ValueError, "'random', 'tpe', 'grid'"),
        ({"sampler": 3}, TypeError, "`sampler`"),
        (
            {"sampler": optuna.samplers.GridSampler({"x": [1]})},
            ValueError,
            'sampler="grid"',
        ),
        ({"pruner": "worst"}, ValueError, "'median', 'hyperband'"),
        ({"pruner": 3}, TypeError, "`pruner`"),
        ({"max_retries": -1}, ValueError, "`max_retries`"),
        ({"max_consecutive_failures": 0}, ValueError, "`max_consecutive"),
        ({"heartbeat_interval": 0}, ValueError, "`heartbeat_interval`"),
        ({"grace_period": 30}, ValueError, "larger than `heartbeat_interval`"),
        ({"study_name": ""}, ValueError, "`study_name`"),
        ({"storage": 3}, TypeError, "`storage`"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, said):
    with pytest.raises(error) as raised:
        OptunaOracle("val_loss", **kwargs)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "sampler, package", [("gp", "torch"), ("gp", "scipy"), ("cmaes", "cmaes")]
)
def test_a_missing_package_is_named_at_construction(
    monkeypatch, sampler, package
):
    import importlib.util

    if package == "scipy":
        pytest.importorskip("torch", reason="torch is asked for first")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == package else real(name, *a),
    )
    with pytest.raises(ImportError, match=f"pip install {package}"):
        OptunaOracle("val_loss", sampler=sampler)


def test_an_oracle_without_a_place_says_so():
    with pytest.raises(ValueError, match="Give the oracle to OptunaTuner"):
        OptunaOracle("val_loss").study  # noqa: B018


@pytest.mark.parametrize("kind", ["memory", "journal", "rdb"])
def test_other_storages(tmp_path, kind):
    if kind == "memory":
        storage = optuna.storages.InMemoryStorage()
    elif kind == "journal":
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "log"))
        )
    else:
        storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/a.db")
    oracle = make_oracle(tmp_path, storage=storage)
    trial = oracle.create_trial("x")
    with oracle.heartbeat(trial.trial_id):
        pass
    forget(oracle, trial)
    run(oracle)
    assert [t.attempts for t in oracle.logical_trials()] == [2, 1, 1, 1, 1]
    assert heartbeats.is_kept_by(storage) == (kind == "rdb")


def test_samplers_and_pruners_as_objects(tmp_path):
    oracle = make_oracle(
        tmp_path,
        sampler=optuna.samplers.QMCSampler(
            scramble=True, seed=1, warn_independent_sampling=False
        ),
        pruner=optuna.pruners.PercentilePruner(25.0),
    )
    run(oracle)
    assert len(oracle.logical_trials()) == 5


def test_two_objectives_are_combined_as_keras_tuner_does(tmp_path):
    objective = [
        keras_tuner.Objective("a", "min"),
        keras_tuner.Objective("b", "max"),
    ]
    oracle = make_oracle(tmp_path, objective=objective, max_trials=2)
    for a, b in [(1.0, 5.0), (1.0, 2.0)]:
        trial = oracle.create_trial("x")
        metrics = {"a": a, "b": b, "multi_objective": a - b}
        oracle.update_trial(trial.trial_id, metrics)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert oracle.get_best_trials()[0].score == -4.0


def test_keras_tuners_own_files_are_not_written(tmp_path):
    oracle = make_oracle(tmp_path)
    run(oracle)
    oracle.save()
    files = sorted(p.name for p in (tmp_path / "trials").rglob("*"))
    assert files == ["study.db"]


def test_the_book_is_the_same_whenever_it_is_read():
    """Every prefix of the rows gives the same numbers, as far as it goes."""
    trials = []

    def add(**attrs):
        trial = optuna.trial.create_trial(
            state=TrialState.FAIL, system_attrs=attrs
        )
        trial.number = trial._trial_id = len(trials)
        trials.append(trial)

    add()
    add()
    add(**{attempt_book.RETRY_OF: 0})
    add(**{attempt_book.RETRY_OF: 0})  # by two workers at once: void
    add()
    add(**{attempt_book.RETRY_OF: 2})
    add(**{attempt_book.RETRY_OF: 3})  # of a void one: void as well
    whole = attempt_book.read(trials)
    assert [[a.number for a in e.attempts] for e in whole] == [
        [0, 2, 5],
        [1],
        [4],
    ]
    for end in range(len(trials)):
        for entry in attempt_book.read(trials[:end]):
            numbers = [a.number for a in entry.attempts]
            expected = [a.number for a in whole[entry.number].attempts]
            assert numbers == expected[: len(numbers)]
