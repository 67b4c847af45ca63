"""The examples of searches run as a user would run them, with tiny sizes."""

import collections
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped

ROOT = Path(__file__).parent.parent.parent


def run(script, *arguments, folder):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / script),
            f"--backend={keras.backend.backend()}",
            *arguments,
        ],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")]),
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_search_digits(tmp_path):
    printed = run(
        "search_digits.py",
        *("--trials=1", "--epochs=1", "--output=found"),
        folder=tmp_path,
    )
    assert "1 of 1 done" in printed
    assert "This is the recorded score." in printed
    accuracy = re.search(r"accuracy (\d\.\d+)", printed)
    assert accuracy and float(accuracy[1]) > 0.1
    config = json.loads((tmp_path / "found/best_optimizer.json").read_text())
    assert isinstance(
        keras.saving.deserialize_keras_object(config), AdamaxClipped
    )


@pytest.mark.nightly
@pytest.mark.slow
def test_search_digits_of_the_users_own(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz",
        x_train=rng.normal(size=(40, 5)).astype("float32"),
        y_train=np.arange(40) % 3,
        x_val=rng.normal(size=(9, 5)).astype("float32"),
        y_val=np.arange(9) % 3,
    )
    printed = run(
        "search_digits.py",
        *("--trials=1", "--epochs=1", "--data=mine.npz"),
        folder=tmp_path,
    )
    assert "This is the recorded score." in printed
    assert (tmp_path / "search_output" / "best.keras").exists()


@pytest.mark.nightly
@pytest.mark.slow
def test_search_schedules(tmp_path):
    printed = run(
        "search_schedules.py", *("--trials=6", "--epochs=1"), folder=tmp_path
    )
    assert "6 of 6 done" in printed
    with open(tmp_path / "search_schedules_output" / "trials.csv") as file:
        trials = list(csv.DictReader(file))
    chosen = collections.Counter(t["learning_rate_schedule"] for t in trials)
    kinds = re.search(r"Trials of each kind: (\{.*\})", printed)
    assert kinds and json.loads(kinds[1].replace("'", '"')) == chosen
    assert len(chosen) > 1
    # What a trial has beside its kind is of that kind.
    for trial in trials:
        for kind in ("cosine", "exponential"):
            parts = [
                value
                for name, value in trial.items()
                if name.startswith(f"learning_rate_{kind}_")
            ]
            is_chosen = trial["learning_rate_schedule"] == kind
            assert parts and all(bool(part) == is_chosen for part in parts)
    assert "The best learning rate:" in printed
    assert "This is the recorded score." in printed
