"""The methods that `benchmarks/training.py` compares are what they say.

Peers are tested against loops in NumPy, written as the published code is.
"""

import json
import math

import keras
import numpy as np
import pytest

import keras_adamax
from tests.benchmark_runs import run_script
from tests.training_runs import (
    LEARNING_RATE,
    PROBLEMS,
    QUICK,
    SHAPES,
    Store,
    assert_near,
    jnp,
    methods,
    ours,
    report,
    run,
    some_gradients,
    some_weights,
)


class PaperBeta2(keras.optimizers.schedules.LearningRateSchedule):
    """The authors' schedule, as a user writes it."""

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        return 1.0 - keras.ops.maximum(0.0005, 0.01 * 0.5 ** (step / 2000.0))


@pytest.mark.parametrize(
    ("arguments", "ours_arguments"),
    [
        ({}, {}),
        ({"beta_2": PaperBeta2()}, {"beta_2": ours.paper_beta_2}),
        (
            {"spike_threshold": 0.2, "max_skipped_spikes": 2},
            {"gate": ours.SpikeGate(0.2, 2)},
        ),
        (
            {"clip_multiplier": keras_adamax.TargetClipRate(0.05)},
            {"target": keras_adamax.TargetClipRate(0.05)},
        ),
    ],
    ids=["defaults", "paper's beta_2", "gate", "TargetClipRate"],
)
def test_our_rule_is_that_of_the_optimizer(arguments, ours_arguments):
    gradients = some_gradients(150)
    # A lasting change of scale: more than two spikes in a row.
    gradients[60:70] = [[1000 * x for x in g] for g in gradients[60:70]]
    optimizer = keras_adamax.AdamaxClipped(LEARNING_RATE, **arguments)
    variables = [keras.Variable(w) for w in some_weights()]
    optimizer.build(variables)
    for g in gradients:
        optimizer.apply([jnp.asarray(x) for x in g], variables)
    found, left_out = run(ours.adamax_clipped(**ours_arguments), gradients)
    assert sum(left_out) == optimizer.spike_steps()
    assert any(left_out) == ("gate" in ours_arguments)
    assert_near(found, [keras.ops.convert_to_numpy(v) for v in variables], 1e-6)


def test_a_step_that_is_left_out_changes_nothing():
    gradients = some_gradients(90)
    method = methods.METHODS[methods.GATE]
    found, left_out = run(method, gradients)
    assert any(left_out)
    kept = [g for g, x in zip(gradients, left_out, strict=True) if not x]
    expected, _ = run(methods.METHODS[methods.DEFAULTS], kept)
    assert_near(found, expected, 0.0)


# The peers, one step at a time, on float64 arrays.


class Adam:
    """Adam, and room for what comes before it."""

    beta_2, epsilon = 0.999, 1e-7

    def __init__(self):
        self.t = 0
        self.m = [np.zeros(s) for s in SHAPES]
        self.v = [np.zeros(s) for s in SHAPES]

    def clip(self, gradients):
        return gradients

    def slow_down(self, g, v_hat):
        return 1.0

    def directions(self, gradients):
        self.t += 1
        found = []
        for i, g in enumerate(self.clip(gradients)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = self.beta_2 * self.v[i] + (1 - self.beta_2) * g**2
            v_hat = self.v[i] / (1 - self.beta_2**self.t)
            m_hat = self.m[i] / (1 - 0.9**self.t)
            direction = m_hat / (np.sqrt(v_hat) + self.epsilon)
            found.append(direction * self.slow_down(g, v_hat))
        return found


def norm_of(gradients):
    return math.sqrt(sum(float(np.sum(g**2)) for g in gradients))


class ClipNorm(Adam):
    def clip(self, gradients):
        return [g / max(1.0, norm_of([g])) for g in gradients]


class AdaGC(Adam):
    def clip(self, gradients):
        if self.t == 1:
            self.norms = [math.inf] * len(SHAPES)
        if self.t <= 100:
            factor = 1.0 / (norm_of(gradients) + 1e-6)
            if factor < 1.0:
                gradients = [factor * g for g in gradients]
            self.norms = [
                min(past, norm_of([g]))
                for past, g in zip(self.norms, gradients, strict=True)
            ]
            return gradients
        clipped = []
        for i, g in enumerate(gradients):
            size, limit = norm_of([g]), 1.04 * self.norms[i]
            if size > limit:
                g = g * limit / (size + 1e-6)
                size = limit
            self.norms[i] = 0.99 * self.norms[i] + 0.01 * size
            clipped.append(g)
        return clipped


class ZClip(Adam):
    def clip(self, gradients):
        size = norm_of(gradients)
        if self.t == 1:
            self.buffer = []
        if self.t <= 25:
            self.buffer.append(size)
            self.mean = np.mean(self.buffer)
            self.variance = np.var(self.buffer)
            factor = min(1.0, 1.0 / (size + 1e-6))
            return [factor * g for g in gradients]
        deviation = self.variance**0.5
        z = (size - self.mean) / (deviation + 1e-6)
        limit = size
        if z > 2.5:
            limit = self.mean + 2.5 * deviation / (z / 2.5)
        effective = min(limit, 1.0)
        if size > effective:
            factor = effective / (size + 1e-6)
            gradients = [factor * g for g in gradients]
        self.mean = 0.97 * self.mean + 0.03 * limit
        self.variance = 0.97 * self.variance + 0.03 * (limit - self.mean) ** 2
        return gradients


class AutoClip(Adam):
    def clip(self, gradients):
        if self.t == 1:
            self.history = []
        self.history.append(norm_of(gradients))
        limit = np.percentile(self.history[-1000:], 10)
        factor = min(1.0, limit / (norm_of(gradients) + 1e-6))
        return [factor * g for g in gradients]


class StableAdamW(Adam):
    beta_2, epsilon = 0.99, 1e-8

    def slow_down(self, g, v_hat):
        rms = math.sqrt(np.mean(g**2 / np.maximum(v_hat, 1e-16)))
        return 1.0 / max(1.0, rms)


class AdamWClip(Adam):
    epsilon = 1e-8

    def clip(self, gradients):
        if self.t <= 10:
            return gradients
        clipped = []
        for g, v in zip(gradients, self.v, strict=True):
            limit = 3 * np.maximum(np.sqrt(v / (1 - 0.999**self.t)), 0.01)
            clipped.append(np.clip(g, -limit, limit))
        return clipped


class PerTensor(Adam):
    def clip(self, gradients):
        clipped = []
        for g, v in zip(gradients, self.v, strict=True):
            limit = 3 * math.sqrt(np.sum(v) / (1 - 0.999**self.t)) + 0.01
            clipped.append(g * min(1.0, limit / norm_of([g])))
        return clipped


class Spam(Adam):
    epsilon = 1e-6

    def directions(self, gradients):
        total = self.t  # Steps before this one.
        self.t += 1
        if (total + 1) % 500 == 0:
            self.m = [np.zeros(s) for s in SHAPES]
            self.v = [np.zeros(s) for s in SHAPES]
            self.since = 0
        else:
            self.since = getattr(self, "since", 150) + 1
        scale = 1.0
        if self.since < 150:
            angle = math.pi * self.since / 151
            scale = 1 - 0.99 * (1 + math.cos(angle)) / 2
        found = []
        for i, g in enumerate(gradients):
            if total + 1 >= 20 and (total + 1) % 500 >= 20:
                mask = g**2 > 5000 * self.v[i]
                g = np.where(mask, np.sign(g) * np.sqrt(5000 * self.v[i]), g)
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
            size = math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
            found.append(scale * size * self.m[i] / (np.sqrt(self.v[i]) + 1e-6))
        return found


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("Adam", Adam),
        ("Adam, clipnorm 1", ClipNorm),
        ("AdaGC", AdaGC),
        ("ZClip", ZClip),
        ("AutoClip", AutoClip),
        ("StableAdamW", StableAdamW),
        ("AdamWClip", AdamWClip),
        ("per-tensor (RSE, RRU)", PerTensor),
        ("SPAM", Spam),
    ],
)
def test_peers_follow_their_published_code(name, reference):
    gradients = some_gradients(1100 if name == "AutoClip" else 700)
    if name == "ZClip":
        # Below its largest norm, 1, which would hide the rest.
        gradients = [[g / 10 for g in step] for step in gradients]
    found, _ = run(methods.METHODS[name], gradients)
    weights = [w.astype("float64") for w in some_weights()]
    rule = reference()
    for g in gradients:
        directions = rule.directions([x.astype("float64") for x in g])
        weights = [
            w - LEARNING_RATE * d
            for w, d in zip(weights, directions, strict=True)
        ]
    assert_near(found, weights, 2e-4)


def test_what_optax_has_is_kerass():
    gradients = some_gradients(50)
    for name, optimizer in (
        ("Adam", keras.optimizers.Adam(LEARNING_RATE)),
        ("Adamax", keras.optimizers.Adamax(LEARNING_RATE)),
        ("RMSprop", keras.optimizers.RMSprop(LEARNING_RATE)),
        (
            "Adam, global_clipnorm 1",
            keras.optimizers.Adam(LEARNING_RATE, global_clipnorm=1.0),
        ),
        (
            "RMSprop, clipnorm 1",
            keras.optimizers.RMSprop(LEARNING_RATE, clipnorm=1.0),
        ),
    ):
        variables = [keras.Variable(w) for w in some_weights()]
        optimizer.build(variables)
        for g in gradients:
            optimizer.apply([jnp.asarray(x) for x in g], variables)
        found, _ = run(methods.METHODS[name], gradients)
        expected = [keras.ops.convert_to_numpy(v) for v in variables]
        assert_near(found, expected, 1e-4)


# What is made of the results.


def some_runs(validation, test):
    """Runs of two learning rates with three seeds each."""
    return {
        "validation": validation,
        "test": test,
        "has_diverged": [[False] * 3, [False, False, True]],
        "looks_to_target": [[1, 2, 3], [2, None, None]],
        "curves": [[1.0, 0.5], [1.0, 0.5]],
        "left_out_spoilt": [0.0, 0.0],
        "left_out_good": [0.0, 0.0],
        "steps": 40,
        "seconds": 1.0,
    }


PLAN = {"learning_rates": [0.1, 0.2], "seeds": [0, 1, 2], "looks": 4}


def some_results(cases):
    return report.ProblemResults("p", {"target": 0.5}, PLAN, cases)


def test_validation_chooses_and_test_reports():
    runs = some_runs(
        [[1.0, 2.0, 3.0], [1.0, 1.5, None]], [[7.0, 1.0, 8.0], [9.0, 5.0, 6.0]]
    )
    (found,) = report.best(
        some_results({"clean": {"a": runs}}), "clean"
    ).values()
    assert found.learning_rate == 0.2
    assert found.test == 6.0
    assert (found.low, found.high) == (5.0, 9.0)
    assert found.diverged == pytest.approx(1 / 3)
    assert found.diverged_of_all == pytest.approx(1 / 6)
    assert found.steps_to_target == math.inf


def test_losses_that_are_not_finite_count_as_infinite():
    runs = some_runs([[None] * 3, [9.0] * 3], [[None] * 3, [9.0] * 3])
    other = some_runs([[1.0, 1.0, None], [2.0] * 3], [[3.0] * 3, [2.0] * 3])
    results = some_results({"clean": {"a": runs, "b": other}})
    found = report.best(results, "clean")
    assert found["a"].test == 9.0
    assert found["b"].test == 3.0
    assert report.ratios(found, found) == {"a": 3.0, "b": 1.0}
    assert report.at_rate(runs, PLAN, 0).high == math.inf


def test_sensitivity_is_of_one_learning_rate_for_all_cases():
    first = {
        "a": some_runs([[1.0] * 3, [2.0] * 3], [[1.0] * 3, [2.0] * 3]),
        "b": some_runs([[1.5] * 3, [1.5] * 3], [[1.5] * 3, [1.5] * 3]),
    }
    second = {
        "a": some_runs([[8.0] * 3, [1.0] * 3], [[8.0] * 3, [1.0] * 3]),
        "b": some_runs([[3.0] * 3, [4.0] * 3], [[3.0] * 3, [4.0] * 3]),
    }
    found = report.sensitivity([some_results({"clean": first, "x": second})])
    assert found["a"] == (0.2, 2.0, "p, clean")
    assert found["b"] == (0.1, 3.0, "p, x")


def test_learning_rate_for_clean_data_is_kept():
    clean = some_runs([[1.0] * 3, [2.0] * 3], [[1.0] * 3, [2.0] * 3])
    spoilt = some_runs([[8.0] * 3, [1.0] * 3], [[8.0] * 3, [1.0] * 3])
    results = some_results({"clean": {"a": clean}, "x": {"a": spoilt}})
    assert report.best(results, "x")["a"].test == 1.0
    assert report.at_clean_rate(results, "x")["a"].test == 8.0


def test_runs_can_go_on_with_the_same_plan(tmp_path):
    path = tmp_path / "training_p.json"
    order = ["clean", "x"]
    store = Store(path, {}, QUICK, order)
    store.add("x", "a", {"test": [[1.0]]})
    store.add("clean", "a", {"test": [[1.0]]})
    again = Store(path, {}, QUICK, order)
    assert list(again.cases) == order
    assert again.has("clean", "a") and not again.has("clean", "b")
    with pytest.raises(ValueError, match="Results of another plan"):
        Store(path, {}, QUICK._replace(seeds=(7,)), order)


@pytest.mark.nightly
@pytest.mark.slow
def test_quick_runs_everything(tmp_path):
    def run_quick():
        return run_script("training.py", tmp_path)

    run_quick()
    for name, make in PROBLEMS.items():
        found = json.loads((tmp_path / f"training_{name}.json").read_text())
        assert list(found["cases"]) == list(make().cases)
        expected = methods.QUICK_METHODS_ELSEWHERE
        if name == "quadratic":
            expected = methods.QUICK_METHODS
        for runs in found["cases"].values():
            assert list(runs) == [m for m in methods.METHODS if m in expected]
            for x in runs.values():
                losses = np.array(x["validation"], np.float64)
                assert losses.shape == (2, 2)
                assert np.isfinite(losses).all()
    cost = json.loads((tmp_path / "training_cost.json").read_text())
    assert cost["methods"]["Adam"]["ratio"]["median"] == 1.0
    assert "| AdaGC |" in (tmp_path / "training.md").read_text("utf-8")
    assert (tmp_path / "training_where.png").stat().st_size > 10_000
    # What is there is not run again.
    assert "quadratic, clean" not in run_quick()
