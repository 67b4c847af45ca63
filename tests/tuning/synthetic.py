"""Trials that no search has run, for tables and figures."""

import datetime

import keras_tuner
import numpy as np

from keras_adamax_tuning import Trial

BEGIN = datetime.datetime(2024, 1, 1)


def make_trial(number, state="completed", score=None, **fields):
    """A `Trial` with what is not given left empty."""
    values = {
        "best_epoch": None if score is None else 1,
        "hyperparameters": {},
        "attempts": 1,
        "trial_id": f"{number:04d}",
        "reason": "it broke" if state == "failed" else None,
        "traceback": None,
        "epoch": None,
        "metrics": {},
        "checkpoint": None,
        "seconds": 2.0,
        "finished_at": BEGIN + datetime.timedelta(seconds=number),
        "seed": number,
    }
    if state == "running":
        values |= {"seconds": None, "finished_at": None}
    return Trial(number, state, score, **(values | fields))


def make_space(large):
    """KerasTuner's hyperparameters: 3, or 15 with conditional ones."""
    hp = keras_tuner.HyperParameters()
    hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    hp.Float("clip_multiplier_minus_1", 0.01, 1.0, sampling="log")
    hp.Boolean("clip_gradients")
    if not large:
        return hp
    hp.Float("beta_1", 0.8, 0.99)
    hp.Float("one_minus_beta_2", 1e-4, 0.1, sampling="log")
    hp.Float("epsilon", 1e-10, 1e-6, sampling="log")
    hp.Float("clip_epsilon", 1e-6, 1e-2, sampling="log")
    hp.Boolean("bias_correction")
    hp.Float("weight_decay", 0.002, 0.005, sampling="log")
    hp.Choice("learning_rate_schedule", ["constant", "exponential", "cosine"])
    with hp.conditional_scope("learning_rate_schedule", ["exponential"]):
        hp.Float("learning_rate_schedule_exponential_decay_rate", 0.1, 0.99)
        hp.Int("learning_rate_decay_steps", 100, 10000, sampling="log")
    hp.Choice("clip_multiplier_schedule", ["constant", "linear"])
    hp.Int("batch_size", 16, 128, step=16)
    hp.Choice("layers", [f"a rather long name of choice {i}" for i in range(9)])
    hp.Fixed("fixed", 3)
    return hp


def make_search(count=40, large=True, spread=1.0, seed=0):
    """Trials of all states over `make_space`."""
    rng = np.random.default_rng(seed)
    space = make_space(large).space
    trials = []
    for number in range(count):
        values = {
            hp.name: hp.random_sample(int(rng.integers(1 << 31)))
            for hp in space
        }
        if values.get("learning_rate_schedule") != "exponential":
            for name in list(values):
                if "decay_" in name and name != "weight_decay":
                    del values[name]
        state = rng.choice(["completed", "pruned", "failed"], p=[0.7, 0.2, 0.1])
        score = 0.1 + abs(np.log10(values["learning_rate"]) + 2.7)
        score *= 10 ** rng.uniform(0, spread)
        score = None if state == "failed" else float(score)
        trials.append(
            make_trial(number, str(state), score, hyperparameters=values)
        )
    return trials, space
