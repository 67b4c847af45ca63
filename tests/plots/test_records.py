import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_adamax.plots import _records, read_records
from tests.plots.synthetic import COLUMNS, as_records, make_rows, write_csv

HEADER = ",".join(COLUMNS) + "\n"
GOOD = "0,0,10,10,dense/kernel,clip_rate,0.5\n"


def assert_same(left, right):
    assert list(left) == list(right) == list(COLUMNS)
    for name in COLUMNS:
        assert left[name].dtype.kind == right[name].dtype.kind
        np.testing.assert_array_equal(left[name], right[name])


def test_file_and_mapping_give_the_same(tmp_path):
    rows = make_rows(nan=["sequential/dense/bias"], runs=2)
    records = as_records(rows)
    assert np.isnan(records["value"]).any()
    assert_same(read_records(write_csv(tmp_path / "run.csv", rows)), records)
    assert_same(read_records(records), records)
    lists = {name: column.tolist() for name, column in records.items()}
    assert_same(read_records(lists), records)


def test_mapping_is_copied():
    records = as_records(make_rows(epochs=1))
    copy = read_records(records)
    copy["value"][:] = 7
    assert not (records["value"] == 7).any()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            *[st.integers(0, 2**62)] * 4,
            # NumPy drops a trailing NUL from its strings.
            st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")),
            st.just("loss"),
            st.floats(),
        ),
        min_size=1,
    )
)
def test_any_rows_survive_a_file(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("records") / "run.csv"
    records = read_records(write_csv(path, rows))
    assert_same(records, as_records(rows))


def test_header_alone_is_empty(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text(HEADER)
    records = read_records(path)
    assert all(column.size == 0 for column in records.values())
    assert [column.dtype.kind for column in records.values()] == list("iiiiUUf")


@pytest.mark.parametrize("cut", range(1, len(GOOD)))
def test_torn_last_line_is_left_out_with_a_warning(tmp_path, cut):
    path = tmp_path / "run.csv"
    path.write_text(HEADER + GOOD + GOOD[:cut])
    with pytest.warns(UserWarning, match=r"run\.csv, line 3: .*cut off"):
        records = read_records(path)
    row = (0, 0, 10, 10, "dense/kernel", "clip_rate", 0.5)
    assert_same(records, as_records([row]))


def test_last_line_torn_inside_a_character(tmp_path):
    path = tmp_path / "run.csv"
    torn = "0,0,1,1,caf\u00e9".encode()[:-1]
    path.write_bytes((HEADER + GOOD).encode() + torn)
    with pytest.warns(UserWarning, match="line 3"):
        assert read_records(path)["step"].tolist() == [10]


def test_other_programs_files(tmp_path):
    path = tmp_path / "run.csv"
    quoted = GOOD.replace("dense/kernel", '"a,b/kernel"')
    text = "\ufeff" + HEADER + GOOD + "\n" + quoted
    path.write_text(text.replace("\n", "\r\n"), encoding="utf-8", newline="")
    names = read_records(path)["variable"].tolist()
    assert names == ["dense/kernel", "a,b/kernel"]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "header must be run,epoch"),
        ("run,epoch\n", 1, "Received: 'run,epoch'"),
        ("epoch,loss\n0,1.0\n", 1, "header must be"),
        (HEADER.replace("run,epoch", "epoch,run") + GOOD, 1, "header must be"),
        (HEADER + "0,0,10\n" + GOOD, 2, "7 fields. Received: 3"),
        (HEADER + GOOD + GOOD[:-1] + GOOD, 3, "7 fields. Received: 13"),
        (HEADER + "zero" + GOOD[1:], 2, "`run` must be an integer.*'zero'"),
        (HEADER + GOOD + "\n" + GOOD.replace("10,10", "10,1.5"), 4, "`step`"),
        (HEADER + GOOD.replace("0.5", "high"), 2, "`value` must be a number"),
        (HEADER + GOOD.replace("0.5", ""), 2, "`value` must be a number"),
        (HEADER + GOOD.replace("10,10", "10,-1"), 2, "`step` must not be neg"),
        (HEADER + GOOD.replace("10,10", "10," + "9" * 30), 2, "`step`"),
        (HEADER + GOOD.replace("clip_rate", ""), 2, "`quantity` must not be"),
        (HEADER + GOOD.replace("0.5", "1.5"), 2, r"range \[0, 1\].*1\.5"),
        (HEADER + GOOD.replace("0.5", "-inf"), 2, r"range \[0, 1\]"),
        (HEADER + "0,0,1,1,,weight_delta,-0.1\n", 2, "must not be negative"),
        (HEADER + "0,0,1,1,,spikes,-1\n", 2, "must not be negative"),
        (HEADER + "0,0,1,1,,spike_rate,1.1\n", 2, r"range \[0, 1\]"),
        (HEADER + '0,0,1,1,"a"b,loss,1\n', 2, "not CSV"),
        (HEADER + '0,0,1,1,"a,loss,1\n', 2, "not CSV"),
    ],
)
def test_malformed_file_names_file_line_and_fault(tmp_path, text, line, what):
    path = tmp_path / "run.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"run\.csv, line {line}: .*{what}"):
        read_records(path)


def test_not_text(tmp_path):
    path = tmp_path / "run.csv"
    path.write_bytes(HEADER.encode() + b"\x89PNG\xff\n")
    with pytest.raises(ValueError, match="line 2: this is not UTF-8"):
        read_records(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(ValueError, match="line 1: this is not UTF-8"):
        read_records(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_records(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"value": None}, "Missing: value"),
        ({"value": [1.0, 2.0]}, "equal length"),
        ({"value": [["x"]]}, "one-dimensional|equal length"),
        ({"value": ["x"]}, "`value` of records must hold numbers"),
        ({"step": [1.0]}, "`step` of records must hold integers"),
        ({"step": [-1]}, "Row 0 of the records: `step` must not be negative"),
        ({"variable": [float("nan")]}, "`variable` of records must hold str"),
        ({"quantity": ["clip_rate"], "value": [2.0]}, "range"),
    ],
)
def test_malformed_mapping(change, error):
    records = as_records([(0, 0, 1, 1, "", "loss", 0.5)]) | change
    records = {name: kept for name, kept in records.items() if kept is not None}
    with pytest.raises(ValueError, match=error):
        read_records(records)


@pytest.mark.parametrize("source", [None, 3, [("run", [0])]])
def test_other_sources_are_refused(source):
    with pytest.raises(TypeError, match="path of a CSV file or a mapping"):
        read_records(source)


def test_one_run():
    records = as_records(make_rows(runs=3))
    chosen = read_records(records, run=1)
    here = records["run"] == 1
    assert_same(chosen, {name: c[here] for name, c in records.items()})
    with pytest.raises(ValueError, match=r"run 5. Recorded runs: 0, 1, 2\."):
        read_records(records, run=5)


def test_docstrings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "run.csv", make_rows())
    result = doctest.testmod(_records)
    assert result.attempted and not result.failed
