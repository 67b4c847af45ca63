"""SIGKILL and SIGSTOP at random moments; more of them in `.ci/nightly`."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

SCRIPT = Path(__file__).parents[1] / "kill_search.py"

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "jax",
        reason="the record does not depend on the backend: JAX, whose "
        "processes start fastest, stands for all",
    ),
    pytest.mark.skipif(
        not hasattr(os, "fork"), reason="workers are forks of one process"
    ),
]


def kill(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 faults" in done.stdout


@pytest.mark.nightly
@pytest.mark.slow
def test_one_killed_worker_loses_nothing_and_proposes_the_same():
    kill(
        *("--kills", "6", "--workers", "1"),
        # TPE proposes at random until it has 10.
        *("--trials", "13", "--longest", "1"),
    )


@pytest.mark.nightly
@pytest.mark.slow
def test_two_workers_that_are_killed_lose_nothing(postgresql_url):
    kill(
        *("--kills", "6", "--workers", "2", "--trials", "10", "--longest", "1"),
        *("--storage", postgresql_url, "--seed", "1"),
    )


@pytest.mark.nightly
@pytest.mark.slow
def test_two_workers_that_stall_lose_nothing():
    """Some for so long that another worker takes their trial."""
    kill(
        *("--stall", "--kills", "4", "--workers", "2"),
        *("--trials", "8", "--longest", "1"),
    )
