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

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from _harness import bars, options, results, timing

PARSER = options.make_parser(__doc__, backend="jax", rounds=5)
PARSER.add_argument("--trials", type=int, default=40)
ARGUMENTS = options.parse(PARSER, trials=2, rounds=1)

import keras
import keras_tuner
import numpy as np
import optuna

from keras_adamax_tuning import OptunaOracle, OptunaTuner
from keras_adamax_tuning.training import executions

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
            (executions, "save_weights"),
            (executions, "save_build_config"),
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


def make_sampler(
    arm: Callable[[Path, int, int], float],
) -> Callable[[], float]:
    """A function that measures one search, each time with the next seed."""
    seeds = itertools.count()

    def sample() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return arm(Path(folder), ARGUMENTS.trials, next(seeds))

    return sample


def main() -> None:
    """Measures, prints and writes."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = results.begin("search_overhead", ARGUMENTS, trials=ARGUMENTS.trials)
    print(
        f"{ARGUMENTS.trials} trials of {len(NAMES)} hyperparameters and "
        f"{EPOCHS} epochs, TPE, SQLite"
    )
    arms = {"ours": seconds_of_ours, "Optuna": seconds_of_optuna}
    for arm in arms.values():  # what is imported at the first use
        with tempfile.TemporaryDirectory() as folder:
            arm(Path(folder), 2, 0)
    rounds = timing.interleave(
        {name: make_sampler(arm) for name, arm in arms.items()},
        ARGUMENTS.rounds,
    )
    compared = timing.compare(rounds, "Optuna")
    ours = compared["ours"]
    print(
        f"a trial: {ours['ratio']['median']:.2f} times bare Optuna's "
        f"({timing.range_of_rounds(ours)}; limit {bars.SEARCH_OVERHEAD})"
    )
    print(f"(bare Optuna: {compared['Optuna']['median_seconds'] * 1e3:.0f} ms)")
    judged = bars.judge_one(
        ours["ratio"]["median"], bars.SEARCH_OVERHEAD, quick=ARGUMENTS.quick
    )
    found |= {
        "seconds_a_trial": {
            name: result["seconds"] for name, result in compared.items()
        },
        "ratios": ours["ratios"],
        "limit": bars.SEARCH_OVERHEAD,
    }
    results.end(found, ARGUMENTS, "search_overhead", [judged])


if __name__ == "__main__":
    main()
