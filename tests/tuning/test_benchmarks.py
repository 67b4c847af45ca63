"""The benchmarks of searches run, and compare what they say.

What they find out is no matter of tests: it depends on the machine.
"""

import keras
import pytest

from tests.benchmark_runs import run

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="nothing in them depends on the backend: JAX, whose processes "
    "start fastest, stands for all",
)


@pytest.mark.nightly
@pytest.mark.slow
def test_workers(tmp_path):
    _, results = run("search_workers.py", tmp_path, "--check")
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


@pytest.mark.nightly
@pytest.mark.slow
def test_overhead(tmp_path):
    _, results = run("search_overhead.py", tmp_path, "--check")
    [ours], [optuna] = results["seconds_a_trial"].values()
    assert results["ratios"] == [ours / optuna]
    assert ours > 0 and optuna > 0


@pytest.mark.nightly
@pytest.mark.slow
def test_comparison(tmp_path):
    _, results = run("search_comparison.py", tmp_path, "--check")
    assert set(results["searches"]) == {
        "AdamaxClipped",
        "keras.optimizers.Adamax",
        "Adam, global_clipnorm",
    }
    for [search] in results["searches"].values():
        assert len(search["scores"]) == 2 and search["failed"] == 0
        assert search["best"] == max(search["scores"])
        assert 0 <= search["test"] <= 1
