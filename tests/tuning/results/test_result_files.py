"""The files of a search at any time, whoever is killed or cannot write."""

import csv
import json
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import keras
import pytest

from keras_adamax import AdamaxClipped
from keras_adamax_tuning import SearchResult, SearchWarning
from keras_adamax_tuning.results import figures, result_files
from keras_adamax_tuning.results.result_files import ResultFiles
from keras_adamax_tuning.running.data import as_data
from keras_adamax_tuning.study.trials import best_of
from tests.tuning import searched
from tests.tuning.searched import FIGURES, search
from tests.tuning.synthetic import make_trial

ROOT = Path(__file__).parents[3]


def rows_of(output):
    with open(output / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_of_one_trial(output, trial):
    """All files are of this best trial."""
    best = min(
        (row for row in rows_of(output) if row["state"] == "completed"),
        key=lambda row: float(row["score"]),
    )
    assert int(best["number"]) == trial.number
    assert result_files.trial_of_model(output / "best.keras") == trial.trial_id
    config = json.loads((output / "best_optimizer.json").read_text())
    rate = keras.saving.deserialize_keras_object(config).learning_rate
    expected = trial.hyperparameters["learning_rate"]
    assert float(rate) == pytest.approx(expected)


# Trials that no search has run.


class Record:
    """A record that threads write and read; models are dense layers."""

    def __init__(self, output):
        self.output = output
        self.lock = threading.Lock()
        self.trials = []
        output.mkdir()
        (output / "search.json").write_text("{}")

    def read(self):
        with self.lock:
            return list(self.trials)

    def add(self, trial):
        with self.lock:
            self.trials.append(trial)

    def make_model(self, trial_id):
        folder = result_files.model_of_trial(self.output, trial_id).parent
        folder.mkdir(parents=True, exist_ok=True)
        return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])

    def files(self, read=None):
        return ResultFiles(
            self.output,
            "min",
            read or self.read,
            lambda trial: AdamaxClipped(trial.hyperparameters["learning_rate"]),
            self.make_model,
        )


def completed(number, score):
    return make_trial(
        number, score=score, hyperparameters={"learning_rate": score / 100}
    )


def test_a_new_best_replaces_the_model_and_others_do_not(tmp_path):
    record = Record(tmp_path / "out")
    files = record.files()
    for number, score in enumerate([3.0, 5.0, 1.0, 1.0]):
        assert files.prepare(f"{number:04d}", score) == {}
        record.add(completed(number, score))
        assert files.write() == {}
        best = best_of(record.trials, "min")
        assert_of_one_trial(record.output, best)
        assert len(rows_of(record.output)) == number + 1
    assert best.number == 2
    left = [p for p in record.output.rglob("*") if p.name == "model.keras"]
    assert left == []


def test_a_worker_that_was_slow_does_not_bring_back_an_older_state(tmp_path):
    record = Record(tmp_path / "out")
    record.add(completed(0, 3.0))
    has_read, may_go_on = threading.Event(), threading.Event()

    def read_slowly():
        trials = record.read()
        if not has_read.is_set():
            has_read.set()
            assert may_go_on.wait(60)
        return trials

    slow = threading.Thread(target=record.files(read_slowly).write)
    slow.start()
    assert has_read.wait(60)
    record.add(completed(1, 1.0))
    other = record.files()
    assert other.prepare("0001", 1.0) == {}
    # Left to the slow one, which holds the lock.
    assert other.write() == {}
    assert not (record.output / "trials.csv").exists()
    may_go_on.set()
    slow.join()
    assert len(rows_of(record.output)) == 2
    assert_of_one_trial(record.output, record.trials[1])


def test_the_end_of_a_search_does_not_wait_for_ever(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    record = Record(tmp_path / "out")
    record.add(completed(0, 3.0))
    with open(record.output / "search.json", "r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert record.files().write() == {}
        assert not (record.output / "trials.csv").exists()
        assert record.files().write(0.2) == {}
        assert_of_one_trial(record.output, record.trials[0])


def test_many_workers_leave_one_state_and_never_go_back(tmp_path):
    record = Record(tmp_path / "out")
    numbers = iter(range(40))
    over = threading.Event()
    seen = []

    def work(seed):
        files = record.files()
        chance = random.Random(seed)
        while True:
            with record.lock:
                number = next(numbers, None)
            if number is None:
                return
            score = chance.uniform(1, 2)
            assert files.prepare(f"{number:04d}", score) == {}
            time.sleep(chance.uniform(0, 0.01))
            record.add(completed(number, score))
            assert files.write() == {}

    def watch():
        while not over.is_set():
            # In the order that a reader of an older best would need.
            model = result_files.trial_of_model(record.output / "best.keras")
            try:
                known = {int(row["number"]) for row in rows_of(record.output)}
            except FileNotFoundError:
                known = set()
            seen.append((len(known), model is None or int(model) in known))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    over.set()
    watcher.join()
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)
    assert all(is_known for _, is_known in seen)
    assert len(rows_of(record.output)) == 40
    assert_of_one_trial(record.output, best_of(record.trials, "min"))


@pytest.mark.parametrize(
    "name", ["trials.csv", "best.keras", "best_optimizer.json"]
)
def test_what_cannot_be_written_does_not_lose_the_rest(tmp_path, name):
    record = Record(tmp_path / "out")
    # No file can be renamed to a folder.
    (record.output / name).mkdir()
    record.add(completed(0, 3.0))
    problems = record.files().write()
    assert list(problems) == [name]
    assert isinstance(problems[name], OSError)
    for other in {"trials.csv", "best.keras", "best_optimizer.json"} - {name}:
        assert (record.output / other).is_file()
    result = SearchResult(
        record.output, "val_loss", "min", tuple(record.trials)
    )
    result.load_best_model()
    # As soon as it can be written it is.
    (record.output / name).rmdir()
    assert record.files().write() == {}
    assert_of_one_trial(record.output, record.trials[0])


def test_a_file_that_was_cut_off_or_is_older_than_the_record_is_replaced(
    tmp_path,
):
    record = Record(tmp_path / "out")
    record.add(completed(0, 3.0))
    path = record.output / "best.keras"
    # As earlier versions wrote it.
    result_files.write_best_model(record.make_model("0000"), path)
    assert result_files.trial_of_model(path) is None
    record.files().write()
    assert_of_one_trial(record.output, record.trials[0])
    path.write_bytes(path.read_bytes()[:-30])
    assert not zipfile.is_zipfile(path)
    record.files().write()
    assert_of_one_trial(record.output, record.trials[0])


# Real searches.


def run_script(script, output):
    """A process of its own, which may be killed."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(output)],
        env=os.environ
        | {
            "KERAS_BACKEND": keras.backend.backend(),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")]),
        },
        capture_output=True,
        text=True,
    )
    return done


SCRIPT = """
import os, signal, sys
from keras_adamax_tuning import run_search
from keras_adamax_tuning.results.result_files import ResultFiles
from tests.tuning import searched
{before}
result = run_search(
    searched.build_model, searched.load_data, output=sys.argv[1],
    space=searched.SPACE, max_trials=3, epochs=1, sampler="random", seed=0,
    verbose=False, callbacks_factory=searched.{callbacks},
)
print(result.best_trial.number)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_after_a_kill_all_is_there_that_has_ended(tmp_path):
    output = tmp_path / "out"
    done = run_script(SCRIPT.format(before="", callbacks="kill_third"), output)
    assert done.returncode == -9, done.stderr
    rows = rows_of(output)
    assert [row["state"] for row in rows] == ["completed"] * 2
    result = SearchResult.load(output)
    assert [t.state for t in result.trials] == ["completed"] * 2 + ["running"]
    assert_of_one_trial(output, result.best_trial)
    loss = result.load_best_model().evaluate(
        *as_data(searched.load_data()).validation_data, verbose=0
    )[0]
    assert loss == pytest.approx(result.best_trial.score, rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_after_ctrl_c_all_is_there_that_has_ended(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        search(output, callbacks_factory=searched.interrupt_third, max_trials=3)
    assert len(rows_of(output)) == 2
    result = SearchResult.load(output)
    assert_of_one_trial(output, result.best_trial)
    assert "val_loss" in result.describe()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_kill_before_the_files_are_written_loses_no_model(tmp_path):
    """The trial counts as completed, and the worker is killed at once."""
    output = tmp_path / "out"
    before = (
        "ResultFiles.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    script = SCRIPT.format(before=before, callbacks="trace")
    done = run_script(script, output)
    assert done.returncode == -9, done.stderr
    assert not (output / "best.keras").exists()
    result = SearchResult.load(output)
    assert [trial.state for trial in result.trials] == ["completed"]
    loss = result.load_best_model().evaluate(
        *as_data(searched.load_data()).validation_data, verbose=0
    )[0]
    assert loss == pytest.approx(result.best_trial.score, rel=1e-6)
    # The search that goes on writes them.
    result = search(output, max_trials=1)
    assert_of_one_trial(output, result.best_trial)


@pytest.mark.slow
def test_a_folder_in_the_place_of_each_file_is_a_warning(tmp_path):
    output = tmp_path / "out"
    search(output, max_trials=1)
    for name in ("trials.csv", "figures/scores.png"):
        (output / name).unlink()
        (output / name).mkdir()
    with pytest.warns(SearchWarning) as warned:
        result = search(output, max_trials=2)
    assert [trial.state for trial in result.trials] == ["completed"] * 2
    text = "\n".join(str(warning.message) for warning in warned)
    assert "trials.csv could not be written: IsADirectoryError" in text
    assert "figures/scores.png could not be written: IsADirectory" in text
    assert (output / "figures" / "importance.png").is_file()
    assert result_files.trial_of_model(output / "best.keras") == (
        result.best_trial.trial_id
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "missing",
    [["importance"], pytest.param(FIGURES, marks=pytest.mark.slow)],
)
def test_a_defect_in_a_figure_loses_nothing_else(
    tmp_path, monkeypatch, missing
):
    def broken(*_):
        raise ZeroDivisionError("a defect")

    for name in missing:
        monkeypatch.setattr(figures, f"plot_{name}", broken)
    with pytest.warns(
        SearchWarning, match="ZeroDivisionError: a defect"
    ) as all:
        result = search(tmp_path / "out")
    (text,) = [
        str(warning.message)
        for warning in all
        if warning.category is SearchWarning
    ]
    for name in missing:
        assert f"figures/{name}.png" in text
    found = {path.stem for path in (result.output / "figures").glob("*.png")}
    assert found == set(FIGURES) - set(missing)
    assert_of_one_trial(result.output, result.best_trial)


# The kernel refuses what is longer, as it does on a full disk.
FULL = """
import resource
from keras_adamax_tuning import SearchResult
save_figures = SearchResult.save_figures
def save_on_a_full_disk(*arguments, **more):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    return save_figures(*arguments, **more)
SearchResult.save_figures = save_on_a_full_disk
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
@pytest.mark.parametrize(
    ("before", "words"),
    [
        (
            "sys.modules['matplotlib'] = None",
            "ImportError: Figures need matplotlib",
        ),
        (FULL, "OSError: [Errno 27] File too large"),
    ],
    ids=["no matplotlib", "full"],
)
def test_figures_that_cannot_be_drawn_do_not_lose_the_result(
    tmp_path, before, words
):
    output = tmp_path / "out"
    done = run_script(SCRIPT.format(before=before, callbacks="trace"), output)
    assert done.returncode == 0, done.stderr
    result = SearchResult.load(output)
    assert done.stdout.strip() == str(result.best_trial.number)
    assert_of_one_trial(output, result.best_trial)
    assert "figures/scores.png" in done.stderr
    assert words in done.stderr


@pytest.mark.slow
def test_a_warning_that_the_user_makes_an_error_comes_last(
    tmp_path, monkeypatch
):
    """Here every warning is an error; the files are there nevertheless."""
    monkeypatch.setattr(figures, "plot_scores", lambda *_: 1 / 0)
    with pytest.raises(SearchWarning, match="figures/scores.png"):
        search(tmp_path / "out")
    result = SearchResult.load(tmp_path / "out")
    assert_of_one_trial(result.output, result.best_trial)


def test_a_lock_that_the_file_system_does_not_have(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    record = Record(tmp_path / "out")
    record.add(completed(0, 3.0))
    assert record.files().write() == {}
    assert_of_one_trial(record.output, record.trials[0])
