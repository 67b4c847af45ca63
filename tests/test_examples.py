"""Every example, and the README's code, runs as a user would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras

ROOT = Path(__file__).parent.parent


def run(arguments: list[str], folder: Path) -> str:
    """Runs Python outside the checkout and returns what it printed."""
    environment = os.environ | {
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": str(ROOT),
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
    return done.stdout


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
    for name in ("digits.keras", "digits_continued.keras"):
        path = Path("saved", name)
        assert str(path) in printed
        assert (tmp_path / path).is_file()


def test_readme_code(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) >= 3
    # One after another in one program, as a reader would type them.
    run(["-c", "\n".join(blocks)], tmp_path)
    assert (tmp_path / "model.keras").is_file()
