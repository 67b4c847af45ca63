import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped
from keras_adamax_tuning import SearchResult
from keras_adamax_tuning.results import result_files
from keras_adamax_tuning.results.progress import Progress, duration
from keras_adamax_tuning.study.trials import best_of
from tests.tuning.synthetic import make_search, make_trial


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def describe(trials, objective="v", direction="min", count=5):
    """The table of the best trials."""
    result = SearchResult(Path(), objective, direction, tuple(trials))
    return result.describe(count)


def test_trials_csv_has_one_row_for_each_trial(tmp_path):
    trials, _ = make_search(30)
    path = tmp_path / "trials.csv"
    result_files.write_trials(list(reversed(trials)), path)
    rows = read_csv(path)
    assert [int(row["number"]) for row in rows] == list(range(30))
    assert len(path.read_text().splitlines()) == 31
    for row, trial in zip(rows, trials, strict=True):
        assert row["state"] == trial.state
        assert row["score"] == ("" if trial.score is None else str(trial.score))
        for name in trials[0].hyperparameters:
            value = trial.hyperparameters.get(name, "")
            assert row[name] == str(value)
        assert row["attempts"] == "1"
        assert float(row["seconds"]) == trial.seconds


def test_trials_csv_keeps_awkward_names_texts_and_metrics_apart(tmp_path):
    trials = [
        make_trial(
            0,
            score=0.1,
            hyperparameters={"score": 3, "a,b": 'x"y'},
            metrics={"clip_rate": 0.25, "val_mae": 1.5, "state": 2.0},
            attempts=3,
        ),
        make_trial(1, "failed", reason="one\nand, two", epoch=1),
    ]
    path = tmp_path / "trials.csv"
    result_files.write_trials(trials, path)
    first, second = read_csv(path)
    assert first["score"] == "0.1" and first["hyperparameter:score"] == "3"
    assert first["a,b"] == 'x"y' and first["attempts"] == "3"
    assert first["clip_rate"] == "0.25" and first["val_mae"] == "1.5"
    assert first["state"] == "completed"
    assert second["reason"] == "one and, two" and second["score"] == ""
    assert len(path.read_text().splitlines()) == 3


def test_a_trial_is_not_written_twice(tmp_path):
    with pytest.raises(ValueError, match="a number of its own"):
        result_files.write_trials(
            [make_trial(0), make_trial(0)], tmp_path / "x"
        )
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "best.keras"
    path.write_bytes(b"old")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])

    def save(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save", save)
    with pytest.raises(OSError, match="disk full"):
        result_files.write_best_model(model, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["best.keras"]


def test_best_optimizer_is_strict_json_and_loads(tmp_path):
    path = tmp_path / "best_optimizer.json"
    optimizer = AdamaxClipped(
        learning_rate=keras.optimizers.schedules.CosineDecay(0.01, 100),
        clip_multiplier=1.5,
    )
    result_files.write_best_optimizer(optimizer, path)
    config = json.loads(path.read_text(), parse_constant=pytest.fail)
    loaded = keras.saving.deserialize_keras_object(config)
    assert isinstance(loaded, AdamaxClipped)
    assert loaded.get_config() == optimizer.get_config()


def test_table_shows_the_best_and_what_varied():
    trials = [
        make_trial(
            number,
            score=score,
            hyperparameters={"rate": score * 2, "same": 1}
            | ({"part": "x"} if number else {}),
            metrics={"clip_rate": 0.5},
        )
        for number, score in enumerate([3.0, 1.0, 2.0])
    ]
    trials.append(make_trial(3, "failed"))
    lines = describe(trials, "val_loss").splitlines()
    cells = [line.split() for line in lines]
    assert cells[0] == ["trial", "1", "2", "0"]
    assert cells[1] == ["val_loss", "1", "2", "3"]
    assert ["rate", "2", "4", "6"] in cells
    assert ["part", "x", "x", "-"] in cells
    # Trials 3 has no "same": it varied in that.
    assert describe(trials[:3], direction="max", count=1).split()[:4] == [
        "trial",
        "0",
        "v",
        "3",
    ]
    assert "same" not in describe(trials[:3])
    assert describe(trials[3:]) == "No trial has completed."
    long = describe(make_search(40)[0], "val_loss")
    assert max(map(len, long.splitlines())) < 150


def test_table_shows_what_the_user_typed():
    trials = [
        make_trial(
            number,
            score=1.0,
            hyperparameters={
                "one_minus_beta_2": distance,
                "clip_multiplier_minus_1": 0.25,
            },
        )
        for number, distance in enumerate([1.3e-4, 0.01])
    ]
    trials.append(make_trial(2, score=2.0))
    cells = [line.split() for line in describe(trials).splitlines()]
    assert ["beta_2", "0.99987", "0.99", "-"] in cells
    assert ["clip_multiplier", "1.25", "1.25", "-"] in cells


def test_best_of_is_the_first_of_equal_scores():
    trials = [make_trial(i, score=s) for i, s in enumerate([2, 1, 1, 3, 3])]
    trials += [make_trial(5, "pruned", 0.0), make_trial(6, "running")]
    assert best_of(trials, "min").number == 1
    assert best_of(trials, "max").number == 3
    assert best_of(trials[5:], "max") is None


class Terminal:
    """Text, with what a line of a terminal shows in the end."""

    def __init__(self, tty):
        self.text = ""
        self.tty = tty

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("tty", [False, True])
def test_progress_prints_each_trial_once(tty):
    out = Terminal(tty)
    progress = Progress(4, "min", workers=1, stream=out)
    progress.update([])
    assert out.text.startswith("a new search of 4 trials\n")
    trials = [make_trial(0, "running")]
    progress.update(trials)
    trials[0] = make_trial(0, score=0.5, seconds=30.0)
    trials.append(make_trial(1, "running"))
    progress.update(trials)
    progress.update(trials)
    trials[1] = make_trial(1, "failed", seconds=30.0)
    trials.append(make_trial(2, score=0.25, seconds=60.0))
    progress.update(trials)
    progress.close()
    lines = [line.rpartition("\r")[2] for line in out.text.split("\n")]
    assert lines[1:4] == [
        "trial 0: 0.5 in 30 s | 1 of 4 done | best 0.5 (trial 0) | "
        "about 2 min left",
        "trial 1: failed in 30 s (it broke) | 3 of 4 done | best 0.25 "
        "(trial 2) | about 40 s left",
        "trial 2: 0.25 in 60 s | 3 of 4 done | best 0.25 (trial 2) | "
        "about 40 s left",
    ]
    assert ("\r" in out.text) == tty


def test_progress_of_a_trial_that_the_user_added():
    out = Terminal(False)
    progress = Progress(2, "min", stream=out)
    progress.update([])
    progress.update([make_trial(0, score=None)])
    assert out.text.splitlines()[1] == (
        "trial 0: completed in 2 s | 1 of 2 done | about 2 s left"
    )


def test_progress_of_several_workers_and_of_a_resumed_search():
    out = Terminal(False)
    progress = Progress(10, "max", workers=4, stream=out)
    done = [make_trial(i, score=float(i), seconds=60.0) for i in range(2)]
    progress.update([*done, make_trial(2, "running")])
    assert out.text == (
        "going on with a search: 2 of 10 done | best 1 (trial 1) | about "
        "2 min left\n"
    )


def test_a_search_that_has_attempts_is_no_new_one():
    out = Terminal(False)
    Progress(10, "max", stream=out).update([make_trial(0, "running")])
    assert out.text == "going on with a search: 0 of 10 done\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (89, "89 s"), (95, "2 min"), (5400, "1 h 30 min")]
    + [(7200, "2 h"), (100 * 3600, "100 h")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_scores_of_numpy_are_written_to_the_last_digit(tmp_path):
    score = float(np.nextafter(0.1, 1))
    result_files.write_trials([make_trial(0, score=score)], tmp_path / "t.csv")
    (row,) = read_csv(tmp_path / "t.csv")
    assert float(row["score"]) == score


def test_trials_that_run_are_not_among_those_that_failed_or_not():
    trials = [make_trial(0, "failed"), make_trial(1), make_trial(2, "running")]
    said = SearchResult(Path(), "v", "min", tuple(trials)).describe_failures()
    assert said is not None and said.startswith("1 of 2 trials failed, 1 of")
