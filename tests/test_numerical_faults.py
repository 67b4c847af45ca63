"""Extreme numbers, and what is not a number, stay where they came from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_adamax import AdamaxClipped
from keras_adamax.kernel_choice import SETTING
from tests import support
from tests.gradients import numpy

# Enough for the vectors and the tail of a kernel.
SHAPES = ((7, 19), (5,))
BAD = (2, 11)
LARGEST = float(np.finfo("float32").max)

LOOPS = pytest.mark.parametrize("loop", support.EVERY_LOOP)
KERNELS = pytest.mark.parametrize("kernel", ["auto", "reference"])


def state_of(optimizer, variables):
    """Weights, momentums and norms, one array per variable."""
    return [
        [numpy(v) for v in its]
        for its in (variables, optimizer._momentums, optimizer._norms)
    ]


def run(loop, gradients, values, **arguments):
    """All states that a run goes through."""
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(0.01, **arguments)
    step = support.make_step(loop, optimizer, variables)
    states = []
    for its in gradients:
        step(its)
        states.append(state_of(optimizer, variables))
    return optimizer, states


@LOOPS
@KERNELS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"clip_gradients": False}, {"track_gradient_norms": True}],
    ids=str,
)
def test_one_element_leaves_all_others(
    loop, kernel, bad, arguments, monkeypatch
):
    monkeypatch.setenv(SETTING, kernel)
    rng = np.random.default_rng(1)
    values = support.values_of(rng, SHAPES)
    good = support.gradients_of(rng, SHAPES, 5)
    spoilt = [[g.copy() for g in its] for its in good]
    spoilt[2][0][BAD] = bad
    optimizer, found = run(loop, spoilt, values, **arguments)
    _, expected = run(loop, good, values, **arguments)
    others = np.ones(SHAPES[0], bool)
    others[BAD] = False
    for ours, theirs in zip(found, expected, strict=True):
        for its, wanted in zip(ours, theirs, strict=True):
            assert np.array_equal(its[0][others], wanted[0][others])
            assert np.array_equal(its[1], wanted[1])
    element = found[2][0][0][BAD]
    is_clipped = arguments.get("clip_gradients", True) and np.isinf(bad)
    assert np.isfinite(element) == is_clipped
    assert 0 <= optimizer.clip_rate() <= 1


sizes = st.floats(-45, 38).map(lambda power: 10.0**power)


@settings(max_examples=25, deadline=None)
@given(
    gradients=st.lists(
        st.lists(
            st.tuples(sizes, st.sampled_from([1, -1, 0])),
            min_size=4,
            max_size=4,
        ),
        min_size=3,
        max_size=6,
    ),
    learning_rate=st.sampled_from([0.0, 1e-38, 1e-3, 1.0]),
    clip_multiplier=st.sampled_from([1.0, 1.2, 1e30]),
    epsilon=st.sampled_from([0.0, 1e-8, 1e30]),
)
def test_nothing_overflows(gradients, learning_rate, clip_multiplier, epsilon):
    """Gradients of 1e-45 to 1e38, whatever the other numbers are."""
    variables = support.make_variables([np.zeros(4, "float32")])
    optimizer = AdamaxClipped(
        learning_rate,
        clip_multiplier=clip_multiplier,
        epsilon=epsilon,
        spike_threshold=0.5,
        track_gradient_norms=True,
    )
    step = support.make_step(support.LOOPS[0], optimizer, variables)
    for its in gradients:
        step([np.array([size * sign for size, sign in its], "float32")])
        weight, momentum, norm = (v[0] for v in state_of(optimizer, variables))
        assert np.isfinite(momentum).all()
        assert ((norm >= 0) & (norm <= LARGEST)).all()
        # The rule multiplies before it divides, as the original does, so that
        # this holds for learning rates up to 1.
        assert np.isfinite(weight).all()
        assert not np.isnan(optimizer.clip_rate())
        assert 0 <= optimizer.clip_rate() <= 1
        norms = optimizer.gradient_statistics().gradient_norms()
        assert all(value >= 0 for value in norms.values())
    assert all(0 < spike.rate <= 1 for spike in optimizer.spikes())


@LOOPS
@pytest.mark.parametrize("updates", [10_000_000, 2**31 - 100])
def test_counters_that_start_late(loop, updates):
    """A run of months is as exact as one of minutes."""
    rng = np.random.default_rng(2)
    values = support.values_of(rng, SHAPES)
    gradients = support.gradients_of(rng, SHAPES, 6)
    arguments = {"bias_correction": True, "spike_threshold": 0.9}
    variables = support.make_variables(values)
    late = AdamaxClipped(0.01, **arguments)
    late.build(variables)
    late._iterations.assign(updates)
    step = support.make_step(loop, late, variables)
    for its in gradients:
        step(its)
    # After so many steps the correction is 1.
    _, states = run(loop, gradients, values, spike_threshold=0.9)
    found = state_of(late, variables)
    for its, wanted in zip(found, states[-1], strict=True):
        for one, other in zip(its, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)
    spikes = late.spikes()
    assert int(numpy(late.iterations)) == updates + 6 - len(spikes)
    assert len(spikes) == late.spike_steps() > 0
    assert all(updates < spike.step < updates + 6 for spike in spikes)
    assert 0 <= late.clip_rate() <= 1
