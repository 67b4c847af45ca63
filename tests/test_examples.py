"""Every example runs as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.support import repeated

ROOT = Path(__file__).parent.parent


def run(arguments: list[str], folder: Path, with_errors: bool = False) -> str:
    """Runs Python outside the checkout and returns what it printed."""
    environment = os.environ | {
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")]),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + (done.stderr if with_errors else "")


def test_quickstart(tmp_path):
    backend = keras.backend.backend()
    printed = run(
        [
            str(ROOT / "examples" / "quickstart.py"),
            f"--backend={backend}",
            "--output=saved",
        ],
        tmp_path,
    )

    accuracy = re.search(r"Test accuracy: (\d\.\d+)", printed)
    assert accuracy and float(accuracy[1]) >= 0.95
    rate = re.search(r"Clipped gradient elements: (\d+\.\d+)%", printed)
    assert rate and 0 < float(rate[1]) < 100
    assert "The weights agree between the two processes" in printed
    if backend != "torch":
        assert "to the last bit" in printed
    for name in (
        "digits.keras",
        "digits_continued.keras",
        "training.csv",
        "training.png",
    ):
        path = Path("saved", name)
        assert str(path) in printed
        assert (tmp_path / path).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("own_data", [False, *repeated(True)])
def test_weights_not_changing(tmp_path, own_data):
    arguments = [f"--backend={keras.backend.backend()}", "--steps=100"]
    if own_data:
        rng = np.random.default_rng(0)
        np.savez(
            tmp_path / "mnist.npz",
            x_train=rng.integers(0, 256, (60, 28, 28)).astype("uint8"),
            y_train=np.arange(60) % 10,
        )
        arguments.append("--data=mnist.npz")
    script = str(ROOT / "examples" / "weights_not_changing.py")
    printed = run([script, *arguments], tmp_path, with_errors=True)
    frozen, ones, learns = re.split(r"^\w+, which .*$", printed, flags=re.M)[1:]
    assert re.findall(r"step +(\d+):", frozen) == ["0", "50", "100"]
    assert frozen.count("NOT changed") == 2
    assert "4 of 4 trainable variables did not change" in printed
    assert "sequential/digit/kernel" in printed
    assert "`update_step` did not assign anything (ReturnsOnes)" in printed
    assert printed.count("did not change at all") == 1
    assert ones.count(" 1.0000") == 10  # five weights, at steps 50 and 100
    assert learns.count("  changed") == 2 and "NOT" not in learns
    accuracies = re.findall(r"accuracy on the images: (\d\.\d+)", printed)
    assert len(accuracies) == 3
    if not own_data:
        assert float(accuracies[2]) > 2 * float(accuracies[0])


def test_first_steps(tmp_path):
    printed = run([str(ROOT / "examples" / "first_steps.py")], tmp_path)
    rate = re.search(r"Clipped: (\d+\.\d+)% of all gradient", printed)
    assert rate and 0 < float(rate[1]) < 100
    for name in ("first_steps.csv", "first_steps.png"):
        assert (tmp_path / name).is_file()


@pytest.mark.slow
def test_what_exploded(tmp_path):
    printed = run([str(ROOT / "examples" / "what_exploded.py")], tmp_path)
    first, second = printed.strip().split("\nEpoch")
    assert first.startswith("Epoch 1, batch 60\n")
    assert "of 6 variables: see the batch" in first
    assert second.startswith(" 1, batch 120\n")
    where = re.search(r"where: +(.*)", second)
    assert where and where[1] == "hidden/bias, hidden/kernel, and nothing else"
    for text in (first, second):
        size = re.search(r"([\d.e+]+), usually ([\d.e+]+)", text)
        assert size and float(size[1]) > 100 * float(size[2])
        share = re.search(r"took away ([\d.]+)%", text)
        assert share and 99 < float(share[1]) <= 100
    # The records are enough, and a run of one's own will do.
    own = [str(ROOT / "examples" / "what_exploded.py")]
    again = run([*own, "--records", "what_exploded.csv"], tmp_path)
    assert again == printed
