"""Two processes that train one model together, on one machine.

A step has a NaN and another is a spike, both in the second process's half of
the batch: no process may apply them.
"""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_adamax import record_files
from tests.support import BACKEND

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BACKEND == "tensorflow",
        reason="Keras does not train in several processes on TensorFlow",
    ),
]
# On JAX: copies of the weights everywhere; split over the devices of each
# process; split over the processes.
WAYS = {
    "jax": [
        "data",
        pytest.param("model", marks=pytest.mark.nightly),
        pytest.param("split", marks=pytest.mark.nightly),
    ],
    "torch": ["ddp"],
}.get(BACKEND, ["none"])


@dataclasses.dataclass
class Outcome:
    """What one process has written."""

    arrays: list[np.ndarray]
    weights: int
    skipped: int
    spikes: int
    clip_rate: float
    history: dict[str, list[float]]
    records: dict[str, dict[str, list]]
    calls: int


def start(folder, way, *arguments):
    environment = os.environ | {
        "KERAS_BACKEND": BACKEND,
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.processes_script", folder, way]
    return subprocess.Popen(
        [*map(str, command), *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(
    folder,
    way,
    *arguments,
    processes=2,
    each=([], []),
    killed=False,
    fails=False,
):
    """Runs the script; returns what each process has printed.

    Args:
        folder: For what it writes.
        way: How the model is distributed.
        *arguments: Of all processes.
        processes: 1 or 2.
        each: Arguments of the first and of the second process.
        killed: Whether they kill themselves.
        fails: Whether they end with an error.
    """
    folder.mkdir(exist_ok=True)
    if processes == 1:
        started = [start(folder, way, *arguments)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = [
            start(
                folder,
                way,
                *arguments,
                *each[rank],
                "--rank",
                rank,
                "--port",
                port,
            )
            for rank in range(processes)
        ]
    try:
        printed = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    codes = [process.returncode for process in started]
    if killed:
        # Whoever dies later may see that the other one has.
        assert -signal.SIGKILL in codes and 0 not in codes, printed
    elif fails:
        assert 0 not in codes, printed
    else:
        assert set(codes) == {0}, "\n".join(printed)
    return printed


def read(folder, name) -> Outcome:
    with np.load(folder / f"{name}.npz") as file:
        arrays = list(file.values())
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return Outcome(arrays=arrays, **found)


@pytest.fixture(scope="module", params=WAYS)
def trained(request, tmp_path_factory):
    """The way, and the folder of two processes and of one alone."""
    way = request.param
    folder = tmp_path_factory.mktemp(way)
    arguments = [] if way == "split" else ["--save-weights"]
    run(folder, way, *arguments)
    run(folder / "alone", way, *arguments, processes=1)
    return way, folder


def assert_equal(one: Outcome, other: Outcome):
    for x, y in zip(one.arrays, other.arrays, strict=True):
        np.testing.assert_array_equal(x, y)
    assert (one.skipped, one.spikes) == (other.skipped, other.spikes)
    assert one.clip_rate == other.clip_rate
    np.testing.assert_equal(one.history, other.history)
    np.testing.assert_equal(one.records, other.records)


def test_all_processes_have_the_same(trained):
    way, folder = trained
    first, second = read(folder, "0"), read(folder, "1")
    if way == "split":
        # Each has its own columns of the first kernel, and of its state.
        def comparable(outcome):
            return [x for x in outcome.arrays if x.shape != (8, 8)]

        assert len(comparable(first)) < len(first.arrays)
        first.arrays, second.arrays = comparable(first), comparable(second)
    assert_equal(first, second)


def test_is_as_one_process(trained):
    way, folder = trained
    first, alone = read(folder, "0"), read(folder / "alone", "alone")
    assert first.skipped == alone.skipped == EPOCHS
    assert first.spikes == alone.spikes == EPOCHS
    assert 0.01 < first.clip_rate < 0.5
    assert first.clip_rate == pytest.approx(alone.clip_rate, rel=0.02)
    for x, y in zip(
        first.arrays[: first.weights],
        alone.arrays[: alone.weights],
        strict=True,
    ):
        y = y[:, : x.shape[1]] if x.ndim == 2 else y
        # A sum over devices has another order.
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def test_one_process_writes(trained):
    _, folder = trained
    first, second = read(folder, "0"), read(folder, "1")
    assert first.calls and not second.calls
    assert len(list((folder / "events").rglob("*tfevents*"))) == 1
    csv = record_files.read_csv(folder / "records.csv")
    rows = csv.columns.to_dict()
    ours = list(first.records.values())
    quantities = {q for r in ours for q in r["quantity"]}
    assert {"clip_rate", "weight_delta", "gradient_norm"} <= quantities
    moments = list(
        zip(rows["epoch"], rows["batch"], rows["variable"], rows["quantity"],
            strict=True)
    )  # fmt: skip
    assert len(moments) == len(set(moments))
    for own in ours:
        for name in ("clip_rate", "weight_delta"):
            if name in own["quantity"]:
                chosen = np.array(own["quantity"]) == name
                np.testing.assert_array_equal(
                    np.array(own["value"])[chosen],
                    rows["value"][rows["quantity"] == name],
                )


@pytest.mark.nightly
@pytest.mark.slow
def test_a_saved_model_goes_on_in_any_number_of_processes(trained, tmp_path):
    way, folder = trained
    if way == "split":
        pytest.skip("Keras cannot save it: see below")
    model = keras.saving.load_model(folder / "0.keras")
    variables = [*model.trainable_variables, *model.optimizer.variables]
    for variable, array in zip(
        variables, read(folder, "0").arrays, strict=True
    ):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(variable), array
        )
    alone = folder / "alone" / "alone.keras"
    run(tmp_path / "two", way, "--load", alone)
    run(tmp_path / "one", way, "--load", folder / "0.keras", processes=1)
    two = read(tmp_path / "two", "0")
    one = read(tmp_path / "one", "alone")
    assert two.skipped == one.skipped == 2 * EPOCHS
    for x, y in zip(
        two.arrays[: two.weights], one.arrays[: one.weights], strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=5e-5, atol=2e-6)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="needs `fit`")
def test_killed_processes_go_on(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(undisturbed, "data", "--backup", undisturbed / "backup")
    backup = ["--backup", killed / "backup"]
    run(killed, "data", *backup, "--kill-in-epoch", 1, killed=True)
    assert not (killed / "0.npz").exists()
    run(killed, "data", *backup)
    for name in ("0", "1"):
        assert_equal(read(killed, name), read(undisturbed, name))
    assert (killed / "records.csv").read_text() == (
        undisturbed / "records.csv"
    ).read_text()


@pytest.mark.nightly
@pytest.mark.skipif(BACKEND != "jax", reason="needs `fit`")
def test_folders_that_are_not_shared_are_refused(tmp_path):
    run(tmp_path, "data", "--backup", tmp_path / "shared", "--epochs", 1)
    own = tmp_path / "own"
    printed = run(
        tmp_path,
        "data",
        each=[["--backup", tmp_path / "shared"], ["--backup", own]],
        fails=True,
    )
    for text in printed:
        assert re.search(r"must be a folder that all processes share", text)
    assert not own.exists()


@pytest.mark.nightly
@pytest.mark.skipif(BACKEND != "jax", reason="splits weights")
def test_where_keras_fails(tmp_path):
    """Keras cannot save weights that lie in several processes."""
    printed = run(tmp_path, "split", "--save-weights", fails=True)
    assert "non-addressable" in "".join(printed)
