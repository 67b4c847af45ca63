"""What the searches in the tests search; imported by their processes, too."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import keras
import keras_tuner
import numpy as np

from keras_adamax_tuning import AdamaxClippedSpace, run_search

SPACE = AdamaxClippedSpace(
    learning_rate=(1e-3, 1e-1),
    beta_1=0.9,
    beta_2=[0.99, 0.999],
    epsilon=1e-8,
    clip_gradients=True,
    clip_multiplier=(1.1, 2.0),
    clip_epsilon=1e-3,
    bias_correction=False,
    weight_decay=None,
    spike_threshold=None,
)
OTHER_SPACE = AdamaxClippedSpace(learning_rate=(1e-3, 1.0))
# What a search draws.
FIGURES = ["hyperparameters", "importance", "parallel_coordinates", "scores"]


def search(output, **changes):
    """Runs a search of two short trials; returns its result."""
    arguments = {
        "space": SPACE,
        "max_trials": 2,
        "epochs": 1,
        "sampler": "random",
        "seed": 0,
        "verbose": False,
        **changes,
    }
    return run_search(build_model, load_data, output=output, **arguments)


def build_model(hp):
    del hp
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    # A batch is sooner trained than TensorFlow has traced a graph.
    eager = keras.backend.backend() == "tensorflow"
    model.compile(loss="mse", metrics=["mae"], run_eagerly=eager)
    return model


def load_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def other_data():
    x, y = load_data()
    return x, y + 1


def is_worker():
    return multiprocessing.parent_process() is not None


def tells():
    """Notes who loads the data, and which workers there are then."""
    if not is_worker():
        wait_until_idle(multiprocessing.active_children())
    with open(os.environ["TOLD"], "a") as file:
        name = multiprocessing.current_process().name
        print(name, len(multiprocessing.active_children()), file=file)
    return load_data()


def wait_until_idle(processes):
    """Waits until processes have imported what they import."""
    before = None
    while True:
        # State, and time that was computed, in user code and in the kernel.
        now = [
            Path(f"/proc/{process.pid}/stat")
            .read_text()
            .rpartition(")")[2]
            .split()[0:13:6]
            for process in processes
        ]
        if now == before and all(part[0] == "S" for part in now):
            return
        before = now
        time.sleep(1)


def tells_and_fails():
    tells()
    raise KeyError("no data")


def hangs():
    """Waits for ever in the parent, beside a process that it has forked."""
    if os.fork() == 0:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(300)
        os._exit(0)
    wait_until_idle(multiprocessing.active_children())
    Path(os.environ["TOLD"]).touch()
    time.sleep(300)


def varies_in_vain(hp):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    rate = hp.Float("rate", 1e-4, 1e-2)
    model.compile(keras.optimizers.Adam(rate), loss="mse")
    return model


def wide_data():
    return np.zeros((32, 5)), np.zeros((32, 1))


def nothing(hp):
    del hp


def broken_model(hp):
    raise KeyError("a model")


def fails_at_length(hp):
    raise ValueError("x" * 200_000 + " is the end")


class OwnFit(keras_tuner.HyperModel):
    """Judges by a number that only its own `fit` computes."""

    calls = 0

    def build(self, hp):
        return build_model(hp)

    def fit(self, hp, model, x, y, **kwargs):
        self.calls += 1
        shuffle = hp.Boolean("shuffle")
        history = model.fit(x, y, shuffle=shuffle, **kwargs)
        return {"score": 1 / history.history["loss"][-1]}


class OwnEpochs(keras_tuner.HyperModel):
    def build(self, hp):
        return build_model(hp)

    def fit(self, hp, model, *args, **kwargs):
        return model.fit(*args, epochs=2, **kwargs)


class Trace(keras.callbacks.Callback):
    """Leaves the process's id behind, and waits while a file is there."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs=None):
        (self.folder / "pid").write_text(str(os.getpid()))
        output = self.folder.parent.parent
        while (output / ".hold").exists():
            time.sleep(0.05)


class Compilations(keras.callbacks.Callback):
    """Notes where JAX keeps what it compiled, in two processes at once."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs=None):
        (self.folder / "pid").write_text(str(os.getpid()))
        while len(list(self.folder.parent.glob("*/pid"))) < 2:
            time.sleep(0.05)

    def on_train_end(self, logs=None):
        import jax

        kept = jax.config.jax_compilation_cache_dir
        found = [p.name for p in Path(kept or "none").glob("jit_train*-cache")]
        (self.folder / "kept").write_text("\n".join([str(kept), *found]))


class Failing(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise RuntimeError("it\nbroke")


class Signal(keras.callbacks.Callback):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def on_train_begin(self, logs=None):
        os.kill(os.getpid(), self.number)


def trace(trial, hp, folder):
    del trial, hp
    return [Trace(folder)]


def notes_compilations(trial, hp, folder):
    del trial, hp
    return [Compilations(folder)]


def fail(trial, hp, folder):
    del trial, hp, folder
    return [Failing()]


def interrupt_second(trial, hp, folder):
    del hp, folder
    return [Signal(signal.SIGINT)] if trial.trial_id == "0001" else []


def terminate_second(trial, hp, folder):
    del hp, folder
    return [Signal(signal.SIGTERM)] if trial.trial_id == "0001" else []


def missing_key():
    return {"x": 0}["x_train"]


def leaves():
    sys.exit("no data today")


def keras_refuses(hp):
    del hp
    return keras.layers.Dense("three")


def interrupt_third(trial, hp, folder):
    del hp, folder
    return [Signal(signal.SIGINT)] if trial.trial_id == "0002" else []


def kill_third(trial, hp, folder):
    del hp, folder
    return [Signal(signal.SIGKILL)] if trial.trial_id == "0002" else []


def fail_but_first(trial, hp, folder):
    del hp, folder
    return [] if trial.trial_id == "0000" else [Failing()]


class TwoTexts(Exception):
    """An error that pickle cannot make again."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def raise_two_texts(hp):
    raise TwoTexts("one", "two")
