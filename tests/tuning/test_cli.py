"""The command line. That of several processes is in test_workers.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_adamax_tuning import cli
from tests.tuning import searched

ROOT = Path(__file__).parent.parent.parent
OPTIONS = ["--max-trials=1", "--epochs=1", "--sampler=random", "--seed=0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, as the current one."""
    (tmp_path / "models.py").write_text(
        "from tests.tuning.searched import *\nnumber = 3\n"
    )
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "raises.py").write_text("import os\n1 / 0\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("")
    x, y = searched.load_data()
    np.savez(tmp_path / "good.npz", x=x, y=y)
    np.savez(tmp_path / "wide.npz", x=np.zeros((9, 5)), y=np.zeros((9, 1)))
    np.savez(tmp_path / "short.npz", x=x, y=y[1:])
    np.savez(tmp_path / "names.npz", images=x, labels=y)
    (tmp_path / "text.npz").write_text("no data")
    (tmp_path / "text.json").write_text("no space")
    (tmp_path / "dict.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("models", "syntax", "raises"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    sys.modules.pop("models", None)


def run(*more, builder="models:build_model", data="good.npz", output="out"):
    return cli.main(
        [builder, f"--data={data}", f"--output={output}", *OPTIONS, *more]
    )


def test_a_search_from_a_file_and_a_serialized_space(folder, capsys):
    config = keras.saving.serialize_keras_object(searched.SPACE)
    (folder / "space.json").write_text(json.dumps(config))
    assert run("--space=space.json", "--batch-size=8,16") == 0
    printed = capsys.readouterr().out
    assert "a new search of 1 trials" in printed
    assert re.search(r"trial 0: [\d.e-]+ in \d+ s \| 1 of 1 done", printed)
    # The table at the end.
    assert re.search(r"^trial +0 *\nval_loss +[\d.e-]+", printed, re.M)
    assert f"Results are in {folder / 'out'}" in printed
    assert (folder / "out" / "best_optimizer.json").exists()
    header = (folder / "out" / "trials.csv").read_text().splitlines()[0]
    assert {"learning_rate", "batch_size"} < set(header.split(","))

    # The same command again says what is there; --resume means the same.
    assert run("--space=space.json", "--batch-size=8,16", "--resume") == 0
    assert "going on with a search: 1 of 1 done" in capsys.readouterr().out

    assert run("--space=models:OTHER_SPACE", "--batch-size=8,16") == 2
    error = capsys.readouterr().err
    assert "another search" in error and error.count("\n") == 1


def test_all_trials_failed(folder, capsys):
    assert run("--callbacks=models:fail", "--space=models:SPACE") == 3
    printed = capsys.readouterr()
    assert "trial 0: failed" in printed.out
    assert "(RuntimeError: it broke)" in printed.out
    assert "trials.csv has the reasons" in printed.err
    assert "RuntimeError: it broke" in (folder / "out/trials.csv").read_text()

    assert (
        run(
            *("--callbacks=models:fail", "--space=models:SPACE"),
            "--max-trials=9",
            output="many",
        )
        == 3
    )
    assert "failed one after another" in capsys.readouterr().err
    rows = (folder / "many" / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + 5


@pytest.mark.slow
def test_interrupted(folder, capsys):
    arguments = ["--callbacks=models:interrupt_second", "--max-trials=2"]
    assert run("--space=models:SPACE", *arguments) == 130
    error = capsys.readouterr().err
    assert "nothing is lost" in error
    assert "--callbacks=models:interrupt_second --max-trials=2" in error
    assert run("--space=models:SPACE", "--max-trials=2") == 0


ELSEWHERE = "postgresql+psycopg://someone:secret@127.0.0.1:9/search"
WRONG = {
    "unknown option": (["--learning-rate=1"], {}, "unrecognized arguments"),
    "abbreviation": (["--max=1"], {}, "unrecognized arguments"),
    "max_trials": (["--max-trials=0"], {}, "--max-trials: must be an integer"),
    "workers": (["--workers=x"], {}, "--workers: must be an integer >= 1"),
    "epochs": (["--epochs=1,x"], {}, "--epochs: must be an integer"),
    "batch_size": (["--batch-size=0"], {}, "--batch-size: must be >= 1"),
    "direction": (["--direction=up"], {}, "--direction: invalid choice"),
    "backend": (["--backend=theano"], {}, "--backend: invalid choice"),
    "sampler": (["--sampler=best"], {}, "`sampler` must be one of"),
    "pruner": (["--pruner=best"], {}, "`pruner` must be"),
    "seed": (["--seed=-1"], {}, "`seed` must be an integer >= 0"),
    "split": (["--validation-split=2"], {}, "`validation_split` must be"),
    "objective": (["--objective=val_f1"], {}, "`direction` must be given"),
    "metric": (["--objective=val_accuracy"], {}, "in the logs of `fit`"),
    "no colon": ([], {"builder": "models"}, "must be given as MODULE:NAME"),
    "no module": ([], {"builder": "nowhere:f"}, "No module named 'nowhere'"),
    "no name": ([], {"builder": "models:f"}, "has no 'f'"),
    "syntax": ([], {"builder": "syntax:f"}, "SyntaxError"),
    "raises": ([], {"builder": "raises:f"}, "raises.py, line 2"),
    "no function": ([], {"builder": "models:number"}, "must be a function"),
    "no model": ([], {"builder": "models:nothing"}, "Is its `return` missing"),
    "no build": ([], {"builder": "models:broken_model"}, "KeyError: 'a model'"),
    "no data": ([], {"data": "none.npz"}, "none.npz does not exist"),
    "no arrays": ([], {"data": "names.npz"}, "Received: images, labels"),
    "no npz": ([], {"data": "text.npz"}, "cannot be read as .npz"),
    "lengths": ([], {"data": "short.npz"}, "same number of rows"),
    "shapes": ([], {"data": "wide.npz"}, "does not take the data"),
    "no loader": ([], {"data": "models:f"}, "has no 'f'"),
    "number": ([], {"data": "models:number"}, "Received: a int"),
    "no space": (["--space=models:number"], {}, "an AdamaxClippedSpace"),
    "no file": (["--space=none.json"], {}, "none.json: No such file"),
    "no json": (["--space=text.json"], {}, "not the JSON of a serialized"),
    "other json": (["--space=dict.json"], {}, "Received: dict.json, a dict"),
    "foreign": ([], {"output": "foreign"}, "neither empty nor the folder"),
    "file": ([], {"output": "good.npz"}, "cannot be the output folder"),
    "no url": (["--storage=here"], {}, "must be a database URL"),
    "grid": (["--sampler=grid"], {}, "finite number of values"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line(folder, capsys, case):
    options, changes, words = WRONG[case]
    assert run(*options, **changes) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("keras-adamax-tune: error: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert "secret" not in printed.err and "Traceback" not in printed.err


@pytest.mark.parametrize("storage", [ELSEWHERE, "sqlite:////no/a.db"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_database_that_cannot_be_used(folder, capsys, storage, workers):
    """It has an exit code of its own, and ends the search at once."""
    assert run(f"--storage={storage}", f"--workers={workers}") == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("keras-adamax-tune: error: The database ")
    assert printed.err.count("\n") == 1
    assert "Check that it exists" in printed.err
    assert "secret" not in printed.err and "Traceback" not in printed.err


@pytest.mark.parametrize("missing", ["builder", "--data", "--output"])
def test_missing_arguments(folder, capsys, missing):
    arguments = ["models:build_model", "--data=good.npz", "--output=out"]
    del arguments[["builder", "--data", "--output"].index(missing)]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_backend_needs_another_process(folder, capsys):
    others = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}
    current = keras.backend.backend()
    environment = dict(os.environ)
    try:
        assert run(f"--backend={others[current]}") == 2
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert f"runs on {current} in this process" in capsys.readouterr().err


@pytest.mark.slow
def test_help_is_there_at_once_and_the_backend_is_chosen(tmp_path):
    """In a process of its own, because Keras is imported here already."""
    backend = keras.backend.backend()
    other = "torch" if backend != "torch" else "jax"
    script = (
        "import os, sys\n"
        "from keras_adamax_tuning import cli\n"
        "assert cli.main(['--help']) == 0\n"
        "heavy = {'keras', 'numpy', 'optuna', 'jax', 'torch', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "code = cli.main(['none:f', '--data=x.npz', '--output=out',\n"
        f"    '--backend={backend}'])\n"
        "import keras\n"
        f"assert keras.backend.backend() == '{backend}'\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={
            **os.environ,
            "KERAS_BACKEND": other,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tuning")]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "exit codes:" in done.stdout
    for option in ("--max-trials", "--workers", "--storage", "--resume"):
        assert option in done.stdout
    assert "No module named 'none'" in done.stderr
    assert "Traceback" not in done.stderr
