"""The benchmarks of searches run, and compare what they say.

What they find out is no matter of tests: it depends on the machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="nothing in them depends on the backend: JAX, whose processes "
    "start fastest, stands for all",
)


def run(name, folder):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick"]
        + ["--check", "--output", folder],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")])},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = folder.glob("*.json")
    assert str(file) in done.stdout
    return json.loads(file.read_text("utf-8"))


def test_workers(tmp_path):
    results = run("search_workers", tmp_path)
    [times] = results["seconds"]
    assert set(times) == {
        "one worker, all cores",
        "one worker, one thread",
        "two workers",
    }
    assert all(t["trials"] > 0 and t["rest"] > 0 for t in times.values())
    one, two = times[results["compared"]], times["two workers"]
    assert results["ratios"] == [one["trials"] / two["trials"]]
    assert one["trials"] == min(
        t["trials"] for arm, t in times.items() if arm != "two workers"
    )


def test_overhead(tmp_path):
    results = run("search_overhead", tmp_path)
    [ours], [optuna] = results["seconds_a_trial"].values()
    assert results["ratios"] == [ours / optuna]
    assert ours > 0 and optuna > 0


def test_comparison(tmp_path):
    results = run("search_comparison", tmp_path)
    assert set(results["searches"]) == {
        "AdamaxClipped",
        "keras.optimizers.Adamax",
        "Adam, global_clipnorm",
    }
    for [search] in results["searches"].values():
        assert len(search["scores"]) == 2 and search["failed"] == 0
        assert search["best"] == max(search["scores"])
        assert 0 <= search["test"] <= 1
