"""`MirroredStrategy`, `DataParallel` and `ModelParallel` against one device."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import support
from tests.distribution_script import (
    CONFIG,
    REPLICAS,
    SCENARIOS,
    SHAPES,
    STEPS,
    make_gradients,
)
from tests.support import BACKEND

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BACKEND not in REPLICAS,
        reason="Keras distributes on TensorFlow and JAX",
    ),
]
HERE = {
    name: scenario
    for name, scenario in SCENARIOS.items()
    if BACKEND in scenario.backends
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("distribution") / "results.json"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {
        "KERAS_BACKEND": BACKEND,
        "XLA_FLAGS": (
            f"--xla_force_host_platform_device_count={REPLICAS['jax']}"
        ),
        # The devices are virtual CPUs, whatever the machine has.
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.distribution_script", str(path)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def reduced(scenario, replicas):
    """The gradients of one device that sees the whole batch."""
    in_fit = scenario.way.endswith("fit")
    share = np.float32(1 / len(replicas) if in_fit else 1)
    result = []
    for gradients in zip(*replicas, strict=True):
        if gradients[0] is None:
            result.append(None)
        elif not isinstance(gradients[0], tuple):
            with np.errstate(over="ignore"):
                result.append(sum(share * g for g in gradients))
        else:
            indices = np.concatenate([i for i, _ in gradients])
            rows = share * np.concatenate([r for _, r in gradients])
            if BACKEND == "tensorflow":
                result.append((indices, rows))
            else:
                dense = np.zeros((5, 2), "float32")
                np.add.at(dense, indices, rows)
                result.append(dense)
    return result


def is_finite(gradients, limit):
    for g in gradients:
        if isinstance(g, tuple):
            dense = np.zeros((5, 2), "float32")
            with np.errstate(over="ignore"):
                np.add.at(dense, *g)
            g = dense
        if g is not None and not (np.abs(g) <= limit).all():
            return False
    return True


def expected(scenario):
    """The oracle after all steps, and how many calls ours must skip."""
    values, steps = make_gradients(scenario, REPLICAS[BACKEND])
    config = CONFIG | scenario.config
    may_skip = config.pop("skip_nonfinite", False)
    config.pop("track_gradient_norms", False)
    if isinstance(config.get("beta_1"), tuple):
        boundary, before, after = config["beta_1"]
        config["beta_1"] = lambda step: before if step <= boundary else after
    dtype = scenario.dtype
    oracle = support.oracle_of(
        values,
        dtypes="float32" if dtype.startswith("mixed") else dtype,
        exclude_from_weight_decay=scenario.not_decayed,
        **config,
    )
    limit = np.finfo(dtype if dtype == "float16" else "float32").max
    skipped = 0
    oracle.squares = []
    for i, replicas in enumerate(steps):
        for name, value in scenario.changes.get(i, {}).items():
            assert hasattr(oracle, name)
            setattr(oracle, name, value)
        gradients = reduced(scenario, replicas)
        if not is_finite(gradients, limit):
            if may_skip:
                skipped += 1
                continue
            if scenario.loss_scale is not None:
                # Withheld.
                continue
        spikes = oracle.spike_steps
        oracle.step(gradients)
        if oracle.spike_steps == spikes:
            oracle.squares.append([square(g) for g in gradients])
    return oracle, skipped


def square(gradient):
    """The squared norm; of rows, after they have been summed."""
    if isinstance(gradient, tuple):
        dense = np.zeros((5, 2))
        np.add.at(dense, *gradient)
        gradient = dense
    return np.nan if gradient is None else np.square(gradient).sum()


@pytest.mark.parametrize("name", [n for n, s in HERE.items() if not s.fails])
def test_is_as_on_one_device(name, results):
    scenario, result = HERE[name], results[name]
    assert "error" not in result, result["error"]
    oracle, skipped = expected(scenario)
    assert result["skipped_steps"] == skipped
    assert result["spike_steps"] == oracle.spike_steps
    if "gated" in name:
        assert oracle.spike_steps > 0
        assert oracle.uncertain_rates == 0
        for spike, (call, step, rate, own) in zip(
            result["spikes"], oracle.spikes, strict=True
        ):
            named = sorted((r for r in own.values() if r > 0), reverse=True)
            assert spike == pytest.approx([call, step, rate, *named[:5]])
    if "gradient norms" in name:
        np.testing.assert_allclose(
            result["gradient_norms"],
            np.sqrt(np.mean(oracle.squares, axis=0)),
            rtol=1e-5,
        )
        assert result["nonfinite"] == [[1, 1, 3]] * skipped
    # The scenario does what its name says.
    special = len(scenario.bad) + len(scenario.large)
    if "skip" in name:
        assert skipped == special > 0
    assert result["iterations"] == oracle.iterations
    assert result["differing"] == []

    use_average = scenario.way.endswith("fit") and oracle.use_ema
    weights, errors = (
        (oracle.average, oracle.average_error)
        if use_average
        else (oracle.w, oracle.w_error)
    )
    for i, replicas in enumerate(result["weights"]):
        assert len(replicas) == REPLICAS[BACKEND]
        for replica in replicas:
            actual = np.array(replica)
            assert actual.shape == weights[i].shape
            if name == "NaN spreads" and i == 0:
                assert np.isnan(actual).sum() == 1
            np.testing.assert_array_equal(
                np.isnan(actual), np.isnan(weights[i])
            )
            # The order of sums over replicas is not ours: a few roundings.
            bound = 4 * errors[i] + 1e-7
            error = np.abs(actual - weights[i])
            assert (np.isnan(actual) | (error <= bound)).all(), (
                actual,
                weights[i],
            )
    if scenario.config.get("clip_gradients", True):
        assert sum(oracle.ambiguous) == 0
        assert result["counted"] == oracle.counted
        assert result["clipped"] == oracle.clipped
        np.testing.assert_allclose(
            result["clip_rates"], oracle.clip_rates(), rtol=0, atol=1e-6
        )
        assert 0 < oracle.clip_rate() < 1
    else:
        assert set(result["clip_rates"]) == {0.0}


@pytest.mark.parametrize("name", [n for n, s in HERE.items() if s.splits])
def test_state_is_split_as_its_weight_is(name, results):
    """And not gathered: each device has the state of its part alone."""
    whole = [list(shape) for shape in SHAPES]
    expected = [[shape] * 3 for shape in (whole[0], [1], whole[2])]
    assert results[name]["split"] == expected
    assert results[name]["split bfloat16"] == expected


@pytest.mark.parametrize("name", [n for n, s in HERE.items() if s.fails])
@pytest.mark.parametrize("whose", ["", " (keras)"])
@pytest.mark.xfail(
    strict=True,
    reason="Keras cannot do this under MirroredStrategy: with its own "
    "Adamax it fails in the same way",
)
def test_where_keras_fails(name, whose, results):
    error = results[name + whose].get("error")
    if error is not None:
        pytest.fail(error)


def test_every_scenario_was_run(results):
    run = {name.removesuffix(" (keras)") for name in results}
    assert run == set(HERE)
    assert STEPS == 6
