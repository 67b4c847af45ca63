"""A run that was killed ends as one that was not."""

import errno
import json
import math
import os

import keras
import numpy as np
import pytest

from keras_adamax import (
    AdamaxClipped,
    AtomicBackup,
    ClipRateLogger,
    WeightDeltaLogger,
    _atomic_files,
)
from keras_adamax.callbacks import _recorder
from keras_adamax.callbacks._backup import generations as folders
from keras_adamax.callbacks._backup import weights_file
from tests.callbacks import training

EPOCHS = 4
# `.ci/nightly` takes more.
KILL_SEEDS = os.environ.get("KERAS_ADAMAX_KILL_SEEDS", "0").split()


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("seed", KILL_SEEDS)
def test_killed_at_random_moments(seed, tmp_path):
    kills = 7
    told = training.run_script("kill_script", tmp_path, seed, kills)
    assert told["kills"] >= 6
    # They hit it in different epochs.
    assert len(set(told["last epochs seen"])) >= 4

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    one, other = (np.load(f / "variables.npz") for f in (whole, killed))
    assert sorted(one) == sorted(other) and len(one) > 8
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    one, other = (
        json.loads((f / "result.json").read_text()) for f in (whole, killed)
    )
    assert one == other
    assert one["epoch"] == list(range(12))
    assert len(one["history"]["val_loss"]) == 12
    # Each of 12 epochs; every 4th and every 5th of 72 batches. A rate or two
    # deltas of 4 variables and of all; 2 scalars, and 4 at the end of an epoch.
    assert [len(r["value"]) for r in one["records"]] == [
        12 * (5 + 4),
        18 * (10 + 2) + 12 * 4,
        14 * (10 + 2) + 12 * 4,
    ]
    # Byte for byte, and so no row is missing or there twice.
    assert (whole / "records.csv").read_bytes() == (
        killed / "records.csv"
    ).read_bytes()


class Run:
    """The same training again and again, in one process and one model."""

    def __init__(self, folder, save_freq="epoch", **arguments):
        self.folder = folder
        self.save_freq = save_freq
        self.arguments = arguments
        self.model = training.make_model(
            optimizer=AdamaxClipped(0.05, name="optimizer")
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.variables = [*self.model.weights, *self.model.optimizer.variables]
        self.start = [np.array(v) for v in self.get()]

    def get(self):
        return [keras.ops.convert_to_numpy(v).copy() for v in self.variables]

    def scramble(self):
        """What a new process has instead: nothing of the old values."""
        for variable, value in zip(self.variables, self.start, strict=True):
            variable.assign(value)

    def fit(self, *others, epochs=EPOCHS, new_process=True):
        if new_process:
            self.scramble()
        self.loggers = [
            ClipRateLogger(filename=self.folder / "records.csv"),
            WeightDeltaLogger(4, filename=self.folder / "records.csv"),
        ]
        self.backup = AtomicBackup(
            self.folder / "backup", self.save_freq, **self.arguments
        )
        return training.fit(
            self.model, [*self.loggers, self.backup, *others], epochs=epochs
        )

    def outcome(self, history):
        return {
            "history": history.history,
            "epoch": history.epoch,
            "records": [
                training.rows(logger.records) for logger in self.loggers
            ],
            "file": (self.folder / "records.csv").read_text(),
            "variables": [value.tolist() for value in self.get()],
        }


def assert_same(one, other):
    if training.BACKEND == "torch":  # its sums may depend on the memory
        assert one.keys() == other.keys()
        assert one["epoch"] == other["epoch"]
        for a, b in zip(one["variables"], other["variables"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
        for a, b in zip(one["records"], other["records"], strict=True):
            assert [row[:6] for row in a] == [row[:6] for row in b]
        lines = [
            [line.rpartition(",")[0] for line in run["file"].splitlines()]
            for run in (one, other)
        ]
        assert lines[0] == lines[1]
    else:
        assert one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What comes of a run that nobody disturbs."""
    run = Run(tmp_path_factory.mktemp("whole"))
    outcome = run.outcome(run.fit())
    assert not (run.folder / "backup").exists()
    return outcome


class TestStopped:
    @pytest.mark.parametrize("at", [(0, 3), (1, 0), (2, 5)])
    def test_and_resumed(self, at, whole, tmp_path):
        run = Run(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run.fit(training.Stop(*at))
        history = run.fit()
        assert_same(whole, run.outcome(history))
        assert not (tmp_path / "backup").exists()

    def test_and_resumed_by_the_same_logger(self, whole, tmp_path):
        run = Run(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run.fit(training.Stop(2, 4))
        loggers, run.loggers = run.loggers, None
        history = training.fit(
            run.model,
            [*loggers, AtomicBackup(tmp_path / "backup")],
            epochs=EPOCHS,
        )
        run.loggers = loggers
        assert_same(whole, run.outcome(history))

    @pytest.mark.slow
    def test_and_resumed_in_a_window_of_clip_rates(self, tmp_path):
        """The epoch begins later than the window that was restored."""
        histories = []
        for name in ("whole", "stopped"):
            run = Run(tmp_path / name)

            def fit(*others, run=run):
                run.scramble()
                callbacks = [
                    ClipRateLogger(4),
                    AtomicBackup(run.folder),
                    *others,
                ]
                history = training.fit(run.model, callbacks, epochs=EPOCHS)
                return history.history["clip_rate"]

            if name == "stopped":
                with pytest.raises(KeyboardInterrupt):
                    fit(training.Stop(1, 1))
            histories.append(fit())
        assert histories[0] == pytest.approx(histories[1], rel=1e-12)
        assert len(set(histories[0])) > 1

    def test_when_nothing_was_left_to_train(self, whole, tmp_path):
        run = Run(tmp_path, delete_checkpoint=False)
        run.fit()
        history = run.fit()
        assert_same(whole, run.outcome(history))

    def test_the_next_fit_begins_at_its_beginning(self, tmp_path):
        run = Run(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run.fit(training.Stop(2, 4))
        run.fit()
        history = run.fit(epochs=2, new_process=False)
        assert history.epoch == [0, 1]
        steps = {
            row[0]: row[3] for row in training.rows(run.loggers[0].records)
        }
        assert steps == {1: 36}

    def test_by_batches_it_begins_the_epoch_again(self, tmp_path):
        # As in Keras; the batches that were trained are trained again.
        run = Run(tmp_path, save_freq=4)
        with pytest.raises(KeyboardInterrupt):
            run.fit(training.Stop(2, 5))  # backups at batches 4, 8, 12, 16
        state = folders.Generations(tmp_path / "backup")
        saved = state.read(state.paths()[0])
        assert (saved["epoch"], saved["batch"], saved["step"]) == (2, 4, 16)
        history = run.fit(epochs=3)
        assert history.epoch == [0, 1, 2]
        steps = [
            row[:4]
            for row in training.rows(
                run.loggers[1].records, variable="", quantity="weight_delta"
            )
        ]
        assert steps == [
            (0, 0, 4, 4),
            (0, 1, 2, 8),
            (0, 1, 6, 12),
            (0, 2, 4, 16),
            (0, 2, 4, 20),
        ]
        assert int(run.model.optimizer.iterations) == 22


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.slow
def test_a_crash_at_any_step_of_a_backup(whole, tmp_path, monkeypatch):
    calls = []
    crash_at = None

    def step(name, function):
        def wrapper(*arguments, **options):
            calls.append(name)
            if len(calls) - 1 == crash_at:
                raise Killed
            return function(*arguments, **options)

        return wrapper

    for module, name in (
        (_atomic_files, "sync"),
        (_atomic_files, "sync_folder"),
        (os, "rename"),
        (_atomic_files.shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, step(name, getattr(module, name)))
    first = Run(tmp_path / "counted")
    first.folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        first.fit(training.Stop(3, 0))
    in_one = len(calls) // 3
    assert {"sync", "sync_folder", "rename", "rmtree"} == set(calls)
    names = list(calls)
    run = Run(tmp_path)
    # All of the third backup, which removes the first.
    for number in range(len(names) - in_one - 2, len(names)):
        run.folder = tmp_path / str(number)
        run.folder.mkdir()
        calls.clear()
        crash_at = number
        with pytest.raises(Killed):
            run.fit()
        crash_at = None
        assert_same(whole, run.outcome(run.fit()))


FILES = [
    "records-ClipRateLogger-0.csv",
    "records-WeightDeltaLogger-0.csv",
    "model.weights.h5",
    "arrays.npz",
    "state.json",
]


@pytest.mark.slow
class TestFullDisk:
    def fill(self, monkeypatch, name, is_full):
        """The disk takes half of a file, when `is_full(number of backup)`."""
        numbers = iter(range(1, 1000))
        sync = _atomic_files.sync

        def failing(path):
            if path.name == name and is_full(next(numbers)):
                os.truncate(path, path.stat().st_size - 9)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(path)

        monkeypatch.setattr(_atomic_files, "sync", failing)

    def warning(self, function, *arguments):
        """What a function returns, and its only warning."""
        with pytest.warns(UserWarning) as caught:
            result = function(*arguments)
        (text,) = training.user_warnings(caught)
        assert "AtomicBackup cannot write a backup to" in text
        assert "No space left on device. Training goes on." in text
        return result, text

    @pytest.mark.parametrize("name", FILES)
    def test_at_the_second_of_four(self, name, whole, tmp_path, monkeypatch):
        self.fill(monkeypatch, name, lambda number: number == 2)
        run = Run(tmp_path, delete_checkpoint=False)
        history, text = self.warning(run.fit)
        assert str(tmp_path / "backup") in text and "(epoch 2)" in text
        assert int(run.model.optimizer.iterations) == 6 * EPOCHS
        assert_same(whole, run.outcome(history))
        # Nothing is left of what failed, and the last two are intact.
        generations = folders.Generations(tmp_path / "backup")
        assert [
            generations.read(path)["epoch"] for path in generations.paths()
        ] == [4, 3]
        names = [path.name for path in (tmp_path / "backup").iterdir()]
        assert not [name for name in names if name.startswith(".")]
        assert_same(whole, run.outcome(run.fit()))

    @pytest.mark.parametrize("name", FILES)
    def test_and_then_killed(self, name, whole, tmp_path, monkeypatch):
        self.fill(monkeypatch, name, lambda number: number >= 2)
        run = Run(tmp_path)

        def stopped():
            with pytest.raises(KeyboardInterrupt):
                run.fit(training.Stop(3, 2))

        self.warning(stopped)
        assert int(run.model.optimizer.iterations) == 20
        generations = folders.Generations(tmp_path / "backup")
        (path,) = generations.paths()
        assert generations.read(path)["epoch"] == 1
        monkeypatch.undo()
        assert_same(whole, run.outcome(run.fit()))

    def test_at_the_first(self, whole, tmp_path, monkeypatch):
        self.fill(monkeypatch, "state.json", lambda number: True)
        run = Run(tmp_path)
        history, _ = self.warning(run.fit)
        assert_same(whole, run.outcome(history))
        assert not (tmp_path / "backup").exists()

    def test_no_room_is_seen_before_hdf5_meets_it(
        self, whole, tmp_path, monkeypatch
    ):
        # It may crash the process.
        run = Run(tmp_path, delete_checkpoint=False)
        numbers = iter(range(1, 1000))
        usage = weights_file.shutil.disk_usage

        def nearly_full(path):
            free = 100 if next(numbers) in (2, 3) else 2**30
            return usage(path)._replace(free=free)

        monkeypatch.setattr(weights_file.shutil, "disk_usage", nearly_full)
        history, _ = self.warning(run.fit)
        assert_same(whole, run.outcome(history))
        paths = folders.Generations(tmp_path / "backup").paths()
        assert len(paths) == 2
        size = (paths[0] / "model.weights.h5").stat().st_size
        assert size <= weights_file.largest_size(run.model)

    def test_after_hdf5_has_failed_it_is_left_alone(
        self, whole, tmp_path, monkeypatch
    ):
        run = Run(tmp_path, delete_checkpoint=False)
        calls = []
        save = run.model.save_weights

        def failing(path):
            calls.append(path)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "of HDF5 (errno = 28)")
            save(path)

        monkeypatch.setattr(run.model, "save_weights", failing)
        history, text = self.warning(run.fit)
        assert "no more are made in this `fit`" in text
        assert_same(whole, run.outcome(history))
        assert len(calls) == 2
        monkeypatch.undo()
        assert_same(whole, run.outcome(run.fit()))

    def test_h5py_raises_something_else(self, tmp_path, monkeypatch):
        class Model:
            text = "Can't decrement id ref count (time = x\n, errno = 28, y)"

            def save_weights(self, path):
                raise RuntimeError(self.text)

        monkeypatch.setattr(weights_file, "largest_size", lambda model: 0)
        with pytest.raises(weights_file.Hdf5Error) as caught:
            weights_file.save(Model(), tmp_path / "a")
        assert caught.value.errno == errno.ENOSPC
        Model.text = "of another kind"
        with pytest.raises(RuntimeError, match="of another kind"):
            weights_file.save(Model(), tmp_path / "a")


@pytest.mark.slow
class TestDamage:
    def stopped(self, tmp_path):
        run = Run(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run.fit(training.Stop(3, 2))
        paths = folders.Generations(tmp_path / "backup").paths()
        assert len(paths) == 2
        return run, paths

    @pytest.mark.parametrize(
        "file", ["model.weights.h5", "arrays.npz", "state.json"]
    )
    @pytest.mark.parametrize("how", ["truncated", "one byte", "gone"])
    def test_of_the_newest(self, file, how, whole, tmp_path):
        run, (newest, _) = self.stopped(tmp_path)
        path = newest / file
        data = bytearray(path.read_bytes())
        if how == "truncated":
            path.write_bytes(data[: len(data) // 2])
        elif how == "one byte":
            data[len(data) // 3] ^= 1
            path.write_bytes(data)
        else:
            path.unlink()
        with pytest.warns(UserWarning) as caught:
            history = run.fit()
        (text,) = training.user_warnings(caught)
        assert str(newest) in text and "is damaged" in text and file in text
        assert "The one before is used, of epoch 2." in text
        assert_same(whole, run.outcome(history))

    def test_of_both_is_an_error(self, tmp_path):
        run, paths = self.stopped(tmp_path)
        for path in paths:
            (path / "model.weights.h5").write_bytes(b"")
        before = [v.tolist() for v in run.start]
        with pytest.raises(RuntimeError, match="all backups in .* are damaged"):
            run.fit()
        assert [v.tolist() for v in run.get()] == before

    def test_of_the_csv_file(self, whole, tmp_path):
        run, _ = self.stopped(tmp_path)
        path = tmp_path / "records.csv"
        _recorder._settle_all()  # as when the process ends
        path.write_bytes(path.read_bytes()[:300])
        with pytest.warns(UserWarning, match="has become shorter"):
            history = run.fit()
        outcome = run.outcome(history)
        lines, expected = (
            sorted(o["file"].splitlines()) for o in (outcome, whole)
        )
        if training.BACKEND == "torch":
            lines, expected = (
                [line.rpartition(",")[0] for line in some]
                for some in (lines, expected)
            )
        assert lines == expected

    def test_an_optimizer_that_is_another(self, tmp_path):
        run, _ = self.stopped(tmp_path)
        run.model.compile(
            keras.optimizers.SGD(momentum=0.5), "mse", **training.COMPILE
        )
        with pytest.raises(ValueError):
            training.fit(
                run.model, [AtomicBackup(tmp_path / "backup")], epochs=EPOCHS
            )


class TestBadInput:
    @pytest.mark.parametrize("logger", [ClipRateLogger(), WeightDeltaLogger(2)])
    def test_in_front_of_a_logger(self, logger, tmp_path):
        with pytest.raises(
            ValueError, match=f"must stand behind {type(logger).__name__}"
        ):
            training.fit(
                training.make_model(), [AtomicBackup(tmp_path / "b"), logger]
            )

    def test_a_model_that_is_not_built(self, tmp_path):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("adamax_clipped", "mse", **training.COMPILE)
        if training.BACKEND != "tensorflow":
            pytest.skip("only TensorFlow does not build it by then")
        with pytest.raises(ValueError, match="a model that is built"):
            training.fit(model, [AtomicBackup(tmp_path / "b")])

    @pytest.mark.parametrize("where", ["in a file", "a file", "read-only"])
    def test_places_that_cannot_be_written(self, where, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("x")
        path = {
            "in a file": tmp_path / "file" / "backup",
            "a file": tmp_path / "file",
            "read-only": tmp_path / "backup",
        }[where]
        if where == "read-only":  # which root may write to

            def refuse(path, data):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

            monkeypatch.setattr(folders.Path, "write_bytes", refuse)
        model = training.make_model()
        with pytest.raises(OSError) as caught:
            training.fit(model, [AtomicBackup(path)])
        assert "AtomicBackup cannot write its backups" in str(caught.value)
        assert str(path) in str(caught.value)
        assert "another `backup_dir`" in str(caught.value)
        assert int(model.optimizer.iterations) == 0
        assert (tmp_path / "file").read_text() == "x"

    @pytest.mark.parametrize("value", ["", None, 3])
    def test_backup_dir(self, value):
        with pytest.raises(TypeError, match="`backup_dir` must be a path"):
            AtomicBackup(value)

    @pytest.mark.parametrize(
        "value", [0, -1, 1.5, True, False, None, "batch", math.nan]
    )
    def test_save_freq(self, value, tmp_path):
        with pytest.raises((TypeError, ValueError), match="`save_freq` must"):
            AtomicBackup(tmp_path, value)


def test_with_keras_optimizers_and_without_loggers(tmp_path):
    def stopped_or_not(folder, stop):
        model = training.make_model(optimizer=keras.optimizers.Adam(0.01))
        backup = AtomicBackup(folder)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                training.fit(model, [backup, training.Stop(2, 1)], epochs=3)
            model = training.make_model(optimizer=keras.optimizers.Adam(0.01))
        history = training.fit(model, [backup], epochs=3)
        return history.history["loss"], training.weights_of(model)

    one = stopped_or_not(tmp_path / "a", stop=False)
    other = stopped_or_not(tmp_path / "b", stop=True)
    assert len(one[0]) == 3
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    for path, value in one[1].items():
        np.testing.assert_allclose(value, other[1][path], rtol=1e-5)


@pytest.mark.parametrize("save_freq", ["epoch", 2])
def test_given_alone(save_freq, tmp_path):
    model = training.make_model()
    history = training.fit(
        model, AtomicBackup(tmp_path / "b", save_freq), epochs=2
    )
    assert history.epoch == [0, 1]
