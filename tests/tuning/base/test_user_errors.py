"""Errors in a user's own functions, and errors that are not theirs."""

import inspect
import subprocess
import sys
import traceback

import keras
import pytest

from keras_adamax_tuning import SearchWarning, cli, run_search
from keras_adamax_tuning.base import user_errors
from tests.tuning import searched

FILE = searched.__file__
CASES = {
    "builder": ({"build_model": searched.broken_model}, KeyError, "a model"),
    "keras": ({"build_model": searched.keras_refuses}, ValueError, "three"),
    "own class": (
        {"build_model": searched.raise_two_texts},
        searched.TwoTexts,
        "one and two",
    ),
    "loader": ({"data": searched.missing_key}, KeyError, "x_train"),
    "exit": ({"data": searched.leaves}, SystemExit, "no data today"),
}
WORKERS = [1]
if keras.backend.backend() == "jax":
    WORKERS.append(2)  # processes are the same on every backend


def line_of(function):
    """The last line of a function of the tests."""
    lines, first = inspect.getsourcelines(function)
    return f"{FILE}, line {first + len(lines) - 1}, in {function.__name__}"


def search(output, **changes):
    arguments = {
        "build_model": searched.build_model,
        "data": searched.load_data,
        "space": searched.SPACE,
        "max_trials": 2,
        "epochs": 1,
        "sampler": "random",
        "verbose": False,
        **changes,
    }
    return run_search(output=output, **arguments)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("case", CASES)
def test_the_original_error_comes_out_of_run_search(tmp_path, case, workers):
    changes, kind, words = CASES[case]
    (function,) = changes.values()
    if kind is searched.TwoTexts and workers > 1:
        kind = Exception  # its type cannot cross a process
    with pytest.raises(kind, match=words) as caught:
        search(tmp_path / "out", workers=workers, **changes)
    assert user_errors.place_of(caught.value) == line_of(function)
    # What Python prints of it has the user's frame, wherever it was.
    printed = "".join(traceback.format_exception(caught.value))
    name = function.__name__
    assert f'{FILE}", line ' in printed and f"in {name}\n" in printed
    if workers > 1 and "data" not in changes:
        assert "In worker " in printed
    assert not (tmp_path / "out" / "trials").exists()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*more, builder="build_model", data="load_data"):
        code = cli.main(
            [
                f"tests.tuning.searched:{builder}",
                f"--data=tests.tuning.searched:{data}",
                *("--output=out", "--epochs=1", "--sampler=random"),
                *("--space=tests.tuning.searched:SPACE", *more),
            ]
        )
        return code, capsys.readouterr()

    return run


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("case", CASES)
def test_the_command_names_the_users_line(command, case, workers):
    changes, kind, words = CASES[case]
    ((argument, function),) = changes.items()
    name = {"build_model": "builder", "data": "data"}[argument]
    options = [f"--workers={workers}", "--max-trials=1"]
    code, printed = command(*options, **{name: function.__name__})
    assert code == 2
    assert words in printed.err and f"({line_of(function)})" in printed.err
    assert printed.err.count("\n") == 1
    assert "site-packages" not in printed.err
    assert "Traceback" not in printed.err and "workers died" not in printed.err

    code, printed = command(*options, "--debug", **{name: function.__name__})
    assert code == 2
    assert "Traceback (most recent call last)" in printed.err
    assert f'{FILE}", line ' in printed.err


@pytest.mark.slow
def test_the_traceback_is_in_the_folder_of_a_search(command, tmp_path):
    assert command("--max-trials=1")[0] == 0
    code, printed = command("--max-trials=2", data="missing_key")
    assert code == 2
    path = tmp_path / "out" / "error.txt"
    assert f"The whole traceback is in {path.relative_to(tmp_path)}" in (
        printed.err
    )
    text = path.read_text()
    assert "Traceback" in text and "KeyError: 'x_train'" in text
    assert FILE in text
    # It is no file of another program.
    assert command("--max-trials=2")[0] == 0


def test_our_own_checks_stay_wrong_use(command):
    code, printed = command("--seed=-1")
    assert code == 2
    assert printed.err.startswith("keras-adamax-tune: error: `seed`")
    assert "your code" not in printed.err
    code, printed = command(builder="nothing")
    assert code == 2
    assert "`build_model` must return a keras.Model" in printed.err
    assert "your code" not in printed.err


def test_an_error_that_is_nobodys_is_not_hidden(command, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("keras_adamax_tuning.running.data._split", broken)
    # As if it were in the package.
    monkeypatch.setattr(user_errors, "_is_own_code", lambda frame: False)
    code, printed = command()
    assert code == 1
    assert (
        "Traceback" in printed.err
        and "RuntimeError: a defect" in (printed.err.splitlines()[-1])
    )


def test_a_syntax_error_and_a_failing_import_name_the_file(
    command, tmp_path, capsys
):
    (tmp_path / "half.py").write_text("import json\n\njson.loads('{')\n")
    code = cli.main(["half:f", "--data=x.npz", "--output=out"])
    assert code == 2
    assert f"({tmp_path / 'half.py'}, line 3)" in capsys.readouterr().err
    (tmp_path / "quits.py").write_text("raise SystemExit('run me alone')\n")
    code = cli.main(["quits:f", "--data=x.npz", "--output=out"])
    assert code == 2
    error = capsys.readouterr().err
    assert "run me alone" in error
    assert f"({tmp_path / 'quits.py'}, line 1)" in error


@pytest.mark.slow
def test_failed_trials_are_said_and_the_line_is_recorded(command, tmp_path):
    code, printed = command(
        "--max-trials=4",
        "--callbacks=tests.tuning.searched:fail_but_first",
    )
    assert code == 0
    place = line_of(searched.Failing.on_epoch_end)
    (line,) = printed.err.splitlines()
    assert line.startswith("keras-adamax-tune: warning: 3 of 4 trials failed")
    assert f"3 of them with: RuntimeError: it broke ({place})" in line
    folder = tmp_path / "out" / "trials" / "trial_0001"
    assert "it\nbroke" in (folder / "traceback.txt").read_text()
    assert place.split(",")[0] in (tmp_path / "out/trials.csv").read_text()


@pytest.mark.slow
def test_too_many_failures_name_the_line(command):
    code, printed = command(
        "--max-trials=9", "--callbacks=tests.tuning.searched:fail"
    )
    assert code == 3
    assert line_of(searched.Failing.on_epoch_end) in printed.err
    assert "Traceback" not in printed.err
    code, printed = command(
        *("--max-trials=10", "--callbacks=tests.tuning.searched:fail"),
        "--debug",
    )
    assert code == 3
    # That of the user's error, not only that of ours.
    assert 'raise RuntimeError("it\\nbroke")' in printed.err
    assert "Trial 9:\nTraceback" in printed.err


def test_no_completed_trial_names_the_commonest_reason(command):
    code, printed = command(
        "--max-trials=2", "--callbacks=tests.tuning.searched:fail"
    )
    assert code == 3
    place = line_of(searched.Failing.on_epoch_end)
    assert f"2 of them with: RuntimeError: it broke ({place})" in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.slow
def test_failed_trials_are_a_warning_in_python(tmp_path):
    with pytest.warns(SearchWarning, match="1 of 2 trials failed, 1 of them"):
        result = search(
            tmp_path / "out", callbacks_factory=searched.fail_but_first
        )
    assert result.best_trial.number == 0
    assert result.trials[1].place == line_of(searched.Failing.on_epoch_end)


def test_an_installed_package_of_the_users_is_own_code(
    command, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "site-packages" / "installed_models"
    folder.mkdir(parents=True)
    path = folder / "__init__.py"
    path.write_text("def load():\n    return {}['x']\n")
    monkeypatch.syspath_prepend(folder.parent)
    code = cli.main(
        [
            "tests.tuning.searched:build_model",
            *("--data=installed_models:load", "--output=out"),
        ]
    )
    assert code == 2
    assert f"({path}, line 2, in load)" in capsys.readouterr().err


def test_code_of_a_prompt_is_the_users():
    script = (
        "from keras_adamax_tuning.base import user_errors\n"
        "def f():\n"
        "    return [][1]\n"
        "try:\n"
        "    f()\n"
        "except IndexError as error:\n"
        "    print(user_errors.place_of(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.stdout == "<string>, line 3, in f\n", done.stderr


def test_an_error_in_a_library_that_nobody_of_ours_called_has_no_place():
    try:
        code = compile("import json; json.loads('{')", keras.__file__, "exec")
        exec(code, {"__name__": "keras"})
    except ValueError as error:
        error.__traceback__ = error.__traceback__.tb_next
        assert user_errors.place_of(error) is None
    with pytest.raises(ValueError) as caught:
        raise ValueError("outer") from KeyError("never raised")
    assert f"{__file__}, line " in user_errors.place_of(caught.value)
