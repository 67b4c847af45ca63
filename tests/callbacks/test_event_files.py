"""Event files, read back by a TensorBoard server."""

import builtins
import errno
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from keras_adamax import AdamaxClipped, ClipRateLogger, WeightDeltaLogger
from keras_adamax.callbacks import _event_files
from tests.callbacks import training
from tests.tensorboard_server import Server


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two loggers of a run that is stopped, loses a part and is resumed."""
    folder = tmp_path_factory.mktemp("events")
    model = training.make_model(optimizer=AdamaxClipped(0.05))

    def loggers():
        return [
            ClipRateLogger(log_dir=folder),
            WeightDeltaLogger(2, log_dir=folder),
        ]

    watcher = training.WeightWatcher()
    first = loggers()
    training.fit(model, [*first, watcher], epochs=2)
    model.save_weights(folder / "kept.weights.h5")
    training.fit(model, first, epochs=4, initial_epoch=2)  # lost
    model.load_weights(folder / "kept.weights.h5")
    x, y = training.make_data()
    # On other data, so that one can tell.
    model.fit(
        -x, 2 * y, 4, epochs=3, initial_epoch=2, callbacks=first, verbose=0
    )
    return folder, first, watcher


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    server = Server(trained[0], tmp_path_factory.mktemp("log") / "log.txt")
    yield server
    server.stop()


LAYERS = {
    "model.first/kernel": "model/first/kernel",
    "model.first/bias": "model/first/bias",
    "model.second/kernel": "model/second/kernel",
    "model.second/bias": "model/second/bias",
}


@pytest.mark.slow
def test_scalars_are_those_of_the_records(server, trained):
    _, (rates, deltas), _ = trained
    for run, logger in (("clip_rate", rates), ("weight_delta", deltas)):
        records = logger.records
        for quantity in logger.summary_keys:
            names = {f"{t}/{quantity}": v for t, v in LAYERS.items()}
            names[f"all_weights/{quantity}"] = ""
            for tag, variable in names.items():
                expected = {
                    row[3]: row[6]
                    for row in training.rows(
                        records, variable=variable, quantity=quantity
                    )
                }
                assert max(expected) == 18  # and no step of what was lost
                series = server.wait(
                    lambda run=run, tag=tag: (
                        max(server.scalars(run, tag)) == 18
                        and server.scalars(run, tag)
                    )
                )
                assert series == pytest.approx(expected, rel=1e-6)
        loss = server.scalars(run, "logs/loss")
        assert loss == pytest.approx(
            {row[3]: row[6] for row in training.rows(records, quantity="loss")}
        )


@pytest.mark.slow
def test_series_are_grouped_by_layer(server):
    server.wait(lambda: len(server.get("plugin/scalars/tags")) == 2)
    tags = server.get("plugin/scalars/tags")
    assert set(tags) == {"clip_rate", "weight_delta"}
    for run in tags.values():
        # TensorBoard shows a group for what stands before the first slash.
        groups = {tag.split("/")[0] for tag in run}
        assert groups == {"model.first", "model.second", "all_weights", "logs"}


@pytest.mark.slow
def test_histograms_of_the_change(server, trained):
    _, _, watcher = trained
    tags = server.get("plugin/histograms/tags")["weight_delta"]
    assert set(tags) == {f"{tag}/change" for tag in LAYERS}
    for tag, path in LAYERS.items():
        series = {
            step: np.asarray(bins)
            for _, step, bins in server.get(
                "plugin/histograms/histograms",
                run="weight_delta",
                tag=f"{tag}/change",
            )
        }
        assert sorted(series) == list(range(2, 19, 2))
        for step in range(2, 13, 2):
            saved = watcher.weights
            moved = (saved[step][path] - saved[step - 2][path]).ravel()
            bins = series[step]
            assert bins[:, 2].sum() == pytest.approx(moved.size)
            largest = np.abs(moved).max()
            assert bins[0, 0] >= -largest * 1.01
            assert bins[-1, 1] == pytest.approx(largest, rel=1e-4)
            # Where the elements lie: their sum, to the width of a bin.
            middles = bins[:, :2].mean(axis=1)
            assert middles @ bins[:, 2] == pytest.approx(
                moved.sum(), abs=moved.size * largest / 10
            )


def test_tags():
    tag = _event_files.tag
    assert tag("model/dense/kernel", "x") == "model.dense/kernel/x"
    assert tag("a/b/c/kernel", "x") == "a.b.c/kernel/x"
    assert tag("kernel", "x") == "kernel/x"


def test_two_fits_within_a_second_are_two_files(tmp_path):
    model = training.make_model()
    logger = ClipRateLogger(log_dir=tmp_path)
    for _ in range(3):
        training.fit(model, [logger])
    assert len(list((tmp_path / "clip_rate").iterdir())) == 3


WITHOUT_TENSORFLOW = """
import sys

import tests.no_tensorflow
from keras_adamax import ClipRateLogger, WeightDeltaLogger
from tests.callbacks import training

folder = sys.argv[1]
loggers = [ClipRateLogger(log_dir=folder), WeightDeltaLogger(2, log_dir=folder)]
training.fit(training.make_model(), loggers, epochs=2)
assert "tensorflow" not in sys.modules
print("done")
"""


@pytest.mark.skipif(
    training.BACKEND == "tensorflow",
    reason="asks what happens without TensorFlow",
)
def test_without_tensorflow(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    for run, key, steps in (
        ("clip_rate", "clip_rate", [6, 12]),
        ("weight_delta", "weight_delta_ratio", [2, 4, 6, 8, 10, 12]),
    ):
        # 0: it keeps all.
        events = EventAccumulator(str(tmp_path / run), {"histograms": 0})
        events.Reload()
        for tag in (f"model.first/kernel/{key}", f"all_weights/{key}"):
            assert [e.step for e in events.Scalars(tag)] == steps
    assert len(events.Histograms("model.first/kernel/change")) == 6


class TestBadInput:
    def test_without_tensorboardx(self, monkeypatch, tmp_path):
        real = builtins.__import__

        def without(name, *arguments):
            if name.startswith("tensorboardX"):
                raise ImportError("No module named 'tensorboardX'")
            return real(name, *arguments)

        monkeypatch.setattr(builtins, "__import__", without)
        logger = ClipRateLogger(log_dir=tmp_path)  # made, but not used
        with pytest.raises(ImportError, match="pip install tensorboardX"):
            training.fit(training.make_model(), [logger])

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(OSError, match="cannot write event files"):
            training.fit(
                training.make_model(),
                [WeightDeltaLogger(log_dir=tmp_path / "file")],
            )

    @pytest.mark.slow
    def test_a_full_disk(self, tmp_path, monkeypatch):
        from tensorboardX import event_file_writer

        class Full(event_file_writer.EventsWriter):
            count = 0

            def write_event(self, event):
                Full.count += 1
                if Full.count > 20:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write_event(event)

        monkeypatch.setattr(event_file_writer, "EventsWriter", Full)
        logger = WeightDeltaLogger(log_dir=tmp_path)
        with pytest.warns(UserWarning, match="No space left") as caught:
            training.fit(training.make_model(), [logger], epochs=3)
        assert len(training.user_warnings(caught)) == 1
        values = training.values(
            logger.records, variable="", quantity="weight_delta"
        )
        assert len(values) == 3
        assert all(math.isfinite(value) for value in values)
