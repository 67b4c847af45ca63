"""One file, many writers: some are killed, some have the same process id."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_adamax import _atomic_files, _processes

ROOT = Path(__file__).parent.parent


def run_python(script, *arguments, prefix=()):
    """Starts a process that knows the library; `go` in the folder begins."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": "jax", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    for process in processes:
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name[0] == "."]


# Without the package's `__init__`, which imports Keras for seconds.
IMPORT = """
import hashlib, os, sys, time, types
from pathlib import Path
package = types.ModuleType("keras_adamax")
package.__path__ = ["keras_adamax"]
sys.modules["keras_adamax"] = package
from keras_adamax import _atomic_files
"""
START = (
    IMPORT
    + """
folder, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
(folder / f"ready_{number}").touch()
while len(list(folder.glob("ready_*"))) < count:
    time.sleep(0.01)
"""
)

PUBLISH = (
    START
    + """
assert os.getpid() == 1 or len(sys.argv) > 4
def content(round):
    data = os.urandom(300_000)
    return hashlib.sha256(data).digest() + data
def write(data):
    def write(path):
        assert path.name.endswith(".keras")
        with open(path, "wb") as file:
            for start in range(0, len(data), 50_000):
                file.write(data[start:start + 50_000])
                file.flush()
                time.sleep(0.001)
    return write
for round in range(30):
    _atomic_files.write(folder / "best.keras", write(content(round)), False)
    data = (folder / "best.keras").read_bytes()
    assert hashlib.sha256(data[32:]).digest() == data[:32], round
"""
)


def test_writers_in_process_namespaces_of_their_own(tmp_path):
    prefix = ["unshare", "--pid", "--fork", "--user", "--map-root-user"]
    works = shutil.which("unshare") and (
        subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    )
    if not works:
        # CI has the program; where the system forbids it, nothing helps.
        if os.environ.get("CI") == "true" and not shutil.which("unshare"):
            pytest.fail("CI must test with process namespaces: no `unshare`")
        pytest.skip("`unshare --pid --fork` does not work here")
    finish(
        [
            run_python(PUBLISH, tmp_path, number, 4, prefix=prefix)
            for number in range(4)
        ]
    )
    assert not leftovers(tmp_path)


def test_writers_with_one_process_id(tmp_path):
    script = "import os; os.getpid = lambda: 1\n" + PUBLISH
    finish([run_python(script, tmp_path, n, 3, "forced") for n in range(3)])
    assert not leftovers(tmp_path)


CREATE = (
    START
    + """
if sys.argv[4] == "without links":
    import errno
    def link(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    os.link = link
for round in range(40):
    path = folder / f"claim_{round}"
    _atomic_files.create(path, f"{number} ".encode() * 1000)
    print(round, path.read_text().split()[0])
    assert path.stat().st_size == 2000
"""
)


@pytest.mark.parametrize("links", ["with links", "without links"])
def test_one_of_many_creates_a_file(tmp_path, links):
    processes = [run_python(CREATE, tmp_path, n, 4, links) for n in range(4)]
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [p.returncode for p in processes] == [0] * 4, printed
    assert len(set(printed)) == 1  # all have read the same winners
    assert len(printed[0].splitlines()) == 40


def test_a_file_is_created_where_the_first_was_killed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as patch:
        # Killed between its claim and the file.
        patch.setattr(_atomic_files, "replace", refuse)
        with pytest.raises(OSError):
            _atomic_files.create(tmp_path / "a", b"first")
    assert not (tmp_path / "a").exists()
    _atomic_files.create(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_another_error_of_a_link_is_no_missing_feature(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="Input/output"):
        _atomic_files.create(tmp_path / "a", b"x")
    assert not list(tmp_path.iterdir())


HANG = (
    IMPORT
    + """
def write(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
_atomic_files.write(Path(sys.argv[1]), write)
"""
)


@pytest.mark.skipif(os.name != "posix", reason="a process is looked up there")
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    path = tmp_path / "best.weights.h5"
    with run_python(HANG, path) as living, run_python(HANG, path) as dead:
        try:
            for process in (living, dead):
                assert process.stdout.readline() == "writing\n"
            assert len(leftovers(tmp_path)) == 2
            # However old it is: it may have been stopped for long.
            for name in leftovers(tmp_path):
                os.utime(tmp_path / name, (0, 0))
            dead.kill()
            dead.wait()
            _atomic_files.replace(path, b"whole")
            (name,) = leftovers(tmp_path)
            assert f"-{living.pid}-" in name and name.endswith(".weights.h5")
        finally:
            living.kill()
            dead.kill()
    # Another file's writer does not care.
    _atomic_files.replace(tmp_path / "other.weights.h5", b"x")
    assert leftovers(tmp_path) == [name]
    _atomic_files.replace(path, b"whole")
    assert not leftovers(tmp_path)


def test_leftovers_of_another_machine_go_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(_processes, "machine", lambda: "0" * 16)
    day = 86400

    def leave(age, is_folder=False):
        with _atomic_files._temporary(tmp_path / "a") as temporary:
            kept = temporary
        if is_folder:
            kept.mkdir()
            (kept / "inner").write_text("x")
            os.utime(kept / "inner", (time.time() - age,) * 2)
        else:
            kept.write_text("x")
        os.utime(kept, (time.time() - age,) * 2)
        return kept.name

    young = {leave(day / 2), leave(day / 2, is_folder=True)}
    old = {leave(2 * day), leave(2 * day, is_folder=True)}
    foreign = ".0-unrelated.a"
    (tmp_path / foreign).write_text("x")
    os.utime(tmp_path / foreign, (0, 0))
    monkeypatch.undo()
    # A wrong clock here must not remove what a living writer writes there.
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e11)
        _atomic_files.remove_leftovers(tmp_path / "a")
    assert young <= set(leftovers(tmp_path))
    _atomic_files.replace(tmp_path / "a", b"x")
    assert set(leftovers(tmp_path)) == {*young, foreign}
    assert not old & set(leftovers(tmp_path))


def test_names_are_random_and_keep_the_suffix(tmp_path):
    names = set()

    def note(path):
        names.add(path.name)
        path.touch()

    for _ in range(3):
        _atomic_files.write(tmp_path / "a.weights.h5", note)
    assert len(names) == 3
    assert all(name.endswith(".a.weights.h5") for name in names)
