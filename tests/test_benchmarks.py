"""The benchmarks of speed run, and measure what they say.

What they find out is no matter of tests: it depends on the machine.
"""

import importlib.util
import itertools
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_adamax
from tests import gradients
from tests.benchmark_runs import importable, run
from tests.support import BACKEND

with importable():
    from _harness import bars, figure, timing
    from _step import bandwidth, workloads


@pytest.mark.nightly
@pytest.mark.slow
def test_optimizer_step(tmp_path):
    printed, results = run(
        "optimizer_step.py",
        tmp_path,
        *("--workloads", "many", "embedding", "--rates", "1"),
    )
    ours = {
        "reference",
        "ours_no_statistics",
        "ours",
        "ours_skip_nonfinite",
        "ours_spike_gate",
        "ours_gradient_norms",
    }
    if BACKEND == "torch":
        ours |= {"ours_compiled", "ours_eager"}
    else:
        ours.add("ours_fused")
    dense = ours | {
        "keras_adamax",
        "keras_adam",
        "keras_clipvalue",
        "keras_global_clipnorm",
    }
    if BACKEND == "torch":
        dense |= {"torch_adamax", "torch_adamax_foreach"}
    if BACKEND == "jax" and importlib.util.find_spec("optax"):
        dense.add("optax_clip_adamax")
    modes = {"tensorflow": ["graph", "jit"], "jax": ["jit"]}.get(
        BACKEND, ["eager"]
    )
    cases = results["cases"]
    assert [(case["workload"], case["mode"]) for case in cases] == list(
        itertools.product(["many", "embedding"], modes)
    )
    for case in cases:
        expected = dense
        if case["workload"] == "embedding":
            expected = ours | {"keras_adamax"}
        skipped = case["skipped_arms"]
        # No other may be missing: those need more than the backend.
        assert set(skipped) <= {"ours_compiled", "ours_eager"}
        assert set(case["arms"]) == expected - set(skipped)
        assert set(case["arms"]["keras_adamax"]["ratios"]) == {1.0}
        low, high = workloads.CLIP_RATE_BOUNDS[1]
        for name, arm in case["arms"].items():
            assert len(arm["ratios"]) == len(arm["seconds"]) == 2
            assert min(arm["seconds"]) > 0
            is_counted = name in ours - {"ours_no_statistics"}
            assert (arm.get("clip_rate") is not None) == is_counted, name
            if is_counted:
                assert low <= arm["clip_rate"] <= high, name
            if case["workload"] == "many":
                rate = case["elements"] * 28 / arm["median_seconds"]
                assert arm["bandwidth_fraction"] == pytest.approx(
                    rate / case["bandwidth"]["bytes_per_second"]
                )
    assert results["bars"] == []  # tiny sizes say nothing
    assert "ours, skip_nonfinite" in printed
    (figure,) = tmp_path.glob("*.png")
    assert figure.stat().st_size > 10_000


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are not forgotten")
def test_memory_of_a_step(tmp_path):
    mode = ("--mode", "graph") if BACKEND == "tensorflow" else ()
    _, results = run(
        "optimizer_step.py",
        tmp_path,
        *("--memory", "--workloads", "one", "--arms", "ours", *mode),
    )
    (case,) = results["cases"]
    assert set(case["arms"]) == {"keras_adamax", "ours"}
    for arm in case["arms"].values():
        for phase in ("step", "first step"):
            assert arm[phase]["median_bytes_above"] >= 0
            assert math.isfinite(arm[phase]["ratio"])
        assert arm["first_step_seconds"] > 0
    assert case["bytes_of_gradients_weights_and_state"] == 16 * 64 * 64


@pytest.mark.nightly
@pytest.mark.slow
def test_fit(tmp_path):
    mode = ("--mode", "graph") if BACKEND == "tensorflow" else ()
    # The one whose parts can be left out of a model by mistake.
    printed, results = run("fit.py", tmp_path, "--models", "transformer", *mode)
    (case,) = results["cases"]
    assert case["model"] == "transformer"
    assert set(case["arms"]) == {"keras_adamax", "ours", "ours_callbacks"}
    for arm in case["arms"].values():
        assert len(arm["ratios"]) == 2
        assert arm["first_fit_seconds"] > 0
    # Tokens, positions, a layer as in a GPT, and a dense one for the tokens.
    width, tokens, length = 64, 64, 32
    assert case["weights"] == (
        (tokens + length) * width
        + (12 * width**2 + 13 * width)
        + 2 * width
        + (width + 1) * tokens
    )
    assert results["bars"] == []
    assert '"adamax_clipped", callbacks' in printed
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.nightly
@pytest.mark.slow
def test_callback_overhead(tmp_path):
    printed, results = run(
        "callback_overhead.py", tmp_path, "--epochs", "1", "--log-dir"
    )
    assert results["backend"] == BACKEND and results["batches"] == 12
    assert list(results["arms"]) == ["without", "each epoch", "each 10 batches"]
    assert set(results["arms"]["without"]["ratios"]) == {1.0}
    for arm in results["arms"].values():
        assert len(arm["ratios"]) == len(arm["seconds"]) == 2
        assert min(arm["seconds"]) > 0
    # The limits, and the one number that is held against each.
    assert results["bars"] == [
        {
            "arm": arm,
            "limit": limit,
            "value": results["arms"][arm]["ratio"]["median"],
            "met": None,
        }
        for arm, limit in (("each epoch", 1.02), ("each 10 batches", 1.10))
    ]
    assert printed.count("not judged") == 2


@pytest.mark.nightly
@pytest.mark.slow
def test_import_time(tmp_path):
    _, results = run("import_time.py", tmp_path, "--backend", BACKEND)
    assert results["backend"] == BACKEND
    added = results["added"]
    assert added["cpu"]["median_ms"] > 0 and added["elapsed"]["median_ms"] > 0
    assert "keras_adamax.adamax_clipped" in results["modules_ms"]


@pytest.mark.parametrize("percent", workloads.CLIP_MULTIPLIERS)
def test_share_of_clipped_elements(percent):
    shapes = ((64, 64), (64,))
    workload = workloads.Workload("test", "a layer", shapes)
    sets = workloads.dense_gradients(workload)
    assert len(sets) >= 8
    variables = [keras.Variable(x) for x in workloads.weights(workload)]
    optimizer = keras_adamax.AdamaxClipped(
        beta_2=workloads.BETA_2,
        clip_multiplier=workloads.CLIP_MULTIPLIERS[percent],
    )
    step = gradients.stepper(optimizer, variables)
    for number in range(workloads.STEPS_TO_SETTLE):
        step(sets[number % len(sets)])
    low, high = workloads.CLIP_RATE_BOUNDS[percent]
    for _ in range(2):  # and it stays there
        before = optimizer.clip_statistics()
        for gradient in sets:
            step(gradient)
        assert low <= optimizer.clip_rate(since=before) <= high


def test_gradients_are_heavy_tailed():
    sample = workloads.heavy_tailed(np.random.default_rng(3), (10**6,))
    sample = np.abs(sample) / workloads.SCALE
    assert np.isfinite(sample).all()
    # P(|t| > x) = 1 - x / sqrt(2 + x^2), with 2 degrees of freedom.
    for bound in (1.0, 10.0, 30.0):
        expected = 1 - bound / math.sqrt(2 + bound**2)
        error = 5 * math.sqrt(expected / sample.size)
        assert np.mean(sample > bound) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize(
    "name, variables, elements",
    [
        ("one", 1, 3240**2),
        ("many", 160, 5_345_280),
        # As `keras.applications.ResNet50` has them.
        ("resnet50", 214, 25_583_592),
        # Embeddings, 6 layers and the last normalization.
        (
            "gpt",
            76,
            (8192 + 256) * 384 + 6 * (12 * 384**2 + 13 * 384) + 2 * 384,
        ),
        ("embedding", 1, 64_000_000),
    ],
)
def test_workloads(name, variables, elements):
    workload = workloads.make(name)
    assert len(workload.shapes) == variables
    assert workload.elements == elements


def test_bandwidth():
    measured = bandwidth.measure_cpu(elements=2**16, repetitions=2)
    assert set(measured) == set(bandwidth.BYTES_PER_ELEMENT)
    assert all(1e6 < value < 1e14 for value in measured.values())
    # Four arrays are read and three written.
    assert bandwidth.BYTES_PER_WEIGHT == 28
    assert bandwidth.fraction(1000, 2e-6, 28e9) == pytest.approx(0.5)


def test_bandwidth_counts_bytes(monkeypatch):
    # Each takes a second: what is left is the bytes.
    monkeypatch.setattr(bandwidth, "_best", lambda run, repetitions: 1.0)
    assert bandwidth.measure_cpu(elements=100) == {
        "scale": 800,
        "copy": 800,
        "add": 1200,
    }


def test_bandwidth_uses_all_elements(monkeypatch):
    arrays = []
    full = np.full

    def kept(*arguments):
        arrays.append(full(*arguments))
        return arrays[-1]

    monkeypatch.setattr(bandwidth.np, "full", kept)
    monkeypatch.setattr(bandwidth, "_cores", lambda: 3)
    bandwidth.measure_cpu(elements=100, repetitions=1)
    # "add" comes last: 2 + 3 in every part.
    assert (arrays[0] == 5).all()


def test_interleaved_rounds():
    calls = []

    def sampler(name):
        return lambda: calls.append(name) or float(len(calls))

    measured = timing.interleave({n: sampler(n) for n in "abc"}, rounds=8)
    rounds = [calls[i : i + 3] for i in range(0, 24, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(map(tuple, rounds[::2]))) > 1
    # Of two arms each comes first equally often.
    assert rounds[1::2] == [order[::-1] for order in rounds[::2]]
    assert [list(found) for found in measured] == [["a", "b", "c"]] * 8
    for name in "abc":
        assert [found[name] for found in measured] == [
            float(i + 1) for i, call in enumerate(calls) if call == name
        ]


def test_ratios_are_of_one_round():
    # The machine became slower in the second round, and the ratio did not.
    seconds = ((1.0, 2.0), (10.0, 20.0), (2.0, 3.0))
    compared = timing.compare(
        [dict(zip(("base", "ours"), pair, strict=True)) for pair in seconds],
        "base",
    )
    assert compared["ours"]["seconds"] == [2.0, 20.0, 3.0]
    assert compared["ours"]["ratios"] == [2.0, 2.0, 1.5]
    assert compared["ours"]["ratio"] == {
        "median": 2.0,
        "lower_quartile": 1.75,
        "upper_quartile": 2.0,
        "min": 1.5,
        "max": 2.0,
    }
    assert compared["ours"]["ratio_of_fastest"] == 2.0
    assert compared["base"]["ratio"]["median"] == 1.0


def test_bars(capsys):
    values = {
        ("jit", "one", "ours", "ratio"): 1.40,
        ("jit", "many", "ours", "ratio"): 1.2501,
        ("jit", "one", "ours_skip_nonfinite", "added"): 0.3,
        # Of the other backend's mode.
        ("eager", "one", "ours_eager", "ratio"): 9.0,
    }
    found = {"backend": "jax", "device": "CPU", "quick": False}
    judged = bars.judge(bars.OPTIMIZER_STEP, values, found)
    met = {
        (bar["workload"], bar["arm"], bar["quantity"]): bar["met"]
        for bar in judged
    }
    assert met["one", "ours", "ratio"] is True
    assert met["many", "ours", "ratio"] is False
    assert met["one", "ours_skip_nonfinite", "added"] is False
    assert met["one", "ours_no_statistics", "ratio"] is None
    assert all(bar["backend"] == "jax" for bar in judged)
    assert bars.any_missed(judged)
    assert not bars.any_missed(bars.judge(bars.FIT, {}, found))
    quick = {**found, "quick": True}
    assert not bars.judge(bars.OPTIMIZER_STEP, values, quick)
    bars.print_judged(judged)
    lines = capsys.readouterr().out.splitlines()
    assert sum("MISSED" in line for line in lines) == 2
    assert sum("met  " in line for line in lines) == 1


def test_bars_of_the_table():
    limits = {
        (bar.backend, bar.mode, bar.arm, bar.workload): bar.limit
        for bar in bars.OPTIMIZER_STEP
        if bar.quantity == "ratio" and not bar.accelerator
    }
    for key, one, many in (
        (("tensorflow", "graph", "ours"), 0.60, 0.95),
        (("tensorflow", "jit", "ours"), 1.45, 1.25),
        (("jax", "jit", "ours"), 1.40, 1.25),
        (("torch", "eager", "ours_compiled"), 0.20, 0.30),
        (("torch", "eager", "ours_eager"), 0.60, 0.60),
        (("tensorflow", "jit", "ours_no_statistics"), 1.20, 1.20),
        (("jax", "jit", "ours_no_statistics"), 1.20, 1.20),
    ):
        assert limits.pop((*key, "one")) == one
        assert limits.pop((*key, "many")) == many
    assert not limits
    assert {(bar.backend, bar.mode): bar.limit for bar in bars.FIT} == {
        ("tensorflow", "graph"): 1.00,
        ("tensorflow", "jit"): 1.05,
        ("jax", "jit"): 1.05,
        ("torch", "eager"): 1.00,
    }


def test_figure_of_wide_and_narrow_ratios(tmp_path):
    def point(median):
        return {
            "median": median,
            "lower_quartile": 0.9 * median,
            "upper_quartile": 1.1 * median,
        }

    panels = [
        figure.Panel(
            title="a title",
            rows={"keras": "Keras's", "ours": "Ours"},
            series={"times": {"keras": point(1.0), "ours": point(other)}},
            notes={"ours": "5 ms"},
            limits={"ours": 0.6, "another": 0.5},
        )
        for other in (0.9, 1.2, 40.0)
    ]
    path = tmp_path / "new" / "figure.png"
    figure.draw_ratios(panels, "title", "times", path)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("option", ["", "--fast"])
def test_gpu_script_says_what_it_needs(option, tmp_path):
    script = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
    arguments = [str(tmp_path), option] if option else []
    done = subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True
    )
    assert done.returncode in (1, 2)
    assert ("--suite or --quick" if option else "Usage") in done.stderr
