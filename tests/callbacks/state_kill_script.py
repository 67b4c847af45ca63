"""Kills a `fit` and resumes it in new processes; see test_model_state.py.

    python -m tests.callbacks.state_kill_script FOLDER

Keras is imported once, and forked. For each scenario, one child trains
undisturbed, one is killed, and one resumes it. Prints which scenarios ended
with the same bits.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_adamax import AdamaxClipped, AtomicBackup
from tests.callbacks import gan, training

EPOCHS = 4


class Kill(keras.callbacks.Callback):
    """Ends the process in the third epoch, after two backups."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)


def train_gan(callbacks):
    model = gan.make(
        (lambda: keras.optimizers.Adam(0.01), lambda: AdamaxClipped(0.01))
    )
    history = gan.fit(model, callbacks, EPOCHS)
    return gan.state_of(model), history


def train_with_averages(optimizer, callbacks):
    model = training.make_model(optimizer=optimizer)
    history = training.fit(model, callbacks, epochs=EPOCHS)
    return training.state_of(model), history


def averages(optimizer, is_in_front):
    def train(callbacks):
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        place = 0 if is_in_front else len(callbacks)
        callbacks.insert(place, swap)
        return train_with_averages(optimizer(), callbacks)

    return train


def ours():
    return AdamaxClipped(0.05, use_ema=True, ema_momentum=0.8)


def adam():
    return keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)


SCENARIOS = {
    "two optimizers": train_gan,
    "AdamaxClipped, swapped in front": averages(ours, True),
    "AdamaxClipped, swapped behind": averages(ours, False),
    "Adam, swapped in front": averages(adam, True),
}


def life(scenario, folder, backup, kill):
    callbacks = [AtomicBackup(backup)] if backup else []
    if kill:
        callbacks.append(Kill())
    state, history = SCENARIOS[scenario](callbacks)
    np.savez(folder / "state.npz", *state)
    (folder / "history.json").write_text(json.dumps(history.history))


def run(*arguments):
    """Runs `life` in a child; returns how it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            life(*arguments)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status


def main():
    warnings.simplefilter("error", UserWarning)
    told = {}
    for number, scenario in enumerate(SCENARIOS):
        whole = Path(sys.argv[1]) / str(number) / "whole"
        killed = Path(sys.argv[1]) / str(number) / "killed"
        whole.mkdir(parents=True)
        killed.mkdir()
        # Without a backup: it must not change what is trained.
        assert run(scenario, whole, None, False) == 0
        status = run(scenario, killed, killed / "backup", True)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert run(scenario, killed, killed / "backup", False) == 0
        one, other = (np.load(f / "state.npz") for f in (whole, killed))
        told[scenario] = {
            "values": sum(one[name].size for name in one),
            "differ": sum(
                int(np.sum(one[name] != other[name])) for name in one
            ),
            "farthest": max(
                float(np.max(np.abs(one[name] * 1.0 - other[name]), initial=0))
                for name in one
            ),
            "same history": (whole / "history.json").read_text()
            == (killed / "history.json").read_text(),
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
