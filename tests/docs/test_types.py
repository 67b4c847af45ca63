"""A strict type checker finds nothing wrong in a user's script."""

import json
import subprocess
import sys

import keras
import pytest

from tests.docs.pages import ROOT

pytest.importorskip("pyright")


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="types know no backend"
)
def test_strict_types(tmp_path):
    script = tmp_path / "user.py"
    script.write_text((ROOT / "tests" / "docs" / "typed_user.py").read_text())
    config = {
        "include": ["user.py"],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
        "extraPaths": [str(ROOT), str(ROOT / "tuning")],
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright"),
            *("--pythonpath", sys.executable, "--project", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "0 errors" in done.stdout


def test_both_packages_say_that_they_are_typed():
    assert (ROOT / "keras_adamax" / "py.typed").is_file()
    assert (ROOT / "tuning" / "keras_adamax_tuning" / "py.typed").is_file()
