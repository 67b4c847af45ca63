import os
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from keras_adamax import records
from keras_adamax.plots import __main__ as command
from keras_adamax.plots import read_records, write_records
from tests.plots.synthetic import make_rows, write_csv


@pytest.fixture
def run_csv(tmp_path):
    return write_csv(tmp_path / "run.csv", make_rows(runs=2, epochs=2))


def call(capsys, *arguments):
    """Returns the exit code and the lines on standard error."""
    try:
        code = command.main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err.splitlines()


@pytest.mark.parametrize(
    "kind", ["report", "clip-rates", "weight-changes", "training"]
)
def test_kinds(run_csv, tmp_path, capsys, kind):
    output = tmp_path / f"{kind}.svg"
    assert call(capsys, run_csv, "-o", output, "--kind", kind) == (0, [])
    assert output.read_text().startswith("<?xml")


def test_default_is_a_report_beside_you(run_csv, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert call(capsys, run_csv) == (0, [])
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "title"),
    [([], "run.csv"), (["--title", "digits"], "digits"), (["--title", ""], "")],
)
def test_title(run_csv, tmp_path, capsys, monkeypatch, arguments, title):
    seen = []

    def save(records, path, title, **rows):
        seen.append(title)

    monkeypatch.setattr(command.plots, "save_report", save)
    assert call(capsys, run_csv, *arguments)[0] == 0
    assert seen == [title]


def test_one_run(run_csv, tmp_path, capsys, monkeypatch):
    seen = []

    def save(records, path, title, **rows):
        seen.append(set(read_records(records)["run"].tolist()))

    monkeypatch.setattr(command.plots, "save_report", save)
    assert call(capsys, run_csv, "--run", 1) == (0, [])
    assert seen == [{1}]
    code, lines = call(capsys, run_csv, "--run", 7)
    assert code == 2
    assert lines[0].endswith("no records of run 7. Recorded runs: 0, 1.")


def test_torn_file_is_drawn_with_a_warning(run_csv, tmp_path, capsys):
    with open(run_csv, "a", encoding="utf-8") as file:
        file.write("1,1,50,20")
    output = tmp_path / "report.png"
    code, lines = call(capsys, run_csv, "-o", output)
    assert code == 0
    assert len(lines) == 1
    assert ": warning: " in lines[0] and "cut off" in lines[0]
    assert output.exists()


def _bad(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("missing.csv", "a.png", "No such file"),
        (".", "a.png", "Is a directory"),
        ("other.csv", "a.png", "other.csv, line 1: the header must be"),
        ("empty.csv", "a.png", "empty.csv, line 1"),
        ("header.csv", "a.png", "holds nothing to draw"),
        ("accuracy.csv", "a.png", "Recorded: accuracy"),
        ("run.csv", "a.jpg", "must end in .png, .pdf, .svg"),
        ("run.csv", "a", "must end in .png, .pdf, .svg"),
        ("run.csv", "no/a.png", "No such file"),
        ("run.csv", "folder.png", "Is a directory"),
    ],
)
def test_wrong_use_is_one_line(
    run_csv, tmp_path, capsys, source, output, message
):
    header = run_csv.read_text().splitlines()[0] + "\n"
    _bad(tmp_path, "other.csv", "epoch,loss\n0,1.5\n")
    _bad(tmp_path, "empty.csv", "")
    _bad(tmp_path, "header.csv", header)
    _bad(tmp_path, "accuracy.csv", header + "0,0,1,1,,accuracy,0.5\n")
    (tmp_path / "folder.png").mkdir()
    code, lines = call(
        capsys, tmp_path / source, "-o", tmp_path / output, "--kind", "report"
    )
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("python -m keras_adamax.plots: error: ")
    assert message in lines[0]
    assert not (tmp_path / "a.png").exists()


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind"
)
def test_unwritable_folder(run_csv, tmp_path, capsys):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    code, lines = call(capsys, run_csv, "-o", folder / "a.png")
    assert code == 2 and "Permission denied" in lines[0]


@pytest.mark.parametrize(
    "arguments", [[], ["run.csv", "--kind", "pie"], ["run.csv", "--run", "x"]]
)
def test_wrong_arguments(capsys, arguments):
    code, lines = call(capsys, *arguments)
    assert code == 2
    assert lines[-1].startswith("python -m keras_adamax.plots: error: ")


def test_kind_that_was_not_recorded(tmp_path, capsys):
    rows = make_rows(quantities=("clip_rate",))
    source = write_csv(tmp_path / "run.csv", rows)
    arguments = (source, "-o", tmp_path / "a.png", "--kind", "weight-changes")
    code, lines = call(capsys, *arguments)
    assert code == 2
    assert "needs one of weight_delta, weight_delta_ratio" in lines[0]
    assert "Recorded: clip_rate." in lines[0]


@pytest.mark.slow
def test_as_a_module(run_csv, tmp_path):
    output = tmp_path / "report.pdf"
    arguments = ["-m", "keras_adamax.plots", str(run_csv), "-o", str(output)]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert output.read_bytes().startswith(b"%PDF-")


class TestOtherFormats:
    @pytest.fixture
    def original(self, tmp_path, run_csv):
        """The file as a logger writes it."""
        records.save(records.load(run_csv), tmp_path / "run.csv")
        return tmp_path / "run.csv"

    @pytest.mark.slow
    def test_there_and_back(self, original, tmp_path, capsys):
        before = original.read_bytes()
        compact = tmp_path / "run.npz"
        assert call(capsys, original, "-o", compact) == (0, [])
        assert compact.stat().st_size < len(before) / 5
        output = tmp_path / "again.csv"
        assert call(capsys, compact, "-o", output) == (0, [])
        assert output.read_bytes() == before
        figures = [tmp_path / "a.png", tmp_path / "b.png"]
        for source, figure in zip((original, compact), figures, strict=True):
            arguments = (source, "-o", figure, "--title", "same")
            assert call(capsys, *arguments) == (0, [])
        assert figures[0].read_bytes() == figures[1].read_bytes()

    def test_a_part(self, original, tmp_path, capsys):
        output = tmp_path / "part.csv"
        arguments = ("--run", 1, "--variables", "lstm", "-o", output)
        assert call(capsys, original, *arguments) == (0, [])
        part = read_records(output)
        assert set(part["run"].tolist()) == {1}
        assert {n.split("/")[1] for n in set(part["variable"]) if n} == {"lstm"}
        assert "" in part["variable"]

    def test_of_several_files(self, original, tmp_path, capsys):
        output = tmp_path / "both.npz"
        code, lines = call(capsys, original, original, "-o", output)
        assert code == 2 and "of one file. Received: 2 files" in lines[0]
        assert not output.exists()

    def test_write_records(self, original, tmp_path):
        write_records(original, str(tmp_path / "a.NPZ"))
        write_records(read_records(tmp_path / "a.NPZ"), tmp_path / "a.csv")
        assert (tmp_path / "a.csv").read_bytes() == original.read_bytes()
        with pytest.raises(ValueError, match=r"end in \.csv, \.npz"):
            write_records(original, tmp_path / "a.parquet")


class TestComparison:
    def titles(self, monkeypatch, capsys, *arguments):
        seen = []

        def compare(runs, title, **rows):
            seen.append((list(runs), title, rows))
            return Figure()

        monkeypatch.setattr(command.plots, "plot_comparison", compare)
        assert call(capsys, *arguments) == (0, [])
        return seen[0]

    @pytest.mark.slow
    def test_two_files(self, run_csv, tmp_path, capsys):
        other = write_csv(tmp_path / "other.csv", make_rows(seed=1))
        output = tmp_path / "both.png"
        assert call(capsys, run_csv, other, "-o", output) == (0, [])
        assert output.read_bytes().startswith(b"\x89PNG")

    def test_names(self, run_csv, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        other = tmp_path / "other" / "run.csv"
        other.parent.mkdir()
        other.write_bytes(run_csv.read_bytes())
        for arguments, names in (
            ((run_csv, other), [str(run_csv), str(other)]),
            ((run_csv, run_csv, "--run", 0, "--run", 1), None),
        ):
            found, title, _ = self.titles(monkeypatch, capsys, *arguments)
            assert found == (names or ["run, run 0", "run, run 1"])
            assert title is None

    def test_rows(self, run_csv, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        arguments = ("--group-by", "none", "--top", 3, "--variables", "a")
        arguments += ("--variables", "b")
        *_, rows = self.titles(
            monkeypatch, capsys, run_csv, run_csv, *arguments
        )
        assert rows == {"variables": ["a", "b"], "group_by": None, "top": 3}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--run", 0, "--run", 1, "--run", 0), "once, or for each file"),
            (("--kind", "training"), "draws one file. Received: 2 files"),
        ],
    )
    def test_wrong_use(self, run_csv, tmp_path, capsys, arguments, message):
        output = tmp_path / "a.png"
        code, lines = call(capsys, run_csv, run_csv, "-o", output, *arguments)
        assert code == 2 and message in lines[0]
