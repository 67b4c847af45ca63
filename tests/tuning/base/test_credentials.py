"""A password of the database is in nothing that is printed or recorded."""

import json
import os
import shlex
import signal
import subprocess

import keras
import pytest

from keras_adamax_tuning import OptunaOracle, StorageError, cli, run_search
from keras_adamax_tuning.base import credentials
from keras_adamax_tuning.study import database
from tests.tuning import searched
from tests.tuning.oracles import finish, make_oracle
from tests.tuning.running.test_worker_processes import Search, command

MARKER = "hunter2marker"

only_on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="processes and signals are the same on every backend",
)


@pytest.mark.parametrize(
    "argument, hidden",
    [
        (f"postgresql://u:{MARKER}@h/d", "postgresql://u:***@h/d"),
        (
            f"--storage=postgresql://u:{MARKER}@h",
            "--storage=postgresql://u:***@h",
        ),
        (
            f"--storge=postgresql://u:a@{MARKER}@h",
            "--storge=postgresql://u:***@h",
        ),
        (f"postgresql://u:a/{MARKER}:b@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://u:my {MARKER}@h/d", "postgresql://u:***@h/d"),
        (f"postgresql://:{MARKER}@h/d", "postgresql://:***@h/d"),
        (f"postgresql:/u:{MARKER}@h/d", "postgresql:/u:***@h/d"),
        (f"postgresql//u:{MARKER}@h/d", "postgresql//u:***@h/d"),
        (f"postgresql:u:{MARKER}@h/d", "postgresql:***@h/d"),
        (f"u:{MARKER}@h", "u:***@h"),
        (f"u:/{MARKER}@h", "u:***@h"),
        (
            f"postgresql://h/d?user=u&password={MARKER}&a=1",
            "postgresql://h/d?user=u&password=***&a=1",
        ),
        (f"postgresql:///u:{MARKER}@h/d", "postgresql:///u:***@h/d"),
        (f"postgresql://///u:{MARKER}@h/d", "postgresql://///u:***@h/d"),
        (
            f"mssql+pyodbc://h/d?pwd={MARKER}&a=1",
            "mssql+pyodbc://h/d?pwd=***&a=1",
        ),
        (f"mysql://h/d?passwd=my+{MARKER}", "mysql://h/d?passwd=***"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC+18%7D%3BUID%3Du%3B"
            f"PWD%3Dmy%2B{MARKER}%3BDATABASE%3Dd&a=1",
            "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BODBC+18%7D%3BUID%3Du%3B"
            "PWD%3D***%3BDATABASE%3Dd&a=1",
        ),
        (
            "mssql+pyodbc:///?odbc_connect=pwd%3d%7ba%3b%7d%7d"
            f"{MARKER}%7d%3bUID%3du",
            "mssql+pyodbc:///?odbc_connect=pwd%3d%7b***%7d%3bUID%3du",
        ),
        (
            f"mssql+pyodbc:///?odbc_connect=SERVER=tcp:h;PWD={MARKER}@{MARKER}",
            "mssql+pyodbc:///?odbc_connect=SERVER=tcp:***",
        ),
        (f"host=h password={MARKER} user=u", "host=h password=*** user=u"),
        (f"--PGPASSWORD={MARKER}", "--PGPASSWORD=***"),
        ("models:build_model", "models:build_model"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("--output=/shared/runs/a", "--output=/shared/runs/a"),
    ],
)
def test_a_password_in_an_argument(argument, hidden):
    assert credentials.hide_in_argument(argument) == hidden
    text = f"error: unrecognized arguments: {argument} --other"
    known = credentials.secrets([argument])
    assert MARKER not in credentials.hide(text, known)
    assert credentials.hide(text, known).endswith("--other")


def test_a_long_text_takes_no_time():
    # From each letter to the end it would be hours.
    for text in ("x" * 1_000_000, "@" * 1_000_000, "pwd%3D%3B" * 100_000):
        assert credentials.hide(text, {MARKER}) == text


def test_a_password_in_a_text():
    for text in (
        f"could not connect to postgresql://u:{MARKER}@h/d, refused",
        f"'postgresql://h/d?password={MARKER}'",
    ):
        assert MARKER not in credentials.hide(text)
    # As given, and decoded.
    known = credentials.secrets(["postgresql://u:p%40ss%2Fword@h"])
    assert known == {"p%40ss%2Fword", "p@ss/word"}
    assert credentials.hide("no p@ss/word, p%40ss%2Fword", known) == (
        "no ***, ***"
    )
    # In a query, + is a space, or stands for itself.
    known = credentials.secrets(["mysql://h/d?password=a+%2Bword"])
    assert credentials.hide("no a +word, a++word, a+%2Bword", known) == (
        "no ***, ***, ***"
    )
    known = credentials.secrets(["x:///?odbc_connect=PWD%3D%7Ba+b%3Bc%7D"])
    assert credentials.hide("no a b;c", known) == "no ***"
    # A short one is no part of a word.
    assert credentials.hide("database a", ["a"]) == "database ***"


MISTYPED = {
    "option": [f"--storge=postgresql://u:{MARKER}@h/d"],
    "two words": ["--storge", f"postgresql://u:{MARKER}@h/d"],
    "a space": ["--storge", f"postgresql://u:my {MARKER}@h/d"],
    "another option": [f"--storage=postgresql://u:{MARKER}@h/d", "--maximum=1"],
    "another value": [f"--storage=postgresql://u:{MARKER}@h/d", "--workers=0"],
    "in another": [f"--workers=postgresql://u:{MARKER}@h/d"],
    "a choice": [f"--backend=postgresql://u:{MARKER}@h/d"],
    "a sampler": [f"--sampler=postgresql://u:{MARKER}@h/d"],
    "a space file": [f"--space=postgresql://u:{MARKER}@h/d.json"],
    "callbacks": [f"--callbacks=postgresql://u:{MARKER}@h/d"],
    "an at sign": [f"--storage=postgresql://u:a@{MARKER}@h/d"],
    "a port": [f"--storage=postgresql://u:a@h:{MARKER}@h/d"],
    "no scheme": [f"--storage=u:{MARKER}@h/d"],
    "no base": [f"--storage=nobase://u:{MARKER}@h/d"],
    "no driver": [f"--storage=mysql+pymysql://u:{MARKER}@h/d"],
    "braces": ["--storage=postgresql://u:{" + MARKER + "}@127.0.0.1:9/d"],
    "a slash too many": [f"--storage=postgresql:///u:{MARKER}@h/d"],
    "query": [f"--storage=postgresql://127.0.0.1:9/d?password={MARKER}"],
    "no option": [f"--storage=postgresql://127.0.0.1:9/d?pasword={MARKER}"],
    "encoded": [f"--storage=postgresql://u:%7B{MARKER}%40@127.0.0.1:9/d"],
}


@pytest.mark.parametrize("case", MISTYPED)
def test_what_is_mistyped_is_not_quoted_with_its_password(
    tmp_path, capfd, case
):
    arguments = command(tmp_path / "out", *MISTYPED[case], workers=1)[3:]
    assert cli.main(arguments) in (2, 4)
    printed = capfd.readouterr()
    assert MARKER not in printed.out + printed.err
    # TensorFlow may say that it is there.
    said = [line for line in printed.err.splitlines() if "keras-" in line]
    assert len(said) == 1 and "error: " in said[0]
    assert files_with(MARKER, tmp_path) == []


@pytest.mark.parametrize(
    "storage",
    [
        f"postgresql://u:{MARKER}@127.0.0.1:9/d",
        f"postgresql://u:a@{MARKER}@127.0.0.1/d",
        f"postgresql://u:{MARKER}@h:port/d",
        f"u:{MARKER}@h",
        f"nobase://u:{MARKER}@h/d",
        f"mysql+pymysql://u:{MARKER}@h/d",
        f"postgresql://127.0.0.1:9/d?password={MARKER}",
        f"postgresql:///u:{MARKER}@h/d",
        f"postgresql:///u:my {MARKER}@h/d",
    ],
)
def test_nothing_hangs_on_an_error_that_a_traceback_would_print(storage):
    with pytest.raises(StorageError) as raised:
        database.open_storage(storage)
    assert MARKER not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_a_storage_of_a_wrong_type_is_not_quoted(tmp_path):
    url = f"postgresql://u:{MARKER}@h/d"
    with pytest.raises(TypeError, match="of type bytes") as raised:
        run_search(
            searched.build_model,
            searched.load_data,
            output=tmp_path / "out",
            storage=url.encode(),
        )
    assert MARKER not in str(raised.value)
    with pytest.raises(TypeError) as raised:
        OptunaOracle("val_loss", storage=url.encode())
    assert MARKER not in str(raised.value)
    assert MARKER not in repr(OptunaOracle("val_loss", storage=url))


def test_an_exception_of_a_trial_is_recorded_without_the_password(
    tmp_path, outage_url
):
    oracle = make_oracle(tmp_path, storage=outage_url, max_trials=1)
    trial = oracle.create_trial("x")
    text = f"ValueError: no table in {outage_url}\nRuntimeError: {MARKER}"
    finish(oracle, trial, status="FAILED", message=text)
    (logical,) = oracle.logical_trials()
    assert logical.reason == "RuntimeError: ***"
    assert "no table in postgresql+psycopg://searcher:***@" in logical.traceback
    assert MARKER not in json.dumps([t.user_attrs for t in oracle.study.trials])


def files_with(marker, folder):
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and marker.encode() in path.read_bytes()
    ]


def children_of(pid):
    """The command lines of a process's children, as `ps` shows them."""
    lines = subprocess.check_output(
        ["ps", "-eo", "ppid=,args="], text=True
    ).splitlines()
    return [
        line.split(maxsplit=1)[1]
        for line in lines
        if line.split(maxsplit=1)[0] == str(pid)
    ]


def check_the_shown_command(printed, arguments):
    before, shown = [
        line for line in printed.splitlines() if "keras-adamax-tune" in line
    ]
    assert "with the password in place of ***" in before
    assert "PGPASSWORD" in before
    assert "***" in shown
    assert shlex.split(shown.replace("***", MARKER))[1:] == arguments


@only_on_jax
@pytest.mark.parametrize(
    "how",
    [
        "done",
        pytest.param("SIGINT", marks=(pytest.mark.slow, pytest.mark.nightly)),
    ],
)
def test_two_workers_leave_no_password_behind(tmp_path, outage_url, how):
    more = [f"--storage={outage_url}", "--tensorboard", "--max-trials=2"]
    with Search(tmp_path / "out", *more, workers=2) as search:
        search.wait_for_workers(2)
        children = children_of(search.process.pid)
        assert len([c for c in children if "spawn" in c]) >= 2
        assert MARKER not in "".join(children)
        if how != "done":
            os.killpg(search.process.pid, signal.SIGINT)
        search.release()
        assert search.finish() == (0 if how == "done" else 130)
        printed = search.printed()
    assert files_with(MARKER, tmp_path) == [] and MARKER not in printed
    if how != "done":
        arguments = command(search.output, *more)[3:]
        check_the_shown_command(printed, arguments)


@only_on_jax
@pytest.mark.parametrize("how", ["fail", "terminate_second"])
def test_one_worker_leaves_no_password_behind(tmp_path, outage_url, capfd, how):
    more = [
        f"--storage={outage_url}",
        f"--callbacks=tests.tuning.searched:{how}",
    ]
    arguments = command(tmp_path / "out", *more, workers=1)[3:]
    assert cli.main(arguments) == (3 if how == "fail" else 130)
    printed = capfd.readouterr()
    assert files_with(MARKER, tmp_path) == []
    assert MARKER not in printed.out + printed.err
    if how != "fail":
        check_the_shown_command(printed.err, arguments)


@only_on_jax
@pytest.mark.parametrize("what", ["password", "server"])
def test_a_database_that_refuses_says_so_without_the_password(
    tmp_path, running_server, outage_url, capfd, what
):
    if what == "server":
        running_server.stop()
        wrong = outage_url
    else:
        wrong = outage_url.replace(MARKER, f"{MARKER}2")
    arguments = command(tmp_path / "out", f"--storage={wrong}", workers=2)[3:]
    assert cli.main(arguments) == 4
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1 and MARKER not in printed
    expected = "authentication failed" if what == "password" else "refused"
    assert expected in printed
    assert files_with(MARKER, tmp_path) == []


@only_on_jax
def test_the_password_can_come_from_the_environment(
    tmp_path, outage_url, monkeypatch
):
    monkeypatch.setenv("PGPASSWORD", MARKER)
    url = outage_url.replace(f":{MARKER}@", "@")
    arguments = command(
        tmp_path / "out", f"--storage={url}", "--max-trials=1", workers=1
    )[3:]
    assert cli.main(arguments) == 0
