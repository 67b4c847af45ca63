"""The CSV file: one row a value, whatever happens to the disk."""

import errno
import os
import subprocess
import sys

import keras
import pytest

from keras_adamax import ClipRateLogger, WeightDeltaLogger
from keras_adamax import records as _records
from keras_adamax.callbacks import _csv_file
from tests.callbacks import training

HEADER = "run,epoch,batch,step,variable,quantity,value\n"
LOGGERS = pytest.mark.parametrize("logger", [ClipRateLogger, WeightDeltaLogger])


def read(path):
    """The rows as `records` has them; no line is torn, no row there twice."""
    text = path.read_text("utf-8")
    assert text.startswith(HEADER) and text.endswith("\n")
    assert text.count(HEADER) == 1
    lines = text.removeprefix(HEADER).splitlines()
    keys = [line.rpartition(",")[0] for line in lines]
    assert len(set(keys)) == len(keys)
    rows = [line.split(",") for line in lines]
    return [(*map(int, row[:4]), *row[4:6], float(row[6])) for row in rows]


@LOGGERS
@pytest.mark.parametrize("update_freq", ["epoch", 4])
def test_holds_the_records(logger, update_freq, tmp_path):
    path = tmp_path / "new" / "folders" / "records.csv"
    logger = logger(update_freq, filename=path)
    model = training.make_model()
    training.fit(model, [logger], epochs=2)
    training.fit(model, [logger], epochs=1)
    assert read(path) == training.rows(logger.records)
    assert {row[0] for row in read(path)} == {0, 1}


@pytest.mark.parametrize("frequencies", [("epoch", "epoch"), (2, 3), (4, 1)])
def test_two_loggers_share_one(frequencies, tmp_path):
    path = tmp_path / "records.csv"
    model = training.make_model()
    loggers = [
        ClipRateLogger(frequencies[0], filename=path),
        WeightDeltaLogger(frequencies[1], filename=path),
    ]
    training.fit(model, loggers, epochs=2)
    training.fit(model, loggers, epochs=1)
    rows = set(read(path))
    both = [set(training.rows(logger.records)) for logger in loggers]
    if frequencies[0] == frequencies[1]:
        # They have the losses in common.
        assert rows == both[0] | both[1] and both[0] & both[1]
        return
    # Where both are due, the loss of the first one's window is written.
    assert rows <= both[0] | both[1]
    without = [
        {row for row in its if row[5] != "loss"} for its in (rows, *both)
    ]
    assert without[0] == without[1] | without[2]
    losses = [row[:6] for row in rows if row[5] == "loss"]
    assert len(losses) == len(set(losses))


def test_strange_names_are_quoted(tmp_path):
    path = tmp_path / "records.csv"
    file = _csv_file.CsvFile(path, "Test")
    assert file.prepare() == (None, ())
    names = ('a,"b"', "line\nbreak", "ümläut", "plain")
    block = _records.Block(
        _records.Moment(0, 1, 2, 3),
        tuple(_records.Key(name, "q,1") for name in names),
        (0.1, float("nan"), float("-inf"), 1e-300),
    )
    file.append(block)
    (again,) = file.read()
    assert again.keys == block.keys and again.moment == block.moment
    assert list(map(repr, again.values)) == list(map(repr, block.values))
    assert file.prepare() == (0, names)


class TestResume:
    @LOGGERS
    def test_rows_after_the_restored_step_are_removed(self, logger, tmp_path):
        path = tmp_path / "records.csv"
        whole = logger(4, filename=tmp_path / "whole.csv")
        training.fit(training.make_model(), [whole], epochs=4)

        model = training.make_model()
        training.fit(model, [logger(4, filename=path)], epochs=2)
        model.save(tmp_path / "model.keras")
        # It goes on for a while, and that is lost.
        training.fit(
            model, [logger(4, filename=path)], epochs=3, initial_epoch=2
        )
        assert {row[3] for row in read(path)} > {16, 18}

        # Its paths have changed now: the rows keep their names.
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        second = logger(4, filename=path)
        training.fit(loaded, [second], epochs=4, initial_epoch=2)
        # A window that was open is begun anew.
        rows = read(path)
        assert [row[:6] for row in rows if row[3] <= 12] == [
            row[:6] for row in training.rows(whole.records) if row[3] <= 12
        ]
        assert {row[4] for row in rows} == set(
            whole.records["variable"].tolist()
        )
        assert {row[0] for row in rows} == {0}
        assert [row[3] for row in rows if row[5] == "loss"] == [
            4,
            8,
            12,
            16,
            20,
            24,
        ]
        assert [row[3] for row in rows if row[5] == "epoch_loss"] == [
            6,
            12,
            18,
            24,
        ]
        assert rows == training.rows(second.records)

    def test_two_loggers_of_a_new_process(self, tmp_path):
        path = tmp_path / "records.csv"

        def loggers():
            return [
                ClipRateLogger(filename=path),
                WeightDeltaLogger(filename=path),
            ]

        model = training.make_model()
        training.fit(model, loggers(), epochs=2)
        second = loggers()
        training.fit(model, second, epochs=4, initial_epoch=2)
        rows = read(path)
        assert {(row[0], row[3]) for row in rows} == {
            (0, 6),
            (0, 12),
            (0, 18),
            (0, 24),
        }
        for logger in second:
            own = [
                row for row in rows if row[5] in (*logger.summary_keys, "loss")
            ]
            assert sorted(training.rows(logger.records)) == sorted(own)

    @pytest.mark.slow
    def test_another_model_gets_a_run_of_its_own(self, tmp_path):
        path = tmp_path / "records.csv"
        training.fit(
            training.make_model("recurrent"),
            [ClipRateLogger(filename=path)],
            "recurrent",
            epochs=2,
        )
        before = path.read_bytes()
        model = training.make_model("dense")
        training.fit(model, [], epochs=2)
        with pytest.warns(UserWarning) as caught:
            training.fit(
                model,
                [ClipRateLogger(filename=path)],
                epochs=3,
                initial_epoch=2,
            )
        (text,) = training.user_warnings(caught)
        assert "holds the records of another model" in text
        assert "model/rnn" in text and "model/first/kernel" in text
        assert path.read_bytes().startswith(before)
        assert {row[0] for row in read(path)} == {0, 1}


class TestBadFiles:
    @LOGGERS
    @pytest.mark.parametrize(
        "content",
        [
            b"epoch,loss\n0,1.5\n",
            HEADER.upper().encode(),
            b"\x89PNG\r\n\x1a\n" + bytes(200),
            b"some text without a line ending",
            HEADER.encode() + b"0,0,1,1,a,clip_rate,much\n",
            HEADER.encode() + b"0,0,1,1\n",
            HEADER.encode() + b"0,0,1,1,\xff,clip_rate,0.5\n",
        ],
    )
    def test_that_hold_something_else(self, logger, content, tmp_path):
        path = tmp_path / "records.csv"
        path.write_bytes(content)
        model = training.make_model()
        with pytest.raises(ValueError, match="records"):
            training.fit(model, [logger(filename=path)])
        assert path.read_bytes() == content
        assert int(model.optimizer.iterations) == 0

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"run,ep",
            HEADER.encode(),
            HEADER.encode() + b"0,0,3,3,,loss,1.",
        ],
    )
    def test_that_a_crash_has_cut(self, content, tmp_path):
        path = tmp_path / "records.csv"
        path.write_bytes(content)
        logger = WeightDeltaLogger(filename=path)
        training.fit(training.make_model(), [logger])
        assert read(path) == training.rows(logger.records)

    @pytest.mark.parametrize("where", ["in a file", "a folder", "a device"])
    def test_places_that_cannot_be_written(self, where, tmp_path):
        (tmp_path / "file").write_text("x")
        path = {
            "in a file": tmp_path / "file" / "records.csv",
            "a folder": tmp_path,
            "a device": "/dev/full",
        }[where]
        if where == "a device" and not os.path.exists(path):
            pytest.skip("there is no such device")
        model = training.make_model()
        with pytest.raises(OSError, match="ClipRateLogger cannot write"):
            training.fit(model, [ClipRateLogger(filename=path)])
        assert int(model.optimizer.iterations) == 0
        if where == "a device":
            import stat

            assert stat.S_ISCHR(os.stat(path).st_mode)


class TestFullDisk:
    def run(self, tmp_path, monkeypatch, is_full, epochs=4):
        """Trains while writes fail as `is_full(number of the write)` says.

        A write that fails has taken half of the bytes.
        """
        path = tmp_path / "records.csv"
        logger = WeightDeltaLogger(filename=path)
        number = iter(range(1000))
        write = os.write

        def failing(descriptor, data):
            if is_full(next(number)):
                write(descriptor, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        monkeypatch.setattr(_csv_file.CsvFile, "_write", staticmethod(failing))
        model = training.make_model()
        with pytest.warns(UserWarning) as caught:
            training.fit(model, [logger], epochs=epochs)
        (text,) = training.user_warnings(caught)
        assert "cannot write" in text and "No space left on device" in text
        assert "Training goes on" in text and str(path) in text
        assert int(model.optimizer.iterations) == 6 * epochs
        return path, logger

    def test_for_good(self, tmp_path, monkeypatch):
        path, logger = self.run(tmp_path, monkeypatch, lambda n: n >= 2)
        records = training.rows(logger.records)
        assert len({row[1] for row in records}) == 4
        # What was written before is there, whole.
        assert read(path) == [row for row in records if row[1] < 2]

    def test_for_a_while(self, tmp_path, monkeypatch):
        path, logger = self.run(tmp_path, monkeypatch, lambda n: n in (1, 2))
        assert read(path) == training.rows(logger.records)

    @pytest.mark.slow
    @pytest.mark.skipif(
        not hasattr(os, "WIFEXITED"), reason="needs POSIX's file size limit"
    )
    def test_a_real_limit(self, tmp_path):
        """The kernel itself takes a part of a line, and then no more."""
        path = tmp_path / "records.csv"
        done = subprocess.run(
            [sys.executable, "-c", LIMIT_SCRIPT, str(path)],
            env=os.environ
            | {
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Training goes on") == 1
        rows = read(path)
        assert 0 < len(rows) < 200 == int(done.stdout)
        assert path.stat().st_size <= 2500


LIMIT_SCRIPT = """
import resource, sys
from keras_adamax.callbacks._csv_file import CsvFile
from keras_adamax.records import Block, Key, Moment

file = CsvFile(sys.argv[1], "Test")
file.prepare()
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
for i in range(50):
    keys = tuple(Key(f"layer_{j}/kernel", "clip_rate") for j in range(4))
    file.append(Block(Moment(0, i, 1, i), keys, (0.5,) * 4))
print(200)
"""


def test_each_record_is_one_write(tmp_path, monkeypatch):
    writes = []
    write = os.write

    def counting(descriptor, data):
        writes.append(data)
        return write(descriptor, data)

    monkeypatch.setattr(_csv_file.CsvFile, "_write", staticmethod(counting))
    path = tmp_path / "records.csv"
    training.fit(
        training.make_model(),
        [ClipRateLogger(2, filename=path), WeightDeltaLogger(filename=path)],
        epochs=2,
    )
    assert len(writes) == 6 + 2
    assert all(data.endswith(b"\n") for data in writes)


def test_a_file_that_is_taken_away_is_begun_anew(tmp_path):
    path = tmp_path / "records.csv"

    class Take(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                path.unlink()

    logger = WeightDeltaLogger(filename=path)
    training.fit(training.make_model(), [logger, Take()], epochs=2)
    assert read(path) == training.rows(logger.records, epoch=1)


@pytest.mark.skipif(
    not hasattr(os, "WIFEXITED"), reason="needs POSIX's file size limit"
)
def test_a_write_that_fails_leaves_the_rows_of_others(tmp_path, monkeypatch):
    """Another writer comes while the kernel takes a part of a line only."""
    import resource
    import threading
    import time

    path = tmp_path / "records.csv"
    full, other = (_csv_file.CsvFile(path, "Test") for _ in range(2))
    full.prepare()

    def block(step):
        keys = (_records.Key("layer/kernel", "clip_rate"),)
        return _records.Block(_records.Moment(0, 0, step, step), keys, (0.5,))

    write = os.write
    threads = []

    def limited(descriptor, data):
        if not threads:
            threads.append(
                threading.Thread(target=other.append, args=(block(2),))
            )
            size = os.fstat(descriptor).st_size
            _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
            try:
                assert write(descriptor, data) == 5
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                threads[0].start()
                time.sleep(0.5)
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return write(descriptor, data)

    monkeypatch.setattr(_csv_file.CsvFile, "_write", staticmethod(limited))
    with pytest.warns(UserWarning, match="cannot write"):
        full.append(block(1))
    threads[0].join()
    assert [row[3] for row in read(path)] == [2]
    full.flush()
    assert [row[3] for row in read(path)] == [2, 1]


@pytest.mark.slow
def test_a_stall_disorders_no_rows(tmp_path):
    """The hooks of a batch's end run in threads on JAX and torch."""
    import time

    class Stall(keras.callbacks.Callback):
        async_safe = True
        count = 0

        def on_train_batch_end(self, batch, logs=None):
            self.count += 1
            time.sleep(1.5 if self.count == 2 else 0.1)

    path = tmp_path / "records.csv"
    loggers = [
        ClipRateLogger(1, filename=path),
        Stall(),
        WeightDeltaLogger(1, filename=path),
    ]
    training.fit(training.make_model(), loggers, epochs=2)
    steps = [row[3] for row in read(path)]
    assert steps == sorted(steps) and set(steps) == set(range(1, 13))
