"""Norms are those of the formulas; totals are exact; NaNs are named."""

import functools
import math
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_adamax import (
    AdamaxClipped,
    GradientStatistics,
    NonfiniteGradient,
    backends,
    updates,
)
from keras_adamax.backends.step import Sums
from keras_adamax.gradient_statistics import GradientTotals
from keras_adamax.kernel_choice import SETTING
from tests import support
from tests.callbacks import training
from tests.gradients import numpy
from tests.support import BACKEND, repeated

# The compiled way first: what the others repeat is in the complete suite.
LOOPS = (support.COMPILED_LOOP, *repeated(*support.LOOPS[:-1]))
KERNELS = ("auto", *repeated(*updates.load().CHOICES[1:]))
HYPERPARAMETERS = {
    "learning_rate": 0.01,
    "beta_1": 0.9,
    "beta_2": 0.99,
    "epsilon": 1e-8,
    "clip_multiplier": 1.2,
    "clip_epsilon": 0.5,
}
# More than a block of the compiled library has, and all that is special.
SHAPES = ((3, 2), (), (0, 3), (40_000,), (5,))
EXCLUDED = 4
STEPS = 6
# The sums are float32.
PRECISION = 2e-5


def paths_of(variables):
    return [v.path for v in variables]


def measured(gradients, shapes, excluded=()):
    """The totals of what a step squares, from the formulas alone, float64.

    Args:
        gradients: A list for each step.
        shapes: Of the variables.
        excluded: Which are not clipped.
    """
    h = HYPERPARAMETERS
    totals = np.zeros((len(shapes), 4))
    for i, shape in enumerate(shapes):
        m, u = np.zeros(shape), np.zeros(shape)
        for step in gradients:
            g, rows = step[i], ...
            if isinstance(g, tuple):
                rows, place = np.unique(g[0], return_inverse=True)
                values = np.zeros((len(rows), *shape[1:]))
                np.add.at(values, place, g[1].astype("float64"))
                g = values
            g = np.asarray(g, "float64")
            bound = h["clip_multiplier"] * u[rows] + h["clip_epsilon"]
            cut = g if i in excluded else np.clip(g, -bound, bound)
            m[rows] = h["beta_1"] * m[rows] + (1 - h["beta_1"]) * cut
            u[rows] = np.maximum(h["beta_2"] * u[rows], np.abs(cut))
            change = h["learning_rate"] * m[rows] / (u[rows] + h["epsilon"])
            totals[i] += [
                np.sum(np.square(x)) for x in (g, cut, change, m[rows])
            ]
    return totals


def assert_measured(statistics, totals, steps):
    """The statistics are those of `measured`."""
    paths = list(statistics.steps)
    assert list(statistics.steps.values()) == [steps] * len(paths)
    norms = np.sqrt(totals / steps)
    for found, column in (
        (statistics.gradient_norms(), 0),
        (statistics.update_norms(), 2),
        (statistics.momentum_norms(), 3),
    ):
        assert list(found) == paths
        np.testing.assert_allclose(
            list(found.values()), norms[:, column], rtol=PRECISION
        )
    np.testing.assert_allclose(
        list(statistics.clipped_shares().values()),
        [1 - c / g if g else math.nan for g, c, *_ in totals.tolist()],
        rtol=PRECISION,
        atol=PRECISION,
    )
    assert statistics.gradient_norm() == pytest.approx(
        math.sqrt(totals[:, 0].sum() / steps), rel=PRECISION
    )


def make(shapes=SHAPES, dtype="float32", **arguments):
    variables = support.make_variables(
        [np.ones(shape, "float32") for shape in shapes], dtype=dtype
    )
    arguments = {"track_gradient_norms": True} | HYPERPARAMETERS | arguments
    return AdamaxClipped(**arguments), variables


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_norms_are_those_of_the_formulas(loop, kernel, monkeypatch):
    monkeypatch.setenv(SETTING, kernel)
    optimizer, variables = make(
        exclude_from_clipping=[f"weight_{EXCLUDED}$"],
    )
    rng = np.random.default_rng(0)
    gradients = support.gradients_of(rng, SHAPES, STEPS)
    step = support.make_step(loop, optimizer, variables)
    for its in gradients[:2]:
        step(its)
    before = optimizer.gradient_statistics()
    for its in gradients[2:]:
        step(its)
    now = optimizer.gradient_statistics()
    totals = measured(gradients, SHAPES, {EXCLUDED})
    assert_measured(now, totals, STEPS)
    early = measured(gradients[:2], SHAPES, {EXCLUDED})
    assert_measured(now.since(before), totals - early, STEPS - 2)
    # Something was clipped, and not all of it.
    shares = list(now.clipped_shares().values())
    assert 0.01 < shares[3] < 0.999 and shares[EXCLUDED] == 0
    assert optimizer.nonfinite_gradients() == {}


@pytest.mark.parametrize("dtype", ["float16", *repeated("bfloat16", "float64")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_of_every_dtype(dtype, kernel, monkeypatch):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX has no float64 unless it is asked for")
    monkeypatch.setenv(SETTING, kernel)
    optimizer, variables = make(dtype=dtype)
    gradients = support.gradients_of(np.random.default_rng(1), SHAPES, STEPS)
    step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
    for its in gradients:
        step(its)
    assert_measured(
        optimizer.gradient_statistics(), measured(gradients, SHAPES), STEPS
    )


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("shape", [(7, 3), *repeated((3000, 20))])
def test_of_rows_each_counts_once(shape, loop):
    shapes = (shape, (4,))
    optimizer, variables = make(shapes)
    rng = np.random.default_rng(0)
    rows = support.sparse_gradients_of(rng, *shape, STEPS)
    dense = support.gradients_of(rng, shapes[1:], STEPS)
    gradients = [[r, *d] for r, d in zip(rows, dense, strict=True)]
    step = support.make_step(loop, optimizer, variables)
    for its in gradients:
        step(its)
    assert_measured(
        optimizer.gradient_statistics(), measured(gradients, shapes), STEPS
    )


def test_an_absent_gradient_is_no_step():
    optimizer, variables = make(((3,), (2,)))
    step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        step([np.ones(3, "float32"), None])
    statistics = optimizer.gradient_statistics()
    assert list(statistics.steps.values()) == [1, 0]
    first, second = statistics.gradient_norms().values()
    assert first == pytest.approx(math.sqrt(3)) and math.isnan(second)
    assert statistics.gradient_norm() == first


@pytest.mark.parametrize("loop", LOOPS)
def test_what_keras_does_before_is_seen(loop):
    """The norm is that of what the clipping was given."""
    optimizer, variables = make(((4,),), gradient_accumulation_steps=2)
    step = support.make_step(loop, optimizer, variables)
    for size in (1.0, 3.0):
        step([np.full(4, size, "float32")])
    [norm] = optimizer.gradient_statistics().gradient_norms().values()
    assert norm == pytest.approx(4.0)
    optimizer, variables = make(((4,),), global_clipnorm=1.0)
    step = support.make_step(loop, optimizer, variables)
    step([np.full(4, 9.0, "float32")])
    assert optimizer.gradient_statistics().gradient_norm() == pytest.approx(1.0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"skip_nonfinite": True},
        *repeated({"spike_threshold": 0.5, "weight_decay": 0.1}),
    ],
    ids=support.id_of,
)
def test_nothing_else_changes(kernel, arguments, monkeypatch):
    """Weights and all other state are the same, bit for bit."""
    monkeypatch.setenv(SETTING, kernel)
    gradients = support.gradients_of(np.random.default_rng(2), SHAPES, STEPS)
    if "skip_nonfinite" in arguments:
        gradients[1][0][0, 0] = np.nan
    states = []
    for tracks in (False, True):
        optimizer, variables = make(track_gradient_norms=tracks, **arguments)
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        for its in gradients:
            step(its)
        state = support.state_of(optimizer, variables)
        states.append(
            {
                path.partition(": ")[2]: value
                for path, value in state.items()
                if not path.endswith(("gradient_totals", "nonfinite_gradients"))
            }
        )
    support.assert_same(*states)


SPOILT = {1: (0, np.nan), 3: (3, np.inf), 4: (3, -np.inf)}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("skips", [False, True])
def test_what_is_not_finite_is_named(loop, kernel, skips, monkeypatch):
    monkeypatch.setenv(SETTING, kernel)
    optimizer, variables = make(skip_nonfinite=skips)
    paths = paths_of(variables)
    rng = np.random.default_rng(0)
    gradients = support.gradients_of(rng, SHAPES, STEPS)
    for i, (weight, value) in SPOILT.items():
        gradients[i][weight].reshape(-1)[1:3] = value
    step = support.make_step(loop, optimizer, variables)
    for its in gradients:
        step(its)
    assert optimizer.nonfinite_gradients() == {
        paths[0]: NonfiniteGradient(steps=1, elements=2, first_call=2),
        paths[3]: NonfiniteGradient(steps=2, elements=4, first_call=4),
    }
    statistics = optimizer.gradient_statistics()
    # An infinity is clipped; a NaN stays in the weight, but not in the totals:
    # nor does it reach those of the gradient and of other variables.
    if skips:
        assert set(statistics.steps.values()) == {STEPS - 3}
        good = [its for i, its in enumerate(gradients) if i not in SPOILT]
        assert_measured(statistics, measured(good, SHAPES), STEPS - 3)
    else:
        assert statistics.steps[paths[3]] == STEPS - 2
        assert statistics.steps[paths[0]] == 1
        assert statistics.steps[paths[4]] == STEPS
        good = [np.square(its[3]).sum() for its in gradients]
        expected = math.sqrt(np.mean([x for x in good if np.isfinite(x)]))
        norms = statistics.gradient_norms()
        assert norms[paths[3]] == pytest.approx(expected, rel=PRECISION)
    assert all(map(math.isfinite, statistics.update_norms().values()))


@pytest.mark.parametrize("loop", LOOPS)
def test_calls_that_the_gate_left_out_are_counted(loop):
    optimizer, variables = make(
        ((2,),), clip_epsilon=1.0, spike_threshold=0.2, skip_nonfinite=True
    )
    step = support.make_step(loop, optimizer, variables)
    for size in (0.5, 0.5, 99.0, 0.5, np.nan, 0.5):
        step([np.full(2, size, "float32")])
    assert optimizer.spike_steps() == 1
    [found] = optimizer.nonfinite_gradients().values()
    assert found == NonfiniteGradient(1, 2, first_call=5)
    # Neither the spike nor the NaN is among the steps.
    statistics = optimizer.gradient_statistics()
    assert list(statistics.steps.values()) == [4]
    assert statistics.gradient_norm() == pytest.approx(math.sqrt(0.5))


def test_one_huge_gradient_takes_nothing_from_those_after_it():
    optimizer, variables = make(((2,),))
    step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
    step([np.full(2, 1e14, "float32")])
    before = optimizer.gradient_statistics()
    assert before.gradient_norm() == pytest.approx(math.sqrt(2) * 1e14)
    for _ in range(3):
        step([np.full(2, 1e-4, "float32")])
    since = optimizer.gradient_statistics().since(before)
    assert since.gradient_norm() == pytest.approx(
        math.sqrt(2) * 1e-4, rel=PRECISION
    )
    # Beyond the largest norm the total of many would not fit. It is kept to
    # that, and not forgotten, also where its square overflows.
    for size in (1e17, 3e38):
        before = optimizer.gradient_statistics()
        step([np.full(2, size, "float32")])
        since = optimizer.gradient_statistics().since(before)
        assert since.steps == {"weight_0": 1}
        assert since.gradient_norm() == 2.0**50
        assert since.clipped_shares()["weight_0"] > 0.99
    assert optimizer.nonfinite_gradients() == {}


PATHS = ("a", "b", "c")
INDICES = (0, 1, 2)


def make_totals():
    return GradientTotals(
        lambda shape, dtype, name: keras.Variable(
            np.zeros(shape), dtype=dtype, name=name
        ),
        PATHS,
        backends.load(),
    )


def compiled(function):
    """As a step is: in a graph, or by XLA, where the backend has them."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    return function


@functools.cache
def adding():
    """A compiled function of rows and sums."""
    totals = make_totals()

    def add(rows, values):
        totals.rows = rows
        return totals.rows_after(Sums(INDICES, values))

    return compiled(add)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), steps=st.integers(1, 60))
def test_totals_are_exact(seed, steps):
    rng = np.random.default_rng(seed)
    totals = make_totals()
    expected = np.zeros((3, 4), object)
    measured_steps = [0, 0, 0]
    for _ in range(steps):
        exponents = rng.integers(-130, 105, (3, 5))
        values = (rng.uniform(1, 2, (3, 5)) * 2.0**exponents).astype("float32")
        values[rng.uniform(size=(3, 5)) < 0.02] = rng.choice(
            [np.nan, np.inf, 0.0]
        )
        # How many elements were not finite.
        values[:, 4] = rng.choice([0.0, 0.0, 0.0, 7.0], 3)
        rows = ops.convert_to_tensor(totals.rows)
        totals.rows.assign(adding()(rows, ops.convert_to_tensor(values)))
        for row in range(3):
            # NaN compares false.
            if (values[row, :4] >= 0.0).all() and values[row, 4] == 0.0:
                measured_steps[row] += 1
                for k in range(4):
                    kept = min(float(values[row, k]), 2.0**100)
                    exact = Fraction(kept) * 2**100
                    expected[row, k] += math.floor(exact)
    found = totals.statistics()
    assert list(found.steps.values()) == measured_steps
    for k, name in enumerate(
        ("gradients", "clipped_gradients", "updates", "momentums")
    ):
        assert list(getattr(found, name).values()) == expected[:, k].tolist()
    # Limbs stay small enough for float32 to be exact.
    assert numpy(totals.rows).max() <= 2**20 + 1


def test_a_million_steps_are_exact():
    totals = make_totals()
    # As if so many steps had been made, each of 3.
    number = 10**6
    limbs = np.zeros((3, 5, 12))
    for total, value in enumerate((3, 3, 3, 3, 1)):
        rest = number * value << 100
        for k in range(12):
            limbs[:, total, k] = rest % 2**20
            rest >>= 20
    totals.rows.assign(limbs)
    before = totals.statistics()
    assert set(before.steps.values()) == {number}
    values = np.full((3, 5), 1e-6, "float32")
    values[:, 4] = 0  # all elements are finite
    totals.rows.assign(
        totals.rows_after(Sums(INDICES, ops.convert_to_tensor(values)))
    )
    since = totals.statistics().since(before)
    assert set(since.steps.values()) == {1}
    for norm in since.gradient_norms().values():
        assert norm == pytest.approx(1e-3, rel=1e-6)


def test_some_variables_in_another_order():
    totals = make_totals()
    values = np.array([[1.0] * 4 + [0.0], [4.0] * 4 + [0.0]], "float32")
    totals.rows.assign(
        totals.rows_after(Sums((2, 0), ops.convert_to_tensor(values)))
    )
    norms = totals.statistics().gradient_norms()
    assert norms["c"] == 1 and norms["a"] == 2 and math.isnan(norms["b"])
    elements = ops.convert_to_tensor(np.array([3, 0], "int32"))
    call = ops.convert_to_tensor(np.int32(2**20 + 5))
    for _ in range(2):
        totals.nonfinite.assign(totals.nonfinite_after((1, 2), elements, call))
        call = call + 1
    assert totals.nonfinite_gradients() == {
        "b": NonfiniteGradient(2, 6, 2**20 + 5)
    }


def trained(seed=0, **arguments):
    optimizer, variables = make(**arguments)
    step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
    gradients = support.gradients_of(np.random.default_rng(seed), SHAPES, 3)
    gradients[1][0][0, 0] = np.nan
    for its in gradients:
        step(its)
    return optimizer, variables


def save(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


class TestSavedState:
    def test_it_goes_on(self):
        optimizer, _ = trained(skip_nonfinite=True)
        other, variables = make(skip_nonfinite=True)
        other.build(variables)
        other.load_own_variables(save(optimizer))
        assert other.gradient_statistics() == optimizer.gradient_statistics()
        found = other.nonfinite_gradients()
        assert found == optimizer.nonfinite_gradients() and len(found) == 1

    def test_before_it_is_built(self):
        optimizer, _ = trained(skip_nonfinite=True)
        other, variables = make(skip_nonfinite=True)
        other.load_own_variables(save(optimizer))
        other.build(variables)
        assert other.gradient_statistics() == optimizer.gradient_statistics()

    def test_of_one_that_did_not_measure_it_begins_at_zero(self):
        optimizer, _ = trained(track_gradient_norms=False, skip_nonfinite=True)
        other, _ = trained(skip_nonfinite=True)
        other.load_own_variables(save(optimizer))
        assert set(other.gradient_statistics().steps.values()) == {0}
        assert other.nonfinite_gradients() == {}
        # The other way about, it is not read.
        measuring, _ = trained(skip_nonfinite=True)
        before = save(optimizer)
        optimizer.load_own_variables(save(measuring))
        assert set(save(optimizer)) == set(before)

    def test_a_damaged_one_changes_nothing(self):
        optimizer, _ = trained(skip_nonfinite=True)
        store = save(optimizer)
        other, variables = make(skip_nonfinite=True)
        other.build(variables)
        store["gradient_totals.1"] = np.zeros((2, 2))
        with pytest.raises(ValueError, match=r"gradient_totals\.1 has shape"):
            other.load_own_variables(store)
        assert set(other.gradient_statistics().steps.values()) == {0}

    def test_a_whole_model(self, tmp_path):
        model = training.make_model(optimizer=make()[0])
        training.fit(model, [], epochs=2)
        path = tmp_path / "model.keras"
        model.save(path)
        other = keras.models.load_model(path)
        found = other.optimizer.gradient_statistics()
        assert set(found.steps.values()) == {12}
        # Keras gives other paths.
        expected = model.optimizer.gradient_statistics()
        assert [*found.gradients.values()] == [*expected.gradients.values()]


def test_without_it_there_is_no_more_state():
    optimizer, variables = make(track_gradient_norms=False)
    optimizer.build(variables)
    assert optimizer.gradient_totals is None
    assert optimizer.gradient_statistics() == GradientStatistics(
        {}, {}, {}, {}, {}
    )
    assert optimizer.nonfinite_gradients() == {}
    assert math.isnan(optimizer.gradient_statistics().gradient_norm())
    other, variables = make()
    other.build(variables)
    assert len(other.variables) == len(optimizer.variables) + 2


def test_wrong_snapshots():
    optimizer, _ = trained(skip_nonfinite=True)
    now = optimizer.gradient_statistics()
    with pytest.raises(TypeError, match=r"`earlier` must be what"):
        now.since(optimizer.clip_statistics())
    other, _ = make(((2,),))
    step = support.make_step(support.COMPILED_LOOP, other, _)
    step([np.ones(2, "float32")])
    with pytest.raises(ValueError, match="of the same variables"):
        now.since(other.gradient_statistics())
    later, _ = trained(skip_nonfinite=True)
    before = later.gradient_statistics()
    fresh, variables = make()
    fresh.build(variables)
    with pytest.raises(ValueError, match="taken earlier"):
        fresh.gradient_statistics().since(before)


def test_it_is_a_bool_and_fixed():
    with pytest.raises(TypeError, match="`track_gradient_norms` must be"):
        AdamaxClipped(track_gradient_norms="yes")
    optimizer = AdamaxClipped(track_gradient_norms=True)
    with pytest.raises(AttributeError, match="read-only"):
        optimizer.track_gradient_norms = False
    config = optimizer.get_config()
    assert config["track_gradient_norms"] is True
    assert AdamaxClipped.from_config(config).track_gradient_norms


def test_under_a_loss_scale():
    inner, variables = make(((2,),))
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
    step([np.full(2, 8.0, "float32")])
    # This one is withheld.
    step([np.full(2, np.inf, "float32")])
    statistics = inner.gradient_statistics()
    assert statistics.gradient_norm() == pytest.approx(math.sqrt(8))
    assert list(statistics.steps.values()) == [1]
    assert inner.nonfinite_gradients() == {}
