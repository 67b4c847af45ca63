"""Damages files at random, and looks at what comes of loading them.

    KERAS_BACKEND=jax python -m tests.fuzz_files --cases 10000

Of each subject a good file is damaged in one place or several: bits flipped,
cut, a part twice, two parts swapped, another file's content. Loading must then
fail with an error that is meant for a user, or give just what the good file
gives. A file without checksums, CSV, may also give other numbers. What hangs,
runs code or gives a wrong state in silence is a finding: the damaged file is
kept.
"""

import argparse
import faulthandler
import json
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_adamax import AdamaxClipped, AtomicBackup, ClipRateLogger, plots
from keras_adamax.callbacks._backup.generations import Damaged, Generations
from keras_adamax.plots import _records

# A case that takes longer hangs.
LIMIT = 60
# What a user's `except` or eyes may expect of a damaged file.
EXPECTED = (OSError, ValueError)


class Subject:
    """A kind of file.

    Attributes:
        name: What it is called in reports.
        errors: What loading a damaged one may raise.
        has_checksum: Whether other content is always found.
    """

    name = ""
    errors: tuple[type[BaseException], ...] = EXPECTED
    has_checksum = True

    def make(self, folder: Path) -> None:
        """Writes good files."""
        raise NotImplementedError

    def load(self, folder: Path) -> Any:
        """What the files hold, as nested lists and dictionaries."""
        raise NotImplementedError


def train(*callbacks: keras.callbacks.Callback, epochs: int = 1) -> Any:
    """A tiny trained model, always the same."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="dense")], name="model"
    )
    optimizer = AdamaxClipped(
        0.1, spike_threshold=0.2, track_gradient_norms=True
    )
    model.compile(optimizer, "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(32, 3))
    model.fit(
        x,
        x[:, :2],
        batch_size=4,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model


class Archive(Subject):
    name = ".keras archive"
    # Keras, h5py and zipfile say what they find in their own ways.
    errors = (Exception,)

    def make(self, folder: Path) -> None:
        train().save(folder / "model.keras")

    def load(self, folder: Path) -> Any:
        model = keras.saving.load_model(folder / "model.keras")
        return {
            "configuration": json.dumps(
                model.optimizer.get_config(), sort_keys=True
            ),
            "weights": [w.tolist() for w in model.get_weights()],
            "state": [
                np.asarray(keras.ops.convert_to_numpy(v)).tolist()
                for v in model.optimizer.variables
            ],
        }


class Weights(Subject):
    """HDF5 has no checksums, so that values may change in silence."""

    name = "weights and state in HDF5"
    errors = (Exception,)
    has_checksum = False

    def make(self, folder: Path) -> None:
        train().save_weights(folder / "model.weights.h5")
        self.model = train(epochs=2)
        self.before = self.state()

    def state(self) -> list[Any]:
        # Bytes, because a NaN is not equal to itself.
        values = map(keras.ops.convert_to_numpy, self.model.optimizer.variables)
        return [(v.shape, v.tobytes().hex()) for v in values]

    def load(self, folder: Path) -> Any:
        try:
            self.model.load_weights(folder / "model.weights.h5")
        except Exception:
            # What was refused has changed nothing; or it was loaded, and what
            # comes after it was refused.
            assert self.state() in (self.before, self.expected)
            raise
        loaded = self.state()
        if not hasattr(self, "expected"):
            self.expected = loaded
        self.before = loaded
        assert [s for s, _ in loaded] == [s for s, _ in self.expected]
        return loaded


class Csv(Subject):
    name = "CSV of records"
    has_checksum = False

    def make(self, folder: Path) -> None:
        train(ClipRateLogger(1, filename=folder / "records.csv"))

    def load(self, folder: Path) -> Any:
        logger = ClipRateLogger()
        logger.load_records(folder / "records.csv")
        columns = {k: v.tolist() for k, v in logger.records.items()}
        # The other reader.
        _records.load(folder / "records.csv")
        return columns


class Npz(Subject):
    name = "compact file of records"

    def make(self, folder: Path) -> None:
        logger = ClipRateLogger(1)
        train(logger)
        plots.write_records(logger.records, folder / "records.npz")

    def load(self, folder: Path) -> Any:
        columns = _records.load(folder / "records.npz")
        return repr(
            [
                value.tolist() if isinstance(value, np.ndarray) else value
                for value in vars(columns).values()
            ]
        )


class Backup(Subject):
    name = "backup"
    errors = (Damaged,)

    def make(self, folder: Path) -> None:
        class Stop(keras.callbacks.Callback):
            def on_epoch_end(
                self, epoch: int, logs: dict[str, Any] | None = None
            ) -> None:
                if epoch == 1:
                    raise KeyboardInterrupt

        try:
            train(
                ClipRateLogger(),
                AtomicBackup(folder),
                Stop(),
                epochs=3,
            )
        except KeyboardInterrupt:
            pass
        for older in Generations(folder).paths()[1:]:
            shutil.rmtree(older)

    def load(self, folder: Path) -> Any:
        generations = Generations(folder)
        (path,) = generations.paths()
        state = generations.read(path)
        files = {p.name: p.read_bytes().hex() for p in path.iterdir()}
        # Its checksum has been looked at; an ending of the line has none.
        del files["state.json"]
        return [state, files]


SUBJECTS = (Archive, Weights, Csv, Npz, Backup)


def flip(data: bytearray, rng: random.Random, foreign: bytes) -> bytearray:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def cut(data: bytearray, rng: random.Random, foreign: bytes) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def cut_out(data: bytearray, rng: random.Random, foreign: bytes) -> bytearray:
    begin, end = _range(data, rng)
    return data[:begin] + data[end:]


def duplicate(data: bytearray, rng: random.Random, foreign: bytes) -> bytearray:
    begin, end = _range(data, rng)
    return data[:end] + data[begin:]


def swap(data: bytearray, rng: random.Random, foreign: bytes) -> bytearray:
    points = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    a, b, c, d = points
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def overwrite(data: bytearray, rng: random.Random, foreign: bytes) -> bytearray:
    begin, end = _range(data, rng)
    data[begin:end] = rng.randbytes(end - begin)
    return data


def replace(data: bytearray, rng: random.Random, foreign: bytes) -> bytearray:
    return bytearray(
        rng.choice([b"", b"\0" * 99, b"run,epoch\n1,2\n", b"{}", foreign])
    )


MUTATIONS: tuple[
    Callable[[bytearray, random.Random, bytes], bytearray], ...
] = (flip, cut, cut_out, duplicate, swap, overwrite, replace)


def _range(data: bytearray, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(begin + rng.choice([1, 4, 16, 256]), len(data))


def damage(folder: Path, rng: random.Random, foreign: bytes) -> str:
    """Damages one file of the folder; returns what was done."""
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    mutation = rng.choice(MUTATIONS)
    data = mutation(bytearray(path.read_bytes()), rng, foreign)
    path.write_bytes(data)
    return f"{mutation.__name__} of {path.name}"


def run(subject: Subject, seeds: range, kept: Path | None) -> list[str]:
    """Tries damaged copies.

    Args:
        subject: What to damage.
        seeds: One for each case.
        kept: Where what was found is kept; `None`: nowhere.

    Returns:
        What was found.
    """
    findings = []
    with tempfile.TemporaryDirectory() as name:
        good = Path(name) / "good"
        good.mkdir()
        subject.make(good)
        expected = subject.load(good)
        foreign = Path(keras.__file__).read_bytes()
        outcomes = {"refused": 0, "as before": 0, "other numbers": 0}
        for seed in seeds:
            copy = Path(name) / "copy"
            shutil.copytree(good, copy)
            what = damage(copy, random.Random(seed), foreign)
            finding = None
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = subject.load(copy)
            except AssertionError:
                finding = traceback.format_exc()
            except subject.errors as error:
                outcomes["refused"] += 1
                if not str(error):
                    finding = f"{type(error).__name__} without a text"
            except BaseException:
                finding = traceback.format_exc()
            else:
                if found == expected:
                    outcomes["as before"] += 1
                elif not subject.has_checksum:
                    outcomes["other numbers"] += 1
                else:
                    finding = "other content, without an error"
            finally:
                faulthandler.cancel_dump_traceback_later()
            if finding is not None:
                findings.append(
                    f"{subject.name}, seed {seed}, {what}: {finding}"
                )
                if kept is not None:
                    shutil.copytree(
                        copy, kept / f"{type(subject).__name__}-{seed}"
                    )
            shutil.rmtree(copy)
    print(f"{subject.name}: {len(seeds)} cases, {outcomes}", flush=True)
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, default=Path("fuzz-findings"))
    arguments = parser.parse_args()
    each = -(-arguments.cases // len(SUBJECTS))
    findings = []
    for subject in SUBJECTS:
        seeds = range(arguments.seed, arguments.seed + each)
        findings += run(subject(), seeds, arguments.kept)
    for finding in findings:
        print(finding)
    sys.exit(f"{len(findings)} finding(s)" if findings else 0)


if __name__ == "__main__":
    main()
