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
import yaml

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


def test_search_digits(tmp_path):
    printed = run(
        "search_digits.py",
        *("--trials=2", "--epochs=1", "--output=found"),
        folder=tmp_path,
    )
    assert "2 of 2 done" in printed
    assert "This is the recorded score." in printed
    accuracy = re.search(r"accuracy (\d\.\d+)", printed)
    assert accuracy and float(accuracy[1]) > 0.1
    config = json.loads((tmp_path / "found/best_optimizer.json").read_text())
    assert isinstance(
        keras.saving.deserialize_keras_object(config), AdamaxClipped
    )


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


def blocks(language, *, file="search.md"):
    text = (ROOT / "docs" / file).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_guides_shell_and_kubernetes_examples_are_well_formed():
    scripts = blocks("sh")
    assert any("#SBATCH" in script for script in scripts)
    for script in scripts:
        done = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (manifest,) = blocks("yaml")
    documents = list(yaml.safe_load_all(manifest))
    assert {document["kind"] for document in documents} >= {"Job"}
    for document in documents:
        assert document["metadata"]["name"]


def test_the_guides_options_exist():
    from keras_adamax_tuning.cli import _parser

    known = set(_parser()._option_string_actions)
    for file in ("docs/search.md", "README.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        commands = re.findall(r"keras-adamax-tune (?:[^`\n]|\\\n)*", text)
        assert commands
        used = {o for c in commands for o in re.findall(r"--[a-z-]+", c)}
        assert used <= known


@pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="the examples above run on every backend",
)
def test_the_guides_code_runs(tmp_path):
    (tmp_path / "models.py").write_text(
        "\n".join(b for b in blocks("python") if "# models.py" in b)
    )
    code = "\n".join(
        block for block in blocks("python") if "# models.py" not in block
    )
    code = code.replace("max_trials=40", "max_trials=1").replace(
        "max_trials=20", "max_trials=1"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
