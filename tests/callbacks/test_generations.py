"""Old backups that cannot be removed, and backups that cannot be read."""

import ctypes
import errno
import os
import sys
import warnings

import pytest

from keras_adamax import AtomicBackup
from keras_adamax.callbacks._backup import generations as saved
from tests.callbacks import training
from tests.support import repeated

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="takes away what root may do, as Linux can"
)


def set_capabilities(change):
    """Changes the effective capabilities of this thread; returns the old."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    # Effective, permitted and inheritable: of the lower 32, then the upper.
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    before = data[0]
    data[0] = change(before)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
    return before


@pytest.fixture
def folder(tmp_path):
    """A folder whose permissions count, also if root runs this."""
    # Not CAP_DAC_OVERRIDE, nor CAP_DAC_READ_SEARCH.
    before = set_capabilities(lambda old: old & ~0b110)
    try:
        yield tmp_path
    finally:
        set_capabilities(lambda old: before)
        for found in [tmp_path, *tmp_path.rglob("*")]:
            if found.is_dir():
                found.chmod(0o700)


class AtEpoch(training.keras.callbacks.Callback):
    """Calls a function when an epoch begins."""

    def __init__(self, epoch, function):
        super().__init__()
        self.at = epoch
        self.function = function

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            self.function()


def fit(folder, *others, epochs=5, **arguments):
    """Returns the History and the texts of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = training.fit(
            training.make_model(),
            [AtomicBackup(folder / "backup", **arguments), *others],
            epochs=epochs,
        )
    return history, training.user_warnings(caught)


def stopped(folder, epoch, *others):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(folder, *others, AtEpoch(epoch, stop))


def epochs_in(folder):
    generations = saved.Generations(folder / "backup")
    return [generations.read(path)["epoch"] for path in generations.paths()]


class TestAnOldBackupThatCannotBeRemoved:
    def keep(self, path):
        """Its files cannot be removed."""
        path.chmod(0o500)

    def test_is_one_warning_and_the_new_ones_count(self, folder):
        first = folder / "backup" / "generation-00000001"
        history, texts = fit(
            folder,
            AtEpoch(1, lambda: self.keep(first)),
            delete_checkpoint=False,
        )
        assert history.epoch == [0, 1, 2, 3, 4]
        (text,) = texts
        assert "AtomicBackup cannot remove an old backup, " in text
        assert "Permission denied" in text and "generation-00000001" in text
        assert "The new backups are written, and count." in text
        assert "cannot write" not in text
        assert epochs_in(folder) == [5, 4]
        # Another life says so too, and trains on from the newest.
        history, texts = fit(folder, epochs=6, delete_checkpoint=False)
        (text,) = texts
        assert "cannot remove an old backup" in text
        assert history.epoch == [0, 1, 2, 3, 4, 5]
        assert epochs_in(folder) == [6, 5]

    def test_is_removed_when_it_can_be(self, folder):
        first = folder / "backup" / "generation-00000001"

        def mend():
            assert len(self.left(folder)) == 3
            for path in self.left(folder):
                path.chmod(0o700)

        _, texts = fit(
            folder,
            AtEpoch(1, lambda: self.keep(first)),
            AtEpoch(4, mend),
            delete_checkpoint=False,
        )
        assert len(texts) == 1
        assert epochs_in(folder) == [5, 4]
        assert len(self.left(folder)) == 2

    def left(self, folder):
        return [p for p in (folder / "backup").iterdir() if p.is_dir()]

    def test_does_not_end_a_fit_that_came_to_its_end(self, folder):
        first = folder / "backup" / "generation-00000001"
        history, texts = fit(folder, AtEpoch(1, lambda: self.keep(first)))
        assert history.epoch == [0, 1, 2, 3, 4]
        assert len(texts) == 1
        # Nothing that the next `fit` would go on from.
        assert epochs_in(folder) == []
        history, texts = fit(folder, epochs=2)
        assert history.epoch == [0, 1]
        assert all("cannot remove" in text for text in texts)

    def test_at_the_end_says_what_the_next_fit_would_do(self, folder):
        backup = folder / "backup"

        class Close(training.keras.callbacks.Callback):
            def on_train_end(self, logs=None):
                backup.chmod(0o500)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = training.fit(
                training.make_model(),
                [Close(), AtomicBackup(backup)],
                epochs=3,
            )
        assert history.epoch == [0, 1, 2]
        (text,) = training.user_warnings(caught)
        assert "cannot remove the backups of a `fit`" in text
        assert "generation-00000003" in text and "Permission denied" in text
        assert "the next `fit` with this `backup_dir` would go on" in text

    def test_left_by_another_process(self, folder):
        stopped(folder, 2)
        left = folder / "backup" / "unfinished-left"
        left.mkdir()
        (left / "file").write_text("x")
        self.keep(left)
        history, texts = fit(folder)
        assert history.epoch == [0, 1, 2, 3, 4]
        (text,) = texts
        assert "cannot remove" in text and "unfinished-left" in text


class TestABackupThatCannotBeRead:
    @pytest.mark.parametrize(
        "what", ["state.json", *repeated("model.weights.h5", "")]
    )
    def test_is_an_error_and_is_kept(self, what, folder):
        stopped(folder, 3)
        path = folder / "backup" / "generation-00000003" / what
        mode = path.stat().st_mode
        path.chmod(0)
        with pytest.raises(PermissionError) as caught:
            fit(folder)
        assert "AtomicBackup cannot read a backup: Permission denied" in str(
            caught.value
        )
        assert "is kept. Make it readable" in str(caught.value)
        assert "generation-00000003" in str(caught.value)
        path.chmod(mode)
        assert epochs_in(folder) == [3, 2]
        history, texts = fit(folder)
        assert history.epoch == [0, 1, 2, 3, 4] and not texts

    @pytest.mark.parametrize("mode", [0o000, *repeated(0o300, 0o500)])
    def test_as_its_folder_cannot_be_used(self, mode, folder):
        stopped(folder, 3)
        (folder / "backup").chmod(mode)
        with pytest.raises(PermissionError) as caught:
            fit(folder)
        assert "AtomicBackup cannot" in str(caught.value)
        assert str(folder / "backup") in str(caught.value)
        (folder / "backup").chmod(0o700)
        assert epochs_in(folder) == [3, 2]
        assert fit(folder)[0].epoch == [0, 1, 2, 3, 4]

    def test_as_the_disk_has_lost_it(self, folder, monkeypatch):
        # Here no disk can be made to fail: the error of one is raised.
        stopped(folder, 3)
        digest = saved._digest

        def failing(path):
            if path.parent.name == "generation-00000003":
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return digest(path)

        monkeypatch.setattr(saved, "_digest", failing)
        history, (text,) = fit(folder)
        assert "the newest backup" in text and "Input/output error" in text
        assert history.epoch == [0, 1, 2, 3, 4]


class TestADamagedBackup:
    def test_that_cannot_be_removed_does_not_count(self, folder):
        stopped(folder, 3)
        bad = folder / "backup" / "generation-00000003"
        (bad / "state.json").write_text("x")
        generations = saved.Generations(folder / "backup")
        with pytest.raises(saved.Damaged):
            generations.read(bad)
        generations.discard(bad)
        bad.chmod(0o500)
        # Renaming is refused as well.
        (folder / "backup").chmod(0o500)
        assert generations.tidy()
        (folder / "backup").chmod(0o700)
        assert [p.name for p in generations.paths()] == ["generation-00000002"]
        written = generations.write({"epoch": 9}, lambda path: None)
        assert written.name == "generation-00000004"
        assert [p.name for p in generations.paths()] == [
            "generation-00000004",
            "generation-00000002",
        ]
        assert generations.read(written) == {"epoch": 9}


def test_the_third_argument_is_not_that_of_keras(tmp_path):
    # There it is `double_checkpoint`.
    with pytest.raises(TypeError, match="positional arguments"):
        AtomicBackup(tmp_path, "epoch", True)
    assert AtomicBackup(
        tmp_path, "epoch", delete_checkpoint=False
    ).get_config() == {
        "backup_dir": str(tmp_path),
        "save_freq": "epoch",
        "delete_checkpoint": False,
    }
