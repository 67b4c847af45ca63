"""The gates that `benchmarks/gate_forms.py` compares are what they say."""

import json

import numpy as np
import pytest

from tests import training_runs as training
from tests.benchmark_runs import run_script
from tests.training_runs import gate_forms, jax, jnp, ours

# Of two variables, of 300 and of 100 elements.
SIZES = (300.0, 100.0)
RATES = [
    (1.0, 1.0),
    (0.9, 0.9),
    (0.05, 0.01),
    (0.3, 0.1),
    (0.2, 0.3),
    (0.1, 0.9),
    (0.04, 0.2),
    (1.0, 1.0),
    (1.0, 1.0),
    (1.0, 1.0),
    (0.5, 0.0),
    (0.02, 0.02),
    (0.15, 0.15),
]


def decisions(form):
    """Which variables were left out, and the factors, step by step."""
    state = form.init(2)
    left_out, factors = [], []
    for rates in RATES:
        found = form.decide(state, jnp.array(rates), jnp.array(SIZES))
        state = found.state
        left_out.append(tuple(np.asarray(found.is_left_out).tolist()))
        factors.append(tuple(np.asarray(found.factor).tolist()))
    return left_out, factors


def gate(rates, thresholds, most):
    """The rule, in Python: which steps are left out."""
    is_armed, in_row, found = False, 0, []
    for rate, threshold in zip(rates, thresholds, strict=True):
        if rate <= threshold:
            is_armed, in_row = True, 0
            found.append(False)
        elif is_armed and in_row < most:
            in_row += 1
            found.append(True)
        else:
            is_armed, in_row = False, 0
            found.append(False)
    return found


MEANS = [(300 * a + 100 * b) / 400 for a, b in RATES]


@pytest.mark.parametrize(("threshold", "most"), [(0.2, 2), (0.1, 5)])
def test_whole_step(threshold, most):
    expected = gate(MEANS, [threshold] * len(MEANS), most)
    assert any(expected)
    left_out, factors = decisions(gate_forms.whole_step(threshold, most))
    assert left_out == [(x, x) for x in expected]
    assert set(factors) == {(1.0, 1.0)}


def test_per_variable():
    expected = [
        gate([rates[i] for rates in RATES], [0.2] * len(RATES), 2)
        for i in (0, 1)
    ]
    assert expected[0] != expected[1]
    left_out, factors = decisions(gate_forms.per_variable(0.2, 2))
    assert left_out == list(zip(*expected, strict=True))
    assert set(factors) == {(1.0, 1.0)}


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_scaled(power):
    spikes = gate(MEANS, [0.2] * len(MEANS), 2)
    left_out, factors = decisions(gate_forms.scaled(0.2, power, 2))
    assert not any(map(any, left_out))
    for own, rate, spike in zip(factors, MEANS, spikes, strict=True):
        expected = (0.2 / rate) ** power if spike else 1.0
        assert own == pytest.approx((expected, expected), rel=1e-5)


def test_usual_rate():
    usual, thresholds = 0.05, []
    for rate in MEANS:
        thresholds.append(min(max(4.0 * usual, 0.1), 0.9))
        if rate <= thresholds[-1]:
            usual = 0.99 * usual + 0.01 * rate
    expected = gate(MEANS, thresholds, 2)
    assert len(set(thresholds)) > 2
    left_out, _ = decisions(gate_forms.usual_rate(4.0, 0.1, 2))
    assert left_out == [(x, x) for x in expected]


def test_the_delivered_form_is_the_optimizers():
    gradients = training.some_gradients(150)
    gradients[60:70] = [[1000 * x for x in g] for g in gradients[60:70]]
    found, left_out = training.run(
        gate_forms.FORMS[gate_forms.DELIVERED], gradients
    )
    expected, expected_left_out = training.run(
        ours.adamax_clipped(gate=ours.SpikeGate(0.2, 5)), gradients
    )
    assert any(left_out)
    assert left_out == expected_left_out
    training.assert_near(found, expected, 1e-6)


def test_what_is_made_smaller_is_the_clipped_gradient():
    form = gate_forms.Form(
        lambda number: (),
        lambda state, rates, sizes: gate_forms.Decision(
            jnp.array([False, True, False]), jnp.array([0.5, 1.0, 1.0]), state
        ),
    )
    method = gate_forms.adamax_clipped(form)
    weights = [jnp.asarray(w) for w in training.some_weights()]
    state = method.init(weights)
    u = jax.tree.map(jnp.ones_like, state["u"])
    gradients = [100.0 * jnp.ones_like(w) for w in weights]
    new, state, is_left_out = method.step(
        gradients, state | {"u": u}, weights, 0.1
    )
    assert not is_left_out
    # Half of the bound 1.2 + 1e-4 is below the decayed norm.
    np.testing.assert_allclose(state["m"][0], 0.1 * 0.60005, rtol=1e-6)
    np.testing.assert_allclose(state["u"][0], 0.999, rtol=1e-6)
    np.testing.assert_array_equal(new[1], weights[1])
    np.testing.assert_array_equal(state["u"][1], u[1])
    np.testing.assert_allclose(state["u"][2], 1.2001, rtol=1e-6)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--confirm"]], ids=str)
def test_quick(tmp_path, arguments):
    run_script("gate_forms.py", tmp_path, "--problems", "quadratic", *arguments)
    (file,) = tmp_path.glob("gate_*_quadratic.json")
    found = json.loads(file.read_text("utf-8"))
    methods = list(found["cases"]["clean"])
    assert methods[0] == gate_forms.DELIVERED
    assert ("ZClip" in methods) == bool(arguments)
    text = (tmp_path / "gate_forms.md").read_text("utf-8")
    assert all(f"| {method} |" in text for method in methods)
