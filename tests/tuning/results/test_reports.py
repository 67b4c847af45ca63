"""`SearchResult.load` and `keras-adamax-tune report`, in any state."""

import hashlib
import importlib
import json
import os
import sqlite3
import subprocess
import sys

import keras
import optuna
import pytest

from keras_adamax_tuning import SearchResult, cli, run_search
from keras_adamax_tuning.results import result_files
from tests.tuning import searched
from tests.tuning.searched import FIGURES, search


@pytest.fixture
def report(capsys):
    def run(*given):
        code = cli.main(["report", *map(str, given)])
        return code, capsys.readouterr()

    return run


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of_study(path):
    """All that the study says, in SQL."""
    connection = sqlite3.connect(path)
    text = "\n".join(connection.iterdump())
    connection.close()
    return text


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A search that is over."""
    return search(tmp_path_factory.mktemp("reports") / "done")


def test_a_finished_search(done, report):
    loaded = SearchResult.load(done.output)
    assert loaded == done
    assert loaded.hyperparameters[0].get_config() == (
        done.hyperparameters[0].get_config()
    )
    assert loaded.describe() == done.describe()
    before = digest(done.output / "study.db")
    for path in (done.output / "figures").iterdir():
        path.unlink()
    code, printed = report(done.output)
    assert code == 0 and printed.err == ""
    assert "done: 2 of 2 trials have ended, 2 completed\n" in printed.out
    assert done.describe() in printed.out
    best = f"of trial {done.best_trial.number}, is {done.output / 'best.keras'}"
    assert best in printed.out
    found = {path.name for path in (done.output / "figures").iterdir()}
    assert found == {f"{name}.png" for name in FIGURES}
    assert digest(done.output / "study.db") == before


@pytest.mark.slow
def test_the_users_module_is_not_needed(tmp_path, report):
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "def build_model(hp):\n"
        "    model = keras.Sequential([keras.Input((3,)), "
        "keras.layers.Dense(1)])\n"
        "    model.compile(loss='mse')\n"
        "    return model\n"
    )
    sys.path.insert(0, str(tmp_path))
    mine = importlib.import_module("mine")
    try:
        run_search(
            mine.build_model,
            searched.load_data,
            output=tmp_path / "out",
            max_trials=1,
            epochs=1,
            verbose=False,
        )
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["mine"]
    code, printed = report(tmp_path / "out")
    assert code == 0 and printed.err == ""
    assert "mine" not in sys.modules
    assert SearchResult.load(tmp_path / "out").load_best_model().built


@pytest.mark.slow
def test_a_search_that_runs_is_not_disturbed(tmp_path, done, capsys):
    output = tmp_path / "out"
    seen = []

    def look(trial, hp, folder):
        before = rows_of_study(output / "study.db")
        assert cli.main(["report", str(output)]) == 0
        assert rows_of_study(output / "study.db") == before
        result = SearchResult.load(output)
        states = [trial.state for trial in result.trials]
        seen.append((states, result.max_trials, capsys.readouterr()))
        return []

    result = search(output, callbacks_factory=look)
    for mine, other in zip(result.trials, done.trials, strict=True):
        assert mine.state == "completed"
        assert mine.hyperparameters == other.hyperparameters
        assert mine.score == pytest.approx(other.score, rel=1e-6)
    (first, count, printed), (second, *_) = seen
    assert first == ["running"] and second == ["completed", "running"]
    assert count == 2
    assert "0 of 2 trials have ended, 1 running" in printed.out
    assert "No trial has completed." in printed.out
    assert printed.err == ""


@pytest.mark.slow
def test_a_search_where_no_trial_completed(tmp_path, report):
    search(tmp_path / "out", callbacks_factory=searched.fail)
    code, printed = report(tmp_path / "out")
    assert code == 0 and printed.err == ""
    assert "2 of 2 trials have ended, 2 failed" in printed.out
    assert "2 of them with: RuntimeError: it broke (" in printed.out
    assert "No trial has completed." in printed.out
    with pytest.raises(ValueError, match="No trial has completed"):
        SearchResult.load(tmp_path / "out").load_best_model()


@pytest.mark.slow
def test_what_a_killed_worker_left_is_put_right(tmp_path, report):
    """As if it had been killed between the record and the files."""
    output = tmp_path / "out"
    result = search(output)
    saved = result_files.model_of_trial(output, result.best_trial.trial_id)
    (output / "best.keras").rename(saved)
    (output / "best_optimizer.json").unlink()
    (output / "trials.csv").write_text("number\n")
    code, printed = report(output)
    assert code == 0 and printed.err == ""
    assert f"is {output / 'best.keras'}" in printed.out
    assert not saved.exists()
    assert len((output / "trials.csv").read_text().splitlines()) == 3
    assert result.load_best_optimizer().get_config()["clip_epsilon"] == 1e-3

    # An older version did not save it; the weights are there.
    (output / "best.keras").unlink()
    code, printed = report(output)
    assert code == 0
    assert "best.keras could not be written" in printed.err
    assert "is not saved as a whole; start the search again" in printed.out
    with pytest.raises(ValueError, match="Start the search again"):
        SearchResult.load(output).load_best_model()
    search(output)
    SearchResult.load(output).load_best_model()


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")
connection.execute("BEGIN IMMEDIATE")
connection.execute("DELETE FROM trial_values")
connection.execute("CREATE TABLE filler (text)")
for _ in range(200):
    connection.execute("INSERT INTO filler VALUES (?)", ("x" * 4096,))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_transaction_that_was_killed_is_not_seen(tmp_path, report):
    output = tmp_path / "out"
    result = search(output, max_trials=1)
    database = output / "study.db"
    subprocess.run([sys.executable, "-c", KILLED, str(database)])
    journal = database.with_name("study.db-journal")
    assert journal.stat().st_size > 0
    before = digest(database), digest(journal)
    assert SearchResult.load(output).trials == result.trials
    assert report(output)[0] == 0
    assert (digest(database), digest(journal)) == before
    # The workers that go on take it back themselves.
    assert search(output, max_trials=1).trials == result.trials


@pytest.mark.slow
def test_a_database_elsewhere(tmp_path, report):
    output = tmp_path / "out"
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    result = search(output, storage=storage, study_name="shared")
    with pytest.raises(ValueError, match="--storage.*holds no study.db"):
        SearchResult.load(output)
    code, printed = report(output)
    assert code == 2 and "--storage" in printed.err
    assert printed.err.count("\n") == 1
    loaded = SearchResult.load(output, storage=storage)
    assert loaded.trials == result.trials
    before = digest(tmp_path / "shared.db")
    code, printed = report(output, f"--storage={storage}")
    assert code == 0 and result.describe() in printed.out
    assert digest(tmp_path / "shared.db") == before

    other = f"sqlite:///{tmp_path / 'other.db'}"
    search(tmp_path / "other", storage=other, max_trials=1)
    with pytest.raises(ValueError, match="no study of this folder"):
        SearchResult.load(output, storage=other)


@pytest.mark.parametrize("value", [None, 0.0])
def test_a_foreign_study_of_the_same_name(tmp_path, done, report, value):
    storage = f"sqlite:///{tmp_path / 'a.db'}"
    study = optuna.create_study(study_name=done.output.name, storage=storage)
    if value is not None:
        study.add_trial(optuna.trial.create_trial(value=value))
    code, printed = report(done.output, f"--storage={storage}")
    assert code == 2 and "no study of this folder" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.slow
def test_a_copy_of_the_study_is_not_the_search(tmp_path, report):
    result = search(tmp_path / "out")
    storage = f"sqlite:///{tmp_path / 'out' / 'study.db'}"
    optuna.copy_study(
        from_study_name="out",
        from_storage=storage,
        to_storage=storage,
        to_study_name="copy",
    )
    copy = optuna.load_study(study_name="copy", storage=storage)
    copy.add_trial(optuna.trial.create_trial(value=0.0))
    assert SearchResult.load(tmp_path / "out").trials == result.trials
    code, printed = report(tmp_path / "out")
    assert code == 0 and "out: 2 of 2 trials" in printed.out


@pytest.mark.slow
def test_a_search_with_a_trial_that_the_user_added(tmp_path, report):
    output = tmp_path / "out"
    study = optuna.create_study(
        study_name="s", storage=f"sqlite:///{tmp_path / 'a.db'}"
    )
    study.add_trial(optuna.trial.create_trial(value=-9.0))
    storage = f"sqlite:///{tmp_path / 'a.db'}"
    result = search(output, storage=storage, study_name="s", verbose=True)
    assert result.best_trial.number == 1
    code, printed = report(output, f"--storage={storage}")
    assert code == 0 and printed.err == ""
    assert "2 of 2 trials have ended, 2 completed" in printed.out


@pytest.mark.parametrize(
    "storage",
    ["postgresql+psycopg://me:secret@127.0.0.1:9/a", "sqlite:////no/a.db"],
)
def test_a_database_that_does_not_answer_is_one_line(done, report, storage):
    code, printed = report(done.output, f"--storage={storage}")
    assert code == 4
    assert printed.err.startswith("keras-adamax-tune: error: The database ")
    assert printed.err.count("\n") == 1 and "secret" not in printed.err


@pytest.mark.slow
def test_postgresql_is_read_and_no_password_is_kept(
    tmp_path, postgresql_url, report
):
    import sqlalchemy

    output = tmp_path / "out"
    result = search(output, storage=postgresql_url, max_trials=1)

    def contents():
        engine = sqlalchemy.create_engine(postgresql_url)
        tables = ("trials", "trial_user_attributes", "study_user_attributes")
        with engine.connect() as connection:
            rows = [
                connection.execute(
                    sqlalchemy.text(f"SELECT * FROM {table} ORDER BY 1")
                ).fetchall()
                for table in tables
            ]
        engine.dispose()
        return rows

    before = contents()
    code, printed = report(output, f"--storage={postgresql_url}")
    assert code == 0 and result.describe() in printed.out, printed.err
    assert contents() == before
    for path in output.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    code, printed = report(output)
    assert code == 2 and "secret" not in printed.err


def test_without_matplotlib_the_table_is_there(
    done, report, monkeypatch, tmp_path
):
    monkeypatch.delitem(
        sys.modules, "keras_adamax_tuning.results.drawing", False
    )
    monkeypatch.delattr("keras_adamax_tuning.results.drawing", raising=False)
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)
    code, printed = report(done.output)
    assert code == 0
    assert done.describe() in printed.out
    assert "best.keras" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("keras-adamax-tune: warning: figures/scores.png")
    assert "matplotlib" in line


@pytest.mark.slow
def test_a_folder_of_an_earlier_version(tmp_path, report):
    """Neither the arguments nor the space were in its study."""
    output = tmp_path / "out"
    result = search(output)
    connection = sqlite3.connect(output / "study.db")
    connection.execute(
        "DELETE FROM study_user_attributes WHERE key = ?",
        ("keras_adamax:arguments",),
    )
    connection.commit()
    connection.close()
    loaded = SearchResult.load(output)
    assert loaded.trials == result.trials
    assert loaded.max_trials is None and loaded.hyperparameters == ()
    code, printed = report(output)
    assert code == 0 and "2 trials have ended" in printed.out


def test_no_search_is_one_line(tmp_path, report):
    for folder in (tmp_path, tmp_path / "none"):
        code, printed = report(folder)
        assert code == 2
        assert "must be the output folder of a search" in printed.err
        assert printed.err.count("\n") == 1
        with pytest.raises(FileNotFoundError):
            SearchResult.load(folder)
    (tmp_path / "search.json").write_text("{}")
    code, printed = report(tmp_path)
    assert code == 2 and "search.json cannot be read" in printed.err
    of_a_tuner = {"format": 2, "token": "abc", "identity": {}}
    (tmp_path / "search.json").write_text(json.dumps(of_a_tuner))
    code, printed = report(tmp_path)
    assert code == 2 and printed.err.count("\n") == 1
    assert "must be the output folder of `run_search`" in printed.err
    of_a_tuner["format"] = 99
    (tmp_path / "search.json").write_text(json.dumps(of_a_tuner))
    code, printed = report(tmp_path)
    assert code == 2 and "another version of this package" in printed.err
    assert report()[0] == 2
    assert report("--help")[0] == 0


def test_a_search_before_its_first_trial(tmp_path, report):
    output = tmp_path / "out"
    output.mkdir()
    record = {
        "format": 1,
        "token": "abc",
        "identity": {
            "objective": ["val_loss", "min"],
            "space": keras.saving.serialize_keras_object(searched.SPACE),
        },
    }
    (output / "search.json").write_text(json.dumps(record))
    code, printed = report(output)
    assert code == 2 and "nothing to read" in printed.err


def test_numbers_of_trials_count_from_0_everywhere(tmp_path, capsys):
    import keras_tuner

    from keras_adamax_tuning import OptunaOracle, OptunaTuner

    def build(hp):
        model = searched.build_model(hp)
        model.optimizer.learning_rate = hp.Float("rate", 0.01, 0.1)
        return model

    tuner = OptunaTuner(
        build,
        oracle=OptunaOracle(
            keras_tuner.Objective("loss", "min"), max_trials=2, seed=0
        ),
        directory=tmp_path,
        project_name="trials",
    )
    x, y = searched.load_data()
    tuner.search(x, y, verbose=1)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line[:6] == "Trial "]
    assert lines[0] == "Trial 0 (0 to 1)"
    assert lines[1].startswith("Trial 0: loss ")
    assert lines[2] == "Trial 1 (0 to 1)"
    assert lines[3].startswith("Trial 1: loss ")
    folders = sorted(
        path.name for path in (tmp_path / "trials").glob("trial_*")
    )
    assert folders == ["trial_0000", "trial_0001"]
