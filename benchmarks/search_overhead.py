"""What does a trial cost beyond building, training and saving?

`OptunaTuner` runs trials of a search of 12 hyperparameters and 10 epochs whose
training does nothing: what is left, without the time of building (KerasTuner
clears Keras's session and collects garbage before it) and of saving, is what
a trial costs beside them. Bare Optuna asks, suggests the same 12, reports 10
values and tells, in a database of its own. Both propose with TPE and keep
everything in SQLite. The default callbacks, whose cost `callback_overhead.py`
measures, and the lines that `run_search` prints are left out. Prints the ratio
of the time a trial, from interleaved rounds of one run. Rerun with

    python benchmarks/search_overhead.py
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_tuner
import numpy as np
import optuna
from _machine import describe_machine
from _report import add_options, write_json

from keras_adamax_tuning import OptunaOracle, OptunaTuner, _execution

LIMIT = 1.5
EPOCHS = 10
NAMES = [f"hyperparameter_{i}" for i in range(12)]


def objective(values: list[float], epoch: int) -> float:
    """What both minimize: a bowl, approached over the epochs."""
    bowl = sum((np.log10(value) + 2) ** 2 for value in values)
    return float(bowl * (1 + 1 / (epoch + 1)))


class LeftOut:
    """The seconds that functions take which the comparison leaves out."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class NoTraining(keras_tuner.HyperModel):
    """A search whose trials are over at once."""

    def __init__(self, left_out: LeftOut):
        super().__init__()
        self.make_callbacks = left_out(keras.callbacks.CallbackList)

    def build(self, hp):
        for name in NAMES:
            hp.Float(name, 1e-4, 1.0, sampling="log")
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    def fit(self, hp, model, *args, callbacks, **kwargs):
        hooks = self.make_callbacks(
            callbacks, add_history=True, model=model, epochs=EPOCHS
        )
        values = [hp.get(name) for name in NAMES]
        hooks.on_train_begin()
        for epoch in range(EPOCHS):
            hooks.on_epoch_begin(epoch)
            hooks.on_epoch_end(
                epoch, {"val_loss": objective(values, epoch), "loss": 0.0}
            )
        hooks.on_train_end()
        return model.history


def seconds_of_ours(folder: Path, trials: int, seed: int) -> float:
    """Seconds a trial, without building and saving."""
    left_out = LeftOut()
    with contextlib.ExitStack() as stack:
        for owner, name in (
            (OptunaTuner, "_try_build"),
            (_execution, "save_weights"),
            (_execution, "save_build_config"),
        ):
            timed = left_out(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, timed))
        tuner = OptunaTuner(
            NoTraining(left_out),
            oracle=OptunaOracle(
                "val_loss", max_trials=trials, seed=seed, sampler="tpe"
            ),
            directory=folder,
            project_name="trials",
            callbacks_factory=lambda trial, hp, folder: [],
        )
        tuner.oracle.study  # noqa: B018, creates the tables
        left_out.seconds = 0.0
        start = time.perf_counter()
        tuner.search(verbose=0)
        return (time.perf_counter() - start - left_out.seconds) / trials


def seconds_of_optuna(folder: Path, trials: int, seed: int) -> float:
    """Seconds a trial."""
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}",
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    start = time.perf_counter()
    for _ in range(trials):
        trial = study.ask()
        values = [
            trial.suggest_float(name, 1e-4, 1.0, log=True) for name in NAMES
        ]
        for epoch in range(EPOCHS):
            trial.report(objective(values, epoch), epoch)
        study.tell(trial, objective(values, EPOCHS - 1))
    return (time.perf_counter() - start) / trials


def main() -> None:
    """Measures, prints, and fails if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials, arguments.rounds = 2, 1
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(describe_machine())
    print(
        f"{arguments.trials} trials of {len(NAMES)} hyperparameters and "
        f"{EPOCHS} epochs, TPE, SQLite"
    )
    arms = {"ours": seconds_of_ours, "Optuna": seconds_of_optuna}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():  # what is imported at the first use
        with tempfile.TemporaryDirectory() as folder:
            arm(Path(folder), 2, 0)
    for number in range(arguments.rounds):
        order = list(arms) if number % 2 else list(reversed(arms))
        for name in order:
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(
                    arms[name](Path(folder), arguments.trials, number)
                )
    ratios = [
        a / b for a, b in zip(times["ours"], times["Optuna"], strict=True)
    ]
    ratio = statistics.median(ratios)
    print(
        f"a trial: {ratio:.2f} times bare Optuna's (rounds {min(ratios):.2f} "
        f"to {max(ratios):.2f}; limit {LIMIT})"
    )
    print(f"(bare Optuna: {statistics.median(times['Optuna']) * 1e3:.0f} ms)")
    if arguments.output:
        results = {
            "benchmark": "search_overhead",
            "backend": keras.backend.backend(),
            "machine": describe_machine(),
            "quick": arguments.quick,
            "trials": arguments.trials,
            "seconds_a_trial": times,
            "ratios": ratios,
            "limit": LIMIT,
        }
        write_json(results, arguments.output / "search_overhead.json")
    if arguments.check and not arguments.quick and ratio > LIMIT:
        sys.exit("Above the limit.")


if __name__ == "__main__":
    main()
