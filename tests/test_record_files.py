"""What is written to a file of records is what is read from it."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_adamax import record_files, records
from keras_adamax.record_files import HEADER, BadRecords
from keras_adamax.records import Block, Key, Moment

LINE = "0,0,{step},{step},{name},clip_rate,0.5\n"
NAMES = [
    "dense/kernel",
    'a,"b"',
    "line\nbreak",
    "cr\rlf\r\n",
    "\u00fcml\u00e4ut",
    "",
]
# NumPy drops a trailing NUL from its strings.
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
moments = st.builds(Moment, *[st.integers(0, 2**62)] * 4)
blocks = st.builds(
    lambda moment, rows: Block(moment, *map(tuple, zip(*rows, strict=True))),
    moments,
    st.lists(st.tuples(st.builds(Key, names, names), st.floats()), min_size=1),
)


def rows_of(made):
    return [
        (*block.moment, *key, repr(value))
        for block in made
        for key, value in zip(block.keys, block.values, strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(blocks, max_size=5))
def test_blocks_survive_both_files(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("records")
    records.save(made, folder / "a.csv")
    assert rows_of(records.load(folder / "a.csv")) == rows_of(made)
    columns, torn = record_files.read_csv(folder / "a.csv")
    assert torn is None
    record_files.write_npz(columns, folder / "a.npz")
    again = records.to_blocks(record_files.read_npz(folder / "a.npz"))
    assert rows_of(again) == rows_of(made)


@pytest.mark.parametrize("size", [1, 10, 64, 2**20])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_pieces_of_any_size_give_the_same(tmp_path, monkeypatch, size, ending):
    monkeypatch.setattr(record_files, "_CHUNK", size)
    path = tmp_path / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=ending)
        writer.writerow(HEADER.rstrip().split(","))
        for step in range(5):
            for name in NAMES:
                writer.writerow([0, 0, step, step, name, "clip_rate", 0.1])
    columns, _ = record_files.read_csv(path)
    assert columns.variables == tuple(NAMES)
    assert columns.variable.tolist() == list(range(len(NAMES))) * 5
    assert columns.moments[columns.moment, 3].tolist() == [
        step for step in range(5) for _ in NAMES
    ]


@pytest.mark.parametrize("size", [1, 64, 2**20])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("0,0,1,1,a,clip_rate\n", "7 fields. Received: 6"),
        # As many commas as two rows should have.
        ("0,0,1,1,a\n0,0,1,1,a,clip_rate,0.5,1,2\n", "7 fields. Received: 5"),
        (
            LINE.format(step=1, name="a")[:-4] + "x\n",
            "`value` must be a number",
        ),
        (LINE.format(step="1e3", name="a"), "`batch` must be an integer"),
        (LINE.format(step=2**63, name="a"), "`batch` must be an integer"),
    ],
)
def test_bad_lines_are_named(tmp_path, monkeypatch, size, bad, reason):
    monkeypatch.setattr(record_files, "_CHUNK", size)
    good = "".join(LINE.format(step=s, name='"a\nb"') for s in range(3))
    path = tmp_path / "a.csv"
    path.write_text(HEADER + good + "\n" + bad + good)
    with pytest.raises(BadRecords, match=rf"line 9: .*{reason}"):
        record_files.read_csv(path)
    with pytest.raises(ValueError, match=rf"source, line 8: .*{reason}.*Mend"):
        records.from_lines(good + "\n" + bad + good, "source")


def test_the_line_of_a_row(tmp_path):
    good = [LINE.format(step=s, name='"a\nb"') for s in range(3)]
    path = tmp_path / "a.csv"
    path.write_text(HEADER + "\n".join(good))
    assert [record_files.line_of_row(path, row) for row in range(3)] == [
        3,
        6,
        9,
    ]


def test_blocks_share_their_names():
    text = "".join(
        LINE.format(step=step, name=name) for step in (1, 2) for name in "ab"
    )
    one, two = records.from_lines(text, "source")
    assert one.keys is two.keys
    assert one.keys == (Key("a", "clip_rate"), Key("b", "clip_rate"))


def test_lines_without_a_last_ending_are_read():
    (block,) = records.from_lines("0,0,1,1,a,loss,1.5", "source")
    assert block.values == (1.5,)
    assert records.from_lines("", "source") == []


class TestBadNpz:
    def write(self, path, **changes):
        columns = record_files.parse_csv(LINE.format(step=1, name="a"))
        record_files.write_npz(columns, path)
        with np.load(path) as file:
            arrays = dict(file) | changes
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"value": None}, "value"),
            ({"version": 2}, "newer version"),
            ({"variable": np.array([7])}, "`variable` is malformed"),
            ({"moment": np.array([0, 0])}, "`moment` is malformed"),
            ({"quantities": np.array([print], object)}, "pickle"),
        ],
    )
    def test_that_holds_something_else(self, tmp_path, changes, reason):
        path = tmp_path / "a.npz"
        self.write(path, **changes)
        with pytest.raises(ValueError, match=rf"a\.npz: .*{reason}"):
            record_files.read_npz(path)

    def test_that_is_damaged(self, tmp_path):
        path = tmp_path / "a.npz"
        self.write(path)
        data = path.read_bytes()
        for cut in (10, len(data) // 2, len(data) - 5):
            path.write_bytes(data[:cut])
            assert record_files.is_npz(path)
            with pytest.raises(ValueError, match=r"a\.npz: "):
                record_files.read_npz(path)
        # A compression, and an encryption, that zipfile does not know.
        directory = data.index(b"PK\x01\x02")
        for place, number in ((directory + 10, 99), (directory + 8, 0x20)):
            damaged = bytearray(data)
            damaged[place] = number
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"a\.npz: "):
                record_files.read_npz(path)


def test_plain_lines_are_read_as_csv_reads_them():
    """The quick way and the `csv` module agree."""
    rng = np.random.default_rng(0)
    lines = [
        f"{run},{epoch},{batch},{step},w{step % 7},q{batch % 3},{value!r}\n"
        for run, epoch, batch, step, value in zip(
            *rng.integers(0, 10**6, (4, 300)).tolist(),
            (10.0 ** rng.uniform(-300, 300, 300)).tolist(),
            strict=True,
        )
    ]
    columns = record_files.parse_csv("".join(lines)).to_dict()
    rows = list(csv.reader(io.StringIO("".join(lines))))
    for name, texts in zip(columns, zip(*rows, strict=True), strict=True):
        kind = type(columns[name][0].item())
        assert columns[name].tolist() == list(map(kind, texts))
