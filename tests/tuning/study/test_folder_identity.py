"""One folder, one study: whoever comes with another is refused."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from keras_adamax_tuning import (
    OptunaOracle,
    OptunaTuner,
    SearchMismatchError,
    run_search,
)
from keras_adamax_tuning.study import folder_identity
from tests.tuning import searched

ROOT = Path(__file__).parents[3]


def search(output, **changes):
    return run_search(
        searched.build_model,
        searched.load_data,
        output=output,
        **{
            "space": searched.SPACE,
            "max_trials": 1,
            "epochs": 1,
            "sampler": "random",
            "seed": 0,
            "verbose": False,
            **changes,
        },
    )


def url(path):
    return f"sqlite:///{path}"


def content(folder):
    """The files of a folder; the database changes when it is opened."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("study.db")
    }


def builder(hp):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    rate = hp.Float("rate", 1e-3, 1.0, sampling="log")
    model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
    return model


def tune(folder, storage=None, trials=1, build=builder, **oracle):
    tuner = OptunaTuner(
        build,
        OptunaOracle(
            "val_loss",
            max_trials=trials,
            storage=storage,
            sampler="random",
            seed=0,
            **oracle,
        ),
        directory=folder.parent,
        project_name=folder.name,
    )
    x = np.ones((8, 3), "float32")
    data = (x, x[:, :1])
    tuner.search(*data, validation_data=data, epochs=1, verbose=0)
    return tuner


def forget_new_attributes(database):
    """Makes a study of an earlier version out of one of this version."""
    with sqlite3.connect(database) as connection:
        connection.execute(
            "DELETE FROM study_user_attributes "
            "WHERE key LIKE 'keras_adamax:output_folder:%'"
        )
    connection.close()


def make_old(output):
    """Makes a folder of an earlier version out of one of this version."""
    record = json.loads((output / "search.json").read_text())
    del record["study_name"]
    record["format"] = 1
    (output / "search.json").write_text(json.dumps(record))
    forget_new_attributes(output / "study.db")


# `run_search`.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("storage", r'storage \(its study "out"'),
        ("study_name", r'study_name \("out" there, "two" here\)'),
    ],
)
def test_another_study_is_refused(tmp_path, other, difference):
    output = tmp_path / "out"
    first = search(output, max_trials=2)
    before = content(output)
    change = {
        "storage": {"storage": url(tmp_path / "b.db"), "study_name": "out"},
        "study_name": {"study_name": "two"},
    }[other]
    with pytest.raises(ValueError, match=difference) as error:
        search(output, max_trials=2, **change)
    assert isinstance(error.value, SearchMismatchError)
    assert "\n" not in str(error.value)
    assert content(output) == before
    storage = change.get("storage", url(output / "study.db"))
    study = optuna.load_study(study_name=change["study_name"], storage=storage)
    assert study.trials == []
    again = search(output, max_trials=3)
    assert again.trials[:2] == first.trials


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "named"])
def test_a_search_goes_on_in_a_folder_that_was_renamed(tmp_path, name):
    first = search(tmp_path / "out", study_name=name)
    (tmp_path / "out").rename(tmp_path / "moved")
    more = search(tmp_path / "moved", max_trials=2)
    assert more.trials[0] == first.trials[0]
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    os.symlink(tmp_path / "copy", tmp_path / "link")
    for place in ("copy", "link"):
        assert search(tmp_path / place, max_trials=2).trials == more.trials


@pytest.mark.slow
def test_a_search_goes_on_with_a_database_that_was_moved(tmp_path):
    output = tmp_path / "out"
    first = search(output, storage=url(tmp_path / "a.db"))
    (tmp_path / "a.db").rename(tmp_path / "b.db")
    storage = url(tmp_path / "b.db")
    assert (
        search(output, storage=storage, max_trials=2).trials[0]
        == (first.trials[0])
    )
    optuna.copy_study(
        from_study_name="out",
        from_storage=storage,
        to_storage=url(tmp_path / "c.db"),
        to_study_name="out",
    )
    more = search(output, storage=url(tmp_path / "c.db"), max_trials=3)
    assert more.trials[0].score == first.trials[0].score


@pytest.mark.slow
def test_a_copied_study_is_refused_in_the_folder_of_the_original(tmp_path):
    folder, storage = tmp_path / "project", url(tmp_path / "a.db")
    tune(folder, storage, study_name="one")
    optuna.copy_study(
        from_study_name="one",
        from_storage=storage,
        to_storage=storage,
        to_study_name="two",
    )
    first = tune(folder, storage, trials=2, study_name="one")
    before = content(folder)
    with pytest.raises(SearchMismatchError, match='"two".*copy') as error:
        tune(folder, storage, trials=2, study_name="two")
    assert 'study name "one"' in str(error.value)
    assert "\n" not in str(error.value)
    assert content(folder) == before
    again = tune(folder, storage, trials=2, study_name="one")
    assert again.oracle.logical_trials() == first.oracle.logical_trials()


@pytest.mark.slow
def test_a_database_of_another_host_and_password_is_the_same(
    tmp_path, postgresql_url
):
    output = tmp_path / "out"
    first = search(output, storage=postgresql_url)
    other = postgresql_url.replace("127.0.0.1", "localhost").replace(
        "secret", "geheim"
    )
    assert (
        search(output, storage=other, max_trials=2).trials[0]
        == (first.trials[0])
    )
    for data in content(output).values():
        assert b"secret" not in data and b"geheim" not in data
        assert b"127.0.0.1" not in data


@pytest.mark.slow
def test_another_folder_is_refused_and_stays_empty(tmp_path):
    storage = url(tmp_path / "a.db")
    search(tmp_path / "out", storage=storage, study_name="s")
    with pytest.raises(ValueError, match="must reach the same folder"):
        search(tmp_path / "b", storage=storage, study_name="s", max_trials=2)
    assert not content(tmp_path / "b")
    more = search(
        tmp_path / "out", storage=storage, study_name="s", max_trials=2
    )
    assert len(more.trials) == 2


@pytest.mark.slow
def test_a_database_in_the_folder_is_there_before_the_record(tmp_path):
    storage = url(tmp_path / "out" / "own.db")
    with pytest.raises(ValueError, match="finite number of values"):
        search(tmp_path / "out", storage=storage, sampler="grid")
    assert len(search(tmp_path / "out", storage=storage).trials) == 1


# Folders of earlier versions.


@pytest.mark.slow
def test_an_earlier_versions_search_goes_on(tmp_path):
    first = search(tmp_path / "out")
    make_old(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"epochs \(1 there, 2 here\)"):
        search(tmp_path / "moved", epochs=2)
    with pytest.raises(ValueError, match="storage or study_name"):
        search(tmp_path / "moved", study_name="other")
    more = search(tmp_path / "moved", max_trials=2)
    assert more.trials[0] == first.trials[0]


def test_an_earlier_versions_record_without_a_trial_is_claimed_once(tmp_path):
    record = {"format": 1, "token": "old", "identity": {"a": 0}}
    (tmp_path / "search.json").write_text(json.dumps(record))
    studies = [optuna.create_study() for _ in range(4)]
    studies[0].set_user_attr("keras_adamax:output_folder", "old")

    def claim(number):
        # Two settings, and four studies.
        folder = folder_identity.Folder(
            tmp_path, tmp_path / "trials", {"a": number % 2}
        )
        try:
            folder.claim(studies[number % 4])
        except SearchMismatchError as error:
            return str(error)
        return number % 4

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(claim, range(32)))
    winners = {result for result in results if isinstance(result, int)}
    assert len(winners) == 1
    (winner,) = winners
    assert claim(winner) == winner
    assert f"a ({winner % 2} there, " in claim((winner + 1) % 4)
    assert "another study" in claim((winner + 2) % 4)


# Plain `OptunaTuner`.


@pytest.fixture(params=["memory", "journal", "sqlite", "default"])
def make_storage(request, tmp_path):
    """A function that opens, for each name, one storage."""
    opened = {}

    def make(name):
        if request.param == "memory":
            return opened.setdefault(name, InMemoryStorage())
        if request.param == "journal":
            backend = JournalFileBackend(str(tmp_path / f"{name}.log"))
            return JournalStorage(backend)
        if request.param == "sqlite":
            return url(tmp_path / f"{name}.db")
        return None

    return make


@pytest.mark.slow
def test_two_tuners_in_one_folder(tmp_path, make_storage):
    folder = tmp_path / "project"
    first = tune(folder, make_storage("a"))
    before = content(folder)
    with pytest.raises(SearchMismatchError, match="another study"):
        tune(folder, make_storage("b"), study_name="two")
    assert content(folder) == before
    again = tune(folder, make_storage("a"), trials=2)
    trials = again.oracle.logical_trials()
    assert trials[0] == first.oracle.logical_trials()[0]
    again.get_best_models(2)


@pytest.mark.slow
def test_a_tuner_of_one_study_in_another_folder(tmp_path, make_storage):
    storage = make_storage("a")
    if storage is None:
        pytest.skip("the study is in the folder")
    tune(tmp_path / "project", storage)
    with pytest.raises(SearchMismatchError, match="must reach the same folder"):
        tune(tmp_path / "other", make_storage("a"), trials=2)
    assert not content(tmp_path / "other")
    tune(tmp_path / "project", make_storage("a"), trials=2)


@pytest.mark.slow
def test_a_tuner_goes_on_in_the_folder_of_run_search(tmp_path):
    output = tmp_path / "out"
    search(output)
    tuner = OptunaTuner(
        searched.build_model,
        OptunaOracle("val_loss", storage=url(tmp_path / "b.db")),
        directory=output,
        project_name="trials",
    )
    before = content(output)
    with pytest.raises(SearchMismatchError, match="another study"):
        tuner.search(*searched.load_data(), verbose=0)
    assert content(output) == before


@pytest.mark.slow
def test_a_tuners_folder_of_an_earlier_version(tmp_path):
    folder, other = tmp_path / "project", tmp_path / "other"
    for place in (folder, other):
        tune(place, trials=2)
        (place / "search.json").unlink()
        with sqlite3.connect(place / "study.db") as connection:
            connection.execute(
                "DELETE FROM study_user_attributes "
                "WHERE key LIKE 'keras_adamax:output_folder%'"
            )
        connection.close()
    before = content(folder)
    with pytest.raises(SearchMismatchError, match="has no trial 0000"):
        tune(folder, url(tmp_path / "new.db"), trials=3)
    with pytest.raises(SearchMismatchError, match="must reach the same folder"):
        tune(tmp_path / "empty", url(folder / "study.db"), trials=3)
    assert content(folder) == before
    assert len(tune(folder, trials=3).oracle.logical_trials()) == 3
    with pytest.raises(SearchMismatchError, match="another study"):
        tune(folder, url(other / "study.db"), trials=4)


@pytest.mark.slow
def test_a_restored_database_has_forgotten_trials_of_the_folder(
    tmp_path, capsys
):
    database, backup = tmp_path / "a.db", tmp_path / "backup.db"
    tune(tmp_path / "project", url(database))
    shutil.copy(database, backup)
    tune(tmp_path / "project", url(database), trials=2)
    forgotten = content(tmp_path / "project" / "trial_0001")
    assert Path("checkpoint.weights.h5") in forgotten
    tuner = tune(tmp_path / "project", url(backup), trials=2)
    assert [t.state for t in tuner.oracle.logical_trials()] == (
        ["completed"] * 2
    )
    # The trial that the original database knows keeps its weights.
    (aside,) = (tmp_path / "project").glob("set_aside_trial_0001_*")
    assert content(aside) == forgotten
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and aside.name in said
    # What has no weights is not worth a folder.
    (tmp_path / "project" / "trial_0002").mkdir()
    (tmp_path / "project" / "trial_0002" / "history.csv").write_text("a")
    tuner = tune(tmp_path / "project", url(backup), trials=3)
    assert len(tuner.oracle.logical_trials()) == 3
    assert not list((tmp_path / "project").glob("set_aside_trial_0002*"))


# Several commands at once.


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="processes are the same on every backend",
)
@pytest.mark.parametrize(
    "workers",
    [1, pytest.param(2, marks=(pytest.mark.slow, pytest.mark.nightly))],
)
def test_of_two_commands_that_differ_one_is_refused(tmp_path, workers):
    def start(output, epochs):
        command = [
            *(sys.executable, "-m", "keras_adamax_tuning.cli"),
            "tests.tuning.searched:build_model",
            "--data=tests.tuning.searched:load_data",
            "--space=tests.tuning.searched:SPACE",
            *("--sampler=random", "--seed=0", "--max-trials=1"),
            f"--workers={workers}",
            f"--output={output}",
            f"--epochs={epochs}",
        ]
        return subprocess.Popen(
            command,
            env=os.environ
            | {
                "KERAS_BACKEND": "jax",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(
                    [str(ROOT), str(ROOT / "tuning")]
                ),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for number in range(2 if workers == 1 else 1):
        output = tmp_path / f"out{number}"
        both = [start(output, epochs) for epochs in (1, 2)]
        printed = [process.communicate(timeout=300)[0] for process in both]
        codes = [process.returncode for process in both]
        assert sorted(codes) == [0, 2], printed
        loser = codes.index(2)
        there, here = (2, 1) if loser == 0 else (1, 2)
        assert f"epochs ({there} there, {here} here)" in printed[loser]
        assert "Traceback" not in printed[loser]
        study = optuna.load_study(
            study_name=output.name, storage=url(output / "study.db")
        )
        for trial in study.trials:
            assert len(trial.intermediate_values) == there


def test_of_many_claims_with_different_settings_one_wins(tmp_path):
    """Many more rounds than with commands, at the same instant."""
    for number in range(10):
        output = tmp_path / str(number)
        studies = [optuna.create_study() for _ in range(2)]

        def claim(which, output=output, studies=studies):
            folder = folder_identity.Folder(
                output, output / "trials", {"epochs": which // 2}
            )
            try:
                folder.claim(studies[which % 2])
            except SearchMismatchError as error:
                return str(error)
            return which

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(claim, [0, 1, 2, 3] * 4))
        winners = {result for result in results if isinstance(result, int)}
        assert len(winners) == 1, results
