"""Searches in several processes, and what signals do to them.

On one backend only: nothing here depends on what computes, and each process
takes seconds to import it.
"""

import collections
import contextlib
import csv
import json
import multiprocessing
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
import types
from pathlib import Path

import keras
import pytest
from optuna.trial import TrialState

from keras_adamax_tuning import OptunaOracle, SearchResult, cli, run_search
from keras_adamax_tuning.running import worker_processes
from keras_adamax_tuning.running.data import as_data
from tests.support import id_of
from tests.tuning import failing_workers, searched

ROOT = Path(__file__).parents[3]
TRIALS = 4

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "jax",
        reason="processes and signals are the same on every backend",
    ),
    pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's"),
]


def environment():
    return os.environ | {
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")]),
        "OMP_NUM_THREADS": "1",
    }


def command(output, *more, workers=2):
    return [
        sys.executable,
        "-m",
        "keras_adamax_tuning.cli",
        "tests.tuning.searched:build_model",
        "--data=tests.tuning.searched:load_data",
        "--space=tests.tuning.searched:SPACE",
        "--callbacks=tests.tuning.searched:trace",
        "--sampler=random",
        "--seed=0",
        f"--max-trials={TRIALS}",
        "--epochs=1",
        f"--output={output}",
        f"--workers={workers}",
        *more,
    ]


class Search:
    """A command that runs; its trials wait while `held`."""

    def __init__(self, output, *more, workers=2, hold=True):
        self.output = output
        self.hold = output / ".hold"
        if hold:
            output.mkdir(exist_ok=True)
            self.hold.touch()
        self.log = output.with_suffix(f".{time.monotonic_ns()}.log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command(output, *more, workers=workers),
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hold.unlink(missing_ok=True)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)

    def workers(self):
        """Ids of the living processes that run, or ran, a trial."""
        known = set()
        for path in self.output.glob("trials/*/pid"):
            pid = int(path.read_text() or 0)
            try:
                state = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                continue
            if pid and state.rpartition(")")[2].split()[0] not in "ZX":
                known.add(pid)
        return known

    def started(self):
        """Ids of the workers, whether or not they have begun."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                group = os.getpgid(int(path.parent.name))
                if group == self.process.pid and b"spawn_main" in (
                    path.read_bytes()
                ):
                    found.add(int(path.parent.name))
        return found

    def wait_for_workers(self, count):
        self.wait_until(lambda: len(self.workers()) >= count)

    # Long enough for processes that import while other suites run.
    def wait_until(self, condition, seconds=400):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.printed()
            time.sleep(0.1)

    def release(self):
        self.hold.unlink()

    def printed(self):
        return self.log.read_text()

    def finish(self, seconds=600):
        return self.process.wait(seconds)


def rows_of(output):
    with open(output / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_complete(output):
    rows = rows_of(output)
    assert [int(row["number"]) for row in rows] == list(range(TRIALS))
    assert {row["state"] for row in rows} == {"completed"}
    return rows


def search_here(output, **changes):
    """The same search as the command's, in this process."""
    return run_search(
        searched.build_model,
        searched.load_data,
        space=searched.SPACE,
        max_trials=TRIALS,
        epochs=1,
        sampler="random",
        seed=0,
        callbacks_factory=searched.trace,
        output=output,
        verbose=False,
        **changes,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The trials of the search where nothing happens."""
    return search_here(tmp_path_factory.mktemp("alone") / "out").trials


def assert_same_trials(rows, alone):
    for row, trial in zip(rows, alone, strict=True):
        assert float(row["score"]) == pytest.approx(trial.score, rel=1e-4)
        rate = trial.hyperparameters["learning_rate"]
        assert float(row["learning_rate"]) == rate


def test_two_workers_share_the_trials_and_one_may_be_killed(tmp_path, alone):
    with Search(tmp_path / "out") as search:
        search.wait_for_workers(2)
        killed = min(search.workers())
        os.kill(killed, signal.SIGKILL)
        search.wait_until(lambda: "killed by SIGKILL" in search.printed())
        assert "1 of 2 workers go on" in search.printed()
        search.release()
        assert search.finish() == 0, search.printed()
        printed = search.printed()
    rows = assert_complete(search.output)
    assert_same_trials(rows, alone)
    assert sorted(row["attempts"] for row in rows) == ["1"] * 3 + ["2"]
    assert f"{TRIALS} of {TRIALS} done" in printed
    assert f"best {min(t.score for t in alone):.4}"[:9] in printed
    assert "Traceback" not in printed
    numbers = [
        line.split(":")[0]
        for line in printed.splitlines()
        if " done | " in line
    ]
    counted = collections.Counter(n for n in numbers if n.startswith("trial "))
    assert counted == {f"trial {number}": 1 for number in range(TRIALS)}
    assert (search.output / "best.keras").exists()


@pytest.mark.nightly
@pytest.mark.slow
def test_interrupted_workers_stop_and_the_command_goes_on(tmp_path, alone):
    with Search(tmp_path / "out") as search:
        search.wait_for_workers(2)
        # A terminal sends it to the whole group.
        os.killpg(search.process.pid, signal.SIGINT)
        time.sleep(0.5)
        search.release()
        assert search.finish() == 130, search.printed()
        assert not search.workers()
        printed = search.printed()
    assert "Traceback" not in printed
    (line,) = [
        line
        for line in printed.splitlines()
        if line.startswith("    keras-adamax-tune ")
    ]
    assert shlex.split(line)[1:] == command(search.output)[3:]

    search_here(search.output)
    rows = assert_complete(search.output)
    assert_same_trials(rows, alone)
    # Both that ran went back.
    assert sum(row["attempts"] == "2" for row in rows) == 2


def test_workers_stop_when_their_parent_is_killed_and_can_be_joined(
    tmp_path, alone
):
    with Search(tmp_path / "out") as search:
        search.wait_for_workers(2)
        search.process.kill()
        search.process.wait()
        time.sleep(1.5)
        search.release()
        search.wait_until(lambda: not search.workers())
        assert "Traceback" not in search.printed()
    search_here(search.output)
    assert_same_trials(assert_complete(search.output), alone)


def test_a_search_whose_processes_are_all_killed_can_be_read(tmp_path, capsys):
    output = tmp_path / "out"
    with Search(output, "--max-trials=60", hold=False) as search:
        search.wait_until(
            lambda: (
                (output / "trials.csv").exists()
                and sum(r["state"] == "completed" for r in rows_of(output)) > 3
            )
        )
        os.killpg(search.process.pid, signal.SIGKILL)
        search.process.wait()
    rows = rows_of(output)
    result = SearchResult.load(output)
    assert 4 <= len(rows) <= len(result.trials) < 60
    assert result.max_trials == 60
    # Whatever the moment was: the model is that of the best score.
    data = as_data(searched.load_data())
    model = result.load_best_model()
    loss = model.evaluate(*data.validation_data, verbose=0)[0]
    assert loss == pytest.approx(result.best_trial.score, rel=1e-4)
    assert cli.main(["report", str(output)]) == 0
    assert result.describe() in capsys.readouterr().out
    assert result.best_model_path == output / "best.keras"
    assert len(rows_of(output)) == len(result.trials)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": searched.wide_data}, r"does not take the data.*\(5,\)"),
        ({"build_model": searched.nothing}, "must return a keras.Model"),
        ({"objective": "val_accuracy"}, "in the logs of `fit`: loss, mae"),
    ],
    ids=id_of,
)
def test_an_error_of_the_workers_is_said_once(tmp_path, changes, words):
    given = {
        "build_model": searched.build_model,
        "data": searched.load_data,
        **changes,
    }
    with pytest.raises((ValueError, TypeError), match=words) as error:
        run_search(
            **given,
            space=searched.SPACE,
            workers=2,
            max_trials=2,
            output=tmp_path / "out",
            verbose=False,
        )
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "trials").exists()


@pytest.mark.nightly
@pytest.mark.slow
def test_workers_import_while_the_parent_loads_its_data_and_wait(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    run_search(
        searched.build_model,
        searched.tells,
        workers=2,
        max_trials=2,
        epochs=1,
        output=tmp_path / "out",
        verbose=False,
    )
    first, *others = (tmp_path / "told").read_text().splitlines()
    assert first == "MainProcess 2"
    assert sorted(others) == ["worker 1 0", "worker 2 0"]


def test_an_error_of_the_parent_ends_workers_that_wait(tmp_path, monkeypatch):
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    with pytest.raises(KeyError, match="no data"):
        run_search(
            searched.build_model,
            searched.tells_and_fails,
            workers=2,
            max_trials=2,
            output=tmp_path / "out",
        )
    assert (tmp_path / "told").read_text() == "MainProcess 2\n"
    assert not multiprocessing.active_children()


def test_the_command_starts_workers_before_it_imports_keras(tmp_path):
    script = (
        "import multiprocessing, sys\n"
        "from keras_adamax_tuning import cli\n"
        "from keras_adamax_tuning.running import worker_processes\n"
        "def start(*given, start=worker_processes._start):\n"
        "    print('keras' in sys.modules, 'jax' in sys.modules)\n"
        "    start(*given)\n"
        "    print(len(multiprocessing.active_children()))\n"
        "worker_processes._start = start\n"
        "code = cli.main(['missing:f', '--data=x.npz', '--output=out',\n"
        "    '--workers=2'])\n"
        "print(code, len(multiprocessing.active_children()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == ["False False", "2", "2 0"], done.stderr
    (line,) = done.stderr.splitlines()
    assert "missing" in line


class HangingSearch(Search):
    """A command whose parent loads its data for ever."""

    def __init__(self, tmp_path, monkeypatch):
        self.told = tmp_path / "told"
        monkeypatch.setenv("TOLD", str(self.told))
        super().__init__(
            tmp_path / "out", "--data=tests.tuning.searched:hangs", hold=False
        )
        self.wait_until(self.told.exists)
        self.waiting = self.started()
        assert len(self.waiting) == 2

    def __exit__(self, *given):
        super().__exit__(*given)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.mark.nightly
@pytest.mark.slow
def test_workers_that_wait_end_when_their_parent_is_killed(
    tmp_path, monkeypatch
):
    with HangingSearch(tmp_path, monkeypatch) as search:
        search.process.kill()
        search.process.wait()
        search.wait_until(lambda: not search.started())
        assert not search.printed()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_ends_all(tmp_path, monkeypatch, number):
    with HangingSearch(tmp_path, monkeypatch) as search:
        os.killpg(search.process.pid, number)
        assert search.finish(30) == 130, search.printed()
        assert not search.started()
        printed = search.printed()
    assert "nothing is lost" in printed and "Traceback" not in printed
    assert len(printed.splitlines()) == 2


def test_sigterm_while_the_command_imports_ends_all(tmp_path):
    with Search(tmp_path / "out", hold=False) as search:
        # They are started before the command imports Keras.
        search.wait_until(search.started)
        search.process.terminate()
        # Imports end first.
        assert search.finish() == 130, search.printed()
        assert not search.started()
        printed = search.printed()
    assert "nothing is lost" in printed and "Traceback" not in printed
    assert len(printed.splitlines()) == 3
    assert "once more to stop at once" in printed
    assert not (tmp_path / "out").exists()


def test_a_worker_that_died_while_it_waited_is_not_missed(
    tmp_path, monkeypatch
):
    def kill_first(*given, run_workers=worker_processes.run_workers):
        workers = given[2]
        workers[1].process.kill()
        workers[1].process.join()
        run_workers(*given)

    monkeypatch.setattr(worker_processes, "run_workers", kill_first)
    result = search_here(tmp_path / "out", workers=2)
    assert [trial.state for trial in result.trials] == ["completed"] * TRIALS


@pytest.fixture
def memory():
    """Bytes that were allocated since the test began, and are still held."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()


DATA_SIZE = 10_000_000
# What `note_memory` has found.
held = []


def note_memory(data, number):
    """Work for a worker."""
    assert (len(data), number) == (DATA_SIZE, 1)
    held.append(tracemalloc.get_traced_memory()[0])


def test_a_worker_holds_its_data_once(memory, monkeypatch):
    class Orders:
        parts = [sys.path]

        def poll(self, seconds):
            return True

        def recv_bytes(self):
            if self.parts:
                return pickle.dumps(self.parts.pop())
            return pickle.dumps((note_memory, bytes(DATA_SIZE)))

    monkeypatch.setattr(
        worker_processes.signals, "handle_in_worker", lambda _: None
    )
    held.clear()
    worker_processes._run(1, "os", Orders(), None, os.getppid())
    assert len(held) == 1
    assert DATA_SIZE <= held[0] < 1.5 * DATA_SIZE


def test_a_parent_holds_no_order_while_it_waits(memory, monkeypatch):
    sent, found = [], []

    class Worker:
        def order(self, path, work):
            sent.append(len(work))

    data = bytes(DATA_SIZE)
    monkeypatch.setattr(
        worker_processes, "_wait", lambda *_: found.append(memory())
    )
    worker_processes.run_workers(
        note_memory, data, {1: Worker()}, lambda: None, print
    )
    assert sent[0] > DATA_SIZE
    assert DATA_SIZE <= found[0] < 1.5 * DATA_SIZE


def run_marking(workers, folder):
    """Lets workers leave marks; returns their numbers and process ids."""
    folder.mkdir()
    worker_processes.run_workers(
        failing_workers.leaves_a_mark, folder, workers, lambda: None, print
    )
    marks = [path.name.split() for path in folder.iterdir()]
    return {int(number): int(pid) for number, pid in marks}


def ids_of(workers):
    return {number: w.process.pid for number, w in workers.items()}


def test_each_block_starts_and_ends_its_own_workers(tmp_path):
    with worker_processes.started(2, "os") as workers:
        # As in a function that loads the data.
        with worker_processes.started(2, "os") as others:
            inner = run_marking(others, tmp_path / "inner")
        outer = run_marking(workers, tmp_path / "outer")
    assert outer == ids_of(workers) and inner == ids_of(others)
    assert not {*outer.values()} & {*inner.values()}
    with worker_processes.started(1, "os") as workers:
        assert not workers
    with pytest.raises(KeyError), worker_processes.started(2, "os"):
        raise KeyError("before the order")
    assert not multiprocessing.active_children()


def test_no_workers_are_none_that_were_stopped():
    with pytest.raises(ValueError, match="`workers` must hold a process"):
        worker_processes.run_workers(print, None, {}, lambda: None, print)


class Searches(searched.OwnFit):
    """Its `fit` is a search."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def fit(self, hp, model, x, y, **kwargs):
        found = searched.search(self.output, workers=2)
        return {"score": found.best_trial.score}


@pytest.mark.nightly
@pytest.mark.slow
def test_a_search_within_a_search_has_workers(tmp_path):
    result = run_search(
        Searches(tmp_path / "inner"),
        searched.load_data,
        objective="score",
        direction="min",
        max_trials=1,
        epochs=None,
        output=tmp_path / "outer",
        verbose=False,
    )
    assert [trial.state for trial in result.trials] == ["completed"]
    inner = SearchResult.load(tmp_path / "inner")
    assert inner.best_trial.score == result.best_trial.score


def test_what_is_searched_in_vain_is_said_once(tmp_path):
    model = "tests.tuning.searched:varies_in_vain"
    arguments = command(tmp_path / "out", "--max-trials=2")
    arguments[3] = model
    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("The search varies 'rate' in vain") == 1


def test_what_workers_cannot_import_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="`build_model`.*function of a module"):
        run_search(
            lambda hp: searched.build_model(hp),
            searched.load_data,
            workers=2,
            max_trials=2,
            output=tmp_path / "out",
        )


def test_what_a_notebook_defines_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(searched.build_model, "__module__", "__main__")
    main = types.ModuleType("__main__")
    main.build_model = searched.build_model
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(TypeError, match="a notebook or a prompt"):
        run_search(
            searched.build_model,
            searched.load_data,
            workers=2,
            max_trials=2,
            output=tmp_path / "out",
        )


def test_two_commands_share_a_search_on_postgresql(
    tmp_path, postgresql_url, alone
):
    storage = f"--storage={postgresql_url}"
    with (
        Search(tmp_path / "out", storage, workers=1) as first,
        Search(tmp_path / "out", storage, workers=1) as second,
    ):
        first.wait_for_workers(2)
        first.release()
        assert first.finish() == 0, first.printed()
        assert second.finish() == 0, second.printed()
    rows = assert_complete(first.output)
    assert_same_trials(rows, alone)
    assert not (first.output / "study.db").exists()
    oracle = OptunaOracle("val_loss", storage=postgresql_url, study_name="out")
    # Two workers may make room for the last one at the same moment; a trial
    # too many waits for a larger search, and nobody begins it.
    begun = oracle.study.get_trials(
        states=set(TrialState) - {TrialState.WAITING}
    )
    assert len(begun) == TRIALS

    # Another folder of the same name would get weights that nobody finds.
    elsewhere = tmp_path / "elsewhere" / "out"
    elsewhere.parent.mkdir()
    with pytest.raises(ValueError, match="must reach the same folder"):
        search_here(elsewhere, storage=postgresql_url)


def run_failing(name, folder):
    """What `run_workers` raised and said; it must come to an end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tuning.failing_workers", name, folder],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the workers and their parent wait for each other")
    return json.loads(printed.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "noted"),
    [
        ("long_text", "x is the end", "ValueError: xxx"),
        ("both_long_texts", "x is the end", "ValueError: xxx"),
        ("long_traceback", "the last of ten", "ValueError: 9999"),
        ("unpicklable", "this and that", "Unpicklable: this and that"),
        ("mute", "Mute: its text raises RuntimeError", "Mute"),
        ("surrogates", "\udcff a file's name", "surrogates"),
    ],
)
def test_every_error_of_a_worker_reaches_the_parent(
    tmp_path, name, text, noted
):
    kind, message, (note,), said = run_failing(name, tmp_path)
    assert kind == "ValueError"
    assert message.endswith(text)
    assert note.startswith("In worker ")
    assert noted in note
    assert not said
    if name == "long_text":
        assert len(message) > 200_000
    if name == "long_traceback":
        assert len(note) > 500_000 and "\nValueError: xxx" in note


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["killed_while_sending", "killed_with_a_child_that_lives"]
)
def test_a_worker_that_is_killed_while_it_fails_is_waited_for_no_longer(
    tmp_path, name
):
    kind, _, _, said = run_failing(name, tmp_path)
    assert kind == "NoneType"  # the other worker went on
    (line,) = said
    assert "killed by SIGKILL" in line


def test_a_model_builder_that_fails_at_length(tmp_path):
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [
                "tests.tuning.searched:fails_at_length"
                if ":build" in part
                else part
                for part in command(tmp_path / "out")
            ],
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert process.wait(400) == 2
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    printed = (tmp_path / "log").read_text()
    assert "ValueError: xxxxx" in printed and "searched.py, line" in printed


HYPERMODEL = """
import keras
import keras_tuner


class Mine(keras_tuner.HyperModel):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def build(self, hp):
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(self.width)]
        )
        model.add(keras.layers.Dense(1))
        model.compile(loss="mse")
        return model

    def fit(self, hp, model, x, y, **kwargs):
        x = x * hp.Float("scale", 0.5, 2.0)
        history = model.fit(x, y, epochs=hp.Int("rounds", 2, 3), **kwargs)
        return {"score": 1 / history.history["val_loss"][-1]}


mine = Mine(4)
"""


@pytest.mark.nightly
@pytest.mark.slow
def test_a_hypermodel_with_a_fit_of_its_own(tmp_path):
    (tmp_path / "models.py").write_text(HYPERMODEL)
    output = tmp_path / "out"
    arguments = command(output, "--objective=score", "--direction=max")
    arguments[3] = "models:mine"

    def run(*more):
        return subprocess.run(
            [*arguments, *more],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
        )

    done = run()
    assert done.returncode == 2, done.stderr
    assert "--epochs none" in done.stderr.splitlines()[-1]
    done = run("--epochs=none", f"--output={tmp_path / 'other'}")
    assert done.returncode == 0, done.stderr
    for row in assert_complete(tmp_path / "other"):
        # The recorders reached its `model.fit`, and what it searched is there.
        assert float(row["score"]) > 0
        assert 0.5 <= float(row["scale"]) <= 2
        path = tmp_path / "other" / "trials" / f"trial_{int(row['number']):04d}"
        logs = (path / "history.csv").read_text().splitlines()
        assert len(logs) == 1 + int(row["rounds"])
