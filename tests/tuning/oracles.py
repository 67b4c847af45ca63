"""Searches without a model: the objective is a function of the values."""

import math

import keras_tuner

from keras_adamax_tuning import OptunaOracle


def make_space() -> keras_tuner.HyperParameters:
    hp = keras_tuner.HyperParameters()
    hp.Float("rate", 1e-4, 1.0, sampling="log")
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["a"]):
        hp.Int("units", 1, 9)
    hp.Fixed("batch", 32)
    return hp


def make_finite_space() -> keras_tuner.HyperParameters:
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["a"]):
        hp.Int("units", 1, 3)
    hp.Boolean("flag")
    return hp


def make_large_finite_space() -> keras_tuner.HyperParameters:
    """Of more combinations than a test has trials."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("rate", [1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    hp.Int("units", 1, 9)
    return hp


def make_oracle(folder, **kwargs) -> OptunaOracle:
    """An oracle as every worker makes it; of one folder, one study."""
    kwargs = {
        "objective": keras_tuner.Objective("score", "min"),
        "max_trials": 5,
        "seed": 0,
        "sampler": "random",
        "hyperparameters": make_space(),
        **kwargs,
    }
    oracle = OptunaOracle(**kwargs)
    oracle.verbose = 0
    oracle._set_project_dir(str(folder), "trials")
    return oracle


def score_of(values: dict) -> float:
    rate = values.get("rate", 0.1)
    return (math.log10(rate) + 2) ** 2 + values.get("units", 4)


def finish(oracle, trial, score=None, status="COMPLETED", message=None):
    if status == "COMPLETED":
        if score is None:
            score = score_of(trial.hyperparameters.values)
        oracle.update_trial(trial.trial_id, {"score": score})
    trial.status, trial.message = status, message
    oracle.end_trial(trial)


def run(oracle, limit=None) -> list:
    """Runs trials until the oracle stops; returns the KerasTuner trials."""
    done = []
    while limit is None or len(done) < limit:
        trial = oracle.create_trial("worker")
        if trial.status == "STOPPED":
            break
        if trial.status == "IDLE":
            continue
        finish(oracle, trial)
        done.append(trial)
    return done


def proposals(oracle) -> list[dict]:
    return [t.hyperparameters for t in oracle.logical_trials()]


def forget(oracle, trial) -> None:
    """As when the worker is killed: nobody runs the attempt any more."""
    oracle.abandon(trial.trial_id)
