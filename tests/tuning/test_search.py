import csv
import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import wsgiref.util
from pathlib import Path

import keras
import numpy as np
import optuna
import pytest

from keras_adamax import AdamaxClipped
from keras_adamax_tuning import OptunaOracle, StorageError, run_search
from keras_adamax_tuning.results.result_files import write_trials
from keras_adamax_tuning.running.data import as_data, load_npz
from keras_adamax_tuning.running.settings import Settings
from keras_adamax_tuning.space.replaced_optimizer import (
    ReplacedOptimizerWarning,
)
from keras_adamax_tuning.study import folder_identity
from tests.tuning import searched

ROOT = Path(__file__).parent.parent.parent
ARGUMENTS = {
    "space": searched.SPACE,
    "max_trials": 3,
    "epochs": 1,
    "sampler": "random",
    "seed": 0,
    "verbose": False,
}


def search(output, **changes):
    arguments = {"data": searched.load_data(), **ARGUMENTS, **changes}
    builder = arguments.pop("build_model", searched.build_model)
    return run_search(builder, output=output, **arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A search that is over; tests may look at it, not change it."""
    return search(tmp_path_factory.mktemp("done") / "search")


@pytest.mark.slow
def test_results_belong_together(done):
    output = done.output
    assert [trial.state for trial in done.trials] == ["completed"] * 3
    best = done.best_trial
    assert best.score == min(trial.score for trial in done.trials)
    with open(output / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [
        trial.score for trial in done.trials
    ]
    for row in rows:
        assert 0 <= float(row["clip_rate"]) <= 1
        assert float(row["weight_delta"]) > 0
        assert float(row["learning_rate"]) > 0

    data = as_data(searched.load_data())
    model = done.load_best_model()
    loss = model.evaluate(*data.validation_data, verbose=0)[0]
    assert loss == pytest.approx(best.score, rel=1e-6)
    assert isinstance(model.optimizer, AdamaxClipped)
    assert int(model.optimizer.iterations) == 1

    optimizer = done.load_best_optimizer()
    assert optimizer.built is False
    rate = best.hyperparameters["learning_rate"]
    assert optimizer.get_config()["learning_rate"] == pytest.approx(rate)
    assert optimizer.get_config()["clip_epsilon"] == 1e-3

    names = sorted(path.name for path in (output / "figures").iterdir())
    assert names == [
        "hyperparameters.png",
        "importance.png",
        "parallel_coordinates.png",
        "scores.png",
    ]
    assert "trial" in done.describe() and f"{best.score:.6g}" in done.describe()
    assert not [path for path in output.iterdir() if path.name[0] == "."]


@pytest.mark.slow
def test_the_study_can_be_opened_by_optuna(done):
    study = optuna.load_study(
        study_name="search", storage=f"sqlite:///{done.output / 'study.db'}"
    )
    assert study.best_value == done.best_trial.score
    assert len(study.trials) == 3


@pytest.mark.slow
def test_the_dashboard_opens_the_study(done):
    dashboard = pytest.importorskip("optuna_dashboard")
    app = dashboard.wsgi(f"sqlite:///{done.output / 'study.db'}")
    request = {"PATH_INFO": "/api/studies"}
    wsgiref.util.setup_testing_defaults(request)
    answer = b"".join(app(request, lambda *_: None))
    (study,) = json.loads(answer)["study_summaries"]
    assert study["study_name"] == "search"


def test_the_same_call_goes_on_and_a_larger_number_extends(tmp_path, done):
    first = search(tmp_path / "out", max_trials=2)
    again = search(tmp_path / "out", max_trials=2)
    assert again.trials == first.trials
    more = search(tmp_path / "out", max_trials=3)
    assert more.trials[:2] == first.trials
    # The search that was not interrupted has the same proposals and scores.
    for mine, other in zip(more.trials, done.trials, strict=True):
        assert mine.hyperparameters == other.hyperparameters
        assert mine.score == pytest.approx(other.score, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": searched.OTHER_SPACE}, "learning_rate"),
        ({"objective": "val_mae"}, "objective"),
        ({"objective": "val_loss", "direction": "max"}, "objective"),
        ({"data": searched.other_data()}, "data: y"),
        ({"epochs": 2}, r"epochs \(1 there, 2 here\)"),
        ({"batch_size": [8, 16]}, "batch_size"),
        ({"sampler": "tpe"}, r'sampler \("random" there, "tpe" here\)'),
        ({"seed": 1}, "seed"),
        ({"pruner": "median"}, "pruner"),
        ({"executions_per_trial": 2}, "executions_per_trial"),
        ({"build_model": lambda hp: searched.build_model(hp)}, "build_model"),
    ],
    ids=lambda case: str(case)[:40],
)
def test_a_folder_of_another_search_is_refused(done, changes, words):
    before = (done.output / "search.json").read_text()
    with pytest.raises(ValueError, match=f"another search.*{words}") as error:
        search(done.output, **changes)
    assert "Choose another output folder" in str(error.value)
    assert "\n" not in str(error.value)
    assert (done.output / "search.json").read_text() == before


def test_arguments_that_were_wrong_can_be_mended_before_the_first_trial(
    tmp_path,
):
    with pytest.raises(ValueError, match="finite number of values"):
        search(tmp_path / "out", sampler="grid", max_trials=1)
    assert len(search(tmp_path / "out", max_trials=1).trials) == 1


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="thesis.tex.*Choose another"):
        search(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ('{"format": 1}', "KeyError"),
        ('{"format": 9, "token": "", "identity": {}}', "another version"),
    ],
)
def test_a_damaged_record_is_an_error(tmp_path, text, words):
    (tmp_path / "search.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        search(tmp_path)


@pytest.mark.slow
def test_all_workers_must_reach_one_folder(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    common = {"storage": storage, "study_name": "shared", "max_trials": 1}
    search(tmp_path / "a", **common)
    with pytest.raises(ValueError, match="'shared'.*same folder") as error:
        search(tmp_path / "b", **common)
    assert "\n" not in str(error.value)
    assert len(search(tmp_path / "a", **common).trials) == 1
    # A copy of the folder's record is the folder, as on a shared file system.
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "search.json").write_bytes(
        (tmp_path / "a" / "search.json").read_bytes()
    )
    study = optuna.load_study(study_name="shared", storage=storage)
    folder_identity.Folder(tmp_path / "c", tmp_path / "c", None).claim(study)


def test_a_folder_that_is_lost_in_mid_search_stops_it(tmp_path):
    storage = f"sqlite:///{tmp_path / 'shared.db'}"

    def steal(trial, hp, folder):
        # As if another first worker, elsewhere, had written last.
        study = optuna.load_study(study_name="out", storage=storage)
        study.set_user_attr("keras_adamax:output_folder", "another")
        return []

    with pytest.raises(ValueError, match="same folder"):
        search(tmp_path / "out", storage=storage, callbacks_factory=steal)
    study = optuna.load_study(study_name="out", storage=storage)
    complete = optuna.trial.TrialState.COMPLETE
    assert len(study.get_trials(states=[complete])) == 1


def test_many_processes_create_one_record(tmp_path):
    # Threads take turns anywhere, which is worse than processes.
    from concurrent.futures import ThreadPoolExecutor

    study = optuna.create_study(study_name="out")

    def claim(_):
        folder_identity.Folder(
            tmp_path / "out", tmp_path / "out" / "trials", {"a": 1}
        ).claim(study)
        return study.user_attrs["keras_adamax:output_folder"]

    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(claim, range(32)))
    assert len(set(tokens)) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [
        "search.json"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "interrupt",
    [
        searched.interrupt_second,
        pytest.param(searched.terminate_second, marks=pytest.mark.slow),
    ],
)
def test_a_signal_puts_the_trial_back(tmp_path, done, interrupt):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "out", callbacks_factory=interrupt, max_trials=2)
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert after == before
    resumed = search(tmp_path / "out", max_trials=2)
    assert [trial.attempts for trial in resumed.trials] == [1, 2]
    for mine, other in zip(resumed.trials, done.trials[:2], strict=True):
        assert mine.hyperparameters == other.hyperparameters
        assert mine.score == pytest.approx(other.score, rel=1e-6)


@pytest.mark.slow
def test_the_users_own_fit_is_searched(tmp_path):
    given = {
        "build_model": searched.OwnFit(),
        "objective": "score",
        "direction": "max",
    }
    result = search(tmp_path / "out", **given)
    assert result.best_trial.score > 0
    assert all(trial.state == "completed" for trial in result.trials)
    # The recorders reached its `model.fit`.
    for trial in result.trials:
        folder = tmp_path / "out" / "trials" / f"trial_{trial.trial_id}"
        assert (folder / "history.csv").exists()
        assert trial.metrics["weight_delta"] > 0
    # Another instance is the same search, and another class is not.
    again = search(
        tmp_path / "out", **given | {"build_model": searched.OwnFit()}
    )
    assert again.trials == result.trials
    with pytest.raises(ValueError, match="build_model.*OwnEpochs"):
        search(
            tmp_path / "out", **given | {"build_model": searched.OwnEpochs()}
        )


@pytest.mark.slow
def test_the_users_own_fit_may_set_the_epochs(tmp_path):
    builder = searched.OwnEpochs()
    with pytest.raises(ValueError, match="Give epochs=None to `run_search`"):
        search(tmp_path / "a", build_model=builder)
    result = search(tmp_path / "b", build_model=builder, epochs=None)
    path = next((tmp_path / "b").glob("trials/*/history.csv"))
    assert len(path.read_text().splitlines()) == 1 + 2
    assert result.best_trial.state == "completed"


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow is used there"
)
def test_no_trial_waits_for_the_import_of_tensorflow(tmp_path):
    pytest.importorskip("tensorflow")
    script = f"""
import sys
from tests.tuning import searched
from keras_adamax_tuning import run_search

def callbacks(trial, hp, folder):
    assert "tensorflow" not in sys.modules
    return []

run_search(
    searched.build_model, searched.load_data, space=searched.SPACE,
    max_trials=1, epochs=1, callbacks_factory=callbacks, verbose=False,
    output={str(tmp_path / "out")!r},
)
import keras
import tensorflow as tf

# Keras finds it afterwards, and seeds it where it is imported.
layer = keras.layers.StringLookup(vocabulary=["a"])
keras.utils.set_random_seed(1)
first = float(tf.random.uniform(()))
keras.utils.set_random_seed(1)
assert float(tf.random.uniform(())) == first
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tuning'}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "trials.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["state"] == "completed", row["reason"]


def test_arguments_have_the_defaults_of_the_settings():
    given = inspect.signature(run_search).parameters
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    assert set(fields) - {"compilations"} == set(given) - {"verbose"}
    for name in set(given) - {"verbose", "build_model", "data", "output"}:
        assert given[name].default == fields[name].default, name


def test_the_best_model_is_the_one_that_was_trained(tmp_path):
    built = []

    def build(hp):
        built.append(hp)
        return searched.build_model(hp)

    result = search(tmp_path / "out", build_model=build, max_trials=1)
    # For the look at the data, for the space, and for the trial.
    assert len(built) == 3
    assert result.load_best_model().optimizer.iterations == 1


def test_the_study_is_compared_once_before_it_is_begun(tmp_path, monkeypatch):
    calls = []

    def check(oracle, check=OptunaOracle.check_search):
        calls.append(oracle)
        check(oracle)

    monkeypatch.setattr(OptunaOracle, "check_search", check)
    search(tmp_path / "out", max_trials=1)
    assert len(calls) == 1


def test_what_is_searched_in_vain_is_said_once(tmp_path):
    with pytest.warns(ReplacedOptimizerWarning) as caught:
        search(
            tmp_path / "out",
            build_model=searched.varies_in_vain,
            max_trials=1,
        )
    kinds = [warning.category for warning in caught]
    assert kinds.count(ReplacedOptimizerWarning) == 1


def test_tensorboard_gets_a_folder(tmp_path):
    search(tmp_path / "out", tensorboard=True, max_trials=1)
    assert list((tmp_path / "out" / "tensorboard").rglob("*tfevents*"))


def test_failed_trials_are_recorded_and_are_no_result(tmp_path):
    result = search(
        tmp_path / "out", callbacks_factory=searched.fail, max_trials=2
    )
    assert result.best_trial is None
    assert [trial.state for trial in result.trials] == ["failed"] * 2
    assert "No trial has completed" in result.describe()
    text = (tmp_path / "out" / "trials.csv").read_text()
    assert text.count("RuntimeError: it broke") == 2
    assert not (tmp_path / "out" / "best.keras").exists()


@pytest.mark.slow
def test_a_read_only_database_is_one_line(tmp_path):
    path = tmp_path / "study.db"
    search(tmp_path / "out", storage=f"sqlite:///{path}", max_trials=1)
    uri = f"sqlite:///file:{path}?mode=ro&uri=true"
    with pytest.raises(StorageError, match="read-only|readonly") as error:
        search(tmp_path / "out", storage=uri, max_trials=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"build_model": searched.nothing}, "must return a keras.Model"),
        ({"build_model": "models:build"}, "`build_model` must be a function"),
        ({"data": searched.wide_data()}, r"does not take the data.*\(5,\)"),
        ({"data": None}, "`data` must be"),
        ({"objective": "val_accuracy"}, "in the logs of `fit`: loss, mae"),
        ({"objective": "my_metric"}, "`direction` must be given"),
        ({"objective": ["val_loss", "val_mae"]}, "name of one metric"),
        ({"direction": "up"}, '"min", "max" or None'),
        ({"space": "space"}, "`space` must be an AdamaxClippedSpace"),
        ({"workers": 0}, "`workers` must be an integer >= 1"),
        ({"max_trials": 0}, "`max_trials`"),
        ({"epochs": 0}, "`epochs`"),
        ({"batch_size": (64, 8)}, "batch_size"),
        ({"executions_per_trial": 0}, "`executions_per_trial`"),
        ({"validation_split": 1.0}, "`validation_split`"),
        ({"sampler": "best"}, "`sampler`"),
        ({"pruner": "best"}, "`pruner`"),
        ({"seed": -1}, "`seed`"),
        ({"storage": 3}, "`storage` must be the URL"),
    ],
    ids=lambda case: str(case)[:40],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_wrong_use_is_found_before_the_first_trial(
    tmp_path, changes, words, workers
):
    if workers > 1 and ("build_model" in changes or "data" in changes):
        pytest.skip("found in the workers: see test_workers.py")
    if workers > 1 and words.startswith("in the logs"):
        pytest.skip("found in the workers: see test_workers.py")
    with pytest.raises((ValueError, TypeError), match=words) as error:
        search(tmp_path / "out", **({"workers": workers} | changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "trials").exists()


# The data.

X = np.arange(60, dtype="float32").reshape(20, 3)
Y = np.arange(20)


def test_all_forms_of_data_are_the_same(tmp_path):
    names = {"x_train": X[:15], "y_train": Y[:15], "x_val": X[15:]}
    names["y_val"] = Y[15:]
    test_names = {
        name.replace("val", "test"): value for name, value in names.items()
    }
    np.savez(tmp_path / "data.npz", **names)
    forms = [
        ((X[:15], Y[:15]), (X[15:], Y[15:])),
        [[X[:15], Y[:15]], [X[15:], Y[15:]]],
        names,
        test_names,
        names | {"x_test": X, "y_test": Y},
        tmp_path / "data.npz",
        str(tmp_path / "data.npz"),
        lambda: names,
    ]
    prints = []
    for form in forms:
        data = as_data(form)
        np.testing.assert_array_equal(data.x, X[:15])
        np.testing.assert_array_equal(data.validation_data[1], Y[15:])
        prints.append(data.fingerprint())
    assert all(one == prints[0] for one in prints)


def test_the_split_is_random_complete_and_always_the_same():
    first, second = as_data((X, Y), 0.25), as_data({"x": X, "y": Y}, 0.25)
    assert first.fingerprint() == second.fingerprint()
    x_val, y_val = first.validation_data
    assert len(y_val) == 5 and y_val.tolist() != [15, 16, 17, 18, 19]
    np.testing.assert_array_equal(np.sort(np.append(first.y, y_val)), Y)
    np.testing.assert_array_equal(X[y_val], x_val)
    np.testing.assert_array_equal(X[first.y], first.x)


def test_several_inputs_and_lists():
    data = as_data(({"a": X, "b": Y}, Y.tolist()))
    assert {name: len(part) for name, part in data.x.items()} == {
        "a": 16,
        "b": 16,
    }
    assert set(data.fingerprint()) == {
        *("x[0]", "x[1]", "y", "x_val[0]", "x_val[1]", "y_val")
    }


class Dataset(keras.utils.PyDataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return X, Y


def test_datasets_are_passed_on():
    train = Dataset()
    data = as_data((train, Dataset()))
    assert data.x is train and data.y is None and not data.is_arrays
    assert data.fingerprint()["x"] == "Dataset of length 7"


def test_the_fingerprint_sees_every_value_and_the_type():
    known = {str(as_data((X, Y)).fingerprint())}
    for x, y in ((X + 1e-3, Y), (X, Y[::-1]), (X.astype("float64"), Y)):
        known.add(str(as_data((x, y)).fingerprint()))
    assert len(known) == 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X, "`data` must be"),
        ((X,), "of length 1"),
        ((X, Y, X, Y), "of length 4"),
        ({"x": X}, "Received: x."),
        ({}, "Received: nothing"),
        ((X, Y[:-1]), r"same number of rows.*\(20, 3\), \(19,\)"),
        ((X[:0], Y[:0]), "at least one"),
        (((X, Y), (X[:, :2], Y)), r"A row of x.*\(3,\) and \(2,\)"),
        (((X, Y), (X, Y.reshape(-1, 1))), "A row of y"),
        (((X, Y), (X, Y[1:])), "validation data"),
        ((np.array([[1], [1, 2]], dtype=object), Y), "Python objects"),
        ((X, None), "Python objects|single value"),
        ((X[:1], Y[:1]), "rows on both sides"),
    ],
    ids=lambda case: str(case)[:20],
)
def test_wrong_data(data, words):
    with pytest.raises((ValueError, TypeError), match=words) as error:
        as_data(data)
    assert "Received" in str(error.value)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "whole.npz", x=X, y=Y)
    whole = (tmp_path / "whole.npz").read_bytes()
    for number, content in enumerate((b"", b"text", whole[:-30])):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as .npz"):
            load_npz(path)
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object))
    with pytest.raises(ValueError, match="without object arrays"):
        load_npz(tmp_path / "objects.npz")


def test_csv_of_a_real_search_matches_its_trials(done, tmp_path):
    write_trials(done.trials, tmp_path / "trials.csv")
    assert (tmp_path / "trials.csv").read_bytes() == (
        done.output / "trials.csv"
    ).read_bytes()
