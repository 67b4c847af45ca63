"""Runs the benchmarks, on sizes that show that they run."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import BACKEND

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


@contextlib.contextmanager
def importable():
    """Modules beside the benchmarks, which are no package, can be imported."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))


def run_script(script, folder, *arguments):
    """Runs a benchmark and returns what it printed."""
    environment = os.environ | {
        "KERAS_BACKEND": BACKEND,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, FOLDER / script, "--quick", *arguments]
        + ["--output", folder],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run(script, folder, *arguments):
    """Runs a benchmark and returns what it printed and its JSON."""
    printed = run_script(script, folder, *arguments)
    (file,) = folder.glob("*.json")
    assert str(file) in printed
    return printed, json.loads(file.read_text("utf-8"))
