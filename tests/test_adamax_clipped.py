"""The optimizer against the float64 oracle, step by step."""

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped
from tests.gradients import apply, numpy, sparse, stepper
from tests.oracle import (
    AdamaxClippedOracle,
    heavy_tailed_gradients,
    sparse_heavy_tailed_gradients,
)

SHAPES = [(7, 5), (11,), ()]
STEPS = 48


def exponential(initial, steps, rate):
    """Keras's ExponentialDecay, and the same in float32 NumPy."""
    schedule = keras.optimizers.schedules.ExponentialDecay(initial, steps, rate)

    def function(step):
        return np.float32(initial) * np.float32(rate) ** (
            np.float32(step) / np.float32(steps)
        )

    return schedule, function


def staircase(boundaries, values):
    """Keras's PiecewiseConstantDecay: its values are exact in float32."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        boundaries, values
    )
    return schedule, lambda step: values[
        np.searchsorted(boundaries, step, side="left")
    ]


CONFIGURATIONS = {
    "defaults": {},
    "tight": {"clip_multiplier": 1.0, "clip_epsilon": 1e-2},
    "loose": {"clip_multiplier": 50.0, "clip_epsilon": 1.0},
    "no clipping": {"clip_gradients": False},
    "bias correction": {"bias_correction": True, "beta_1": 0.99},
    "no memory": {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 1e-3},
    "fast": {"learning_rate": 0.3, "beta_2": 0.9, "epsilon": 1e-7},
    "zero epsilon": {"epsilon": 0.0, "learning_rate": 0.01},
    "decay": {"weight_decay": 0.1, "learning_rate": 0.05},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.0},
    "global_clipnorm": {"global_clipnorm": 2.0, "bias_correction": True},
    "integers": {"learning_rate": 1, "beta_1": 0, "clip_multiplier": 2},
    "loss scale": {"loss_scale_factor": 1024.0},
    "accumulation": {"gradient_accumulation_steps": 3},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
}
SCHEDULED = {
    "beta_1": (("beta_1", staircase([10, 40], [0.5, 0.9, 0.0])),),
    "beta_1 with bias correction": (
        ("beta_1", staircase([10, 40], [0.5, 0.9, 0.99])),
        ("bias_correction", (True, True)),
    ),
    "beta_2": (("beta_2", exponential(0.999, 100, 0.9)),),
    "clip_multiplier": (("clip_multiplier", exponential(3.0, 20, 0.3)),),
    "clip_epsilon": (("clip_epsilon", staircase([5, 30], [1.0, 1e-3, 0.1])),),
    "learning_rate": (("learning_rate", exponential(0.1, 10, 0.8)),),
    "all of them": (
        ("learning_rate", exponential(0.1, 10, 0.8)),
        ("beta_1", exponential(0.9, 100, 0.9)),
        ("beta_2", exponential(0.999, 100, 0.9)),
        ("clip_multiplier", exponential(3.0, 20, 0.3)),
        ("clip_epsilon", exponential(1.0, 10, 0.5)),
        ("gradient_accumulation_steps", (2, 2)),
    ),
}


def start(rng, shapes=SHAPES):
    weights = [rng.normal(size=shape).astype("float32") for shape in shapes]
    variables = [
        keras.Variable(w, name=f"weight_{i}") for i, w in enumerate(weights)
    ]
    return weights, variables


def assert_follows(variables, optimizer, oracle):
    for i, variable in enumerate(variables):
        error = np.abs(numpy(variable) - oracle.w[i])
        assert (error <= oracle.w_error[i]).all()
        for ours, theirs, bound in (
            (optimizer._momentums[i], oracle.m[i], oracle.m_error[i]),
            (optimizer._norms[i], oracle.u[i], oracle.u_error[i]),
        ):
            assert (np.abs(numpy(ours) - theirs) <= bound).all()


def assert_counts(optimizer, oracle, clips=True):
    rates = list(optimizer.clip_rates().values())
    if not clips:
        assert rates == [0.0] * len(rates)
        return
    statistics = optimizer.clip_statistics()
    assert list(statistics.counted.values()) == oracle.counted
    for rate, clipped, counted, ambiguous in zip(
        rates,
        oracle.clipped,
        oracle.counted,
        oracle.ambiguous,
        strict=True,
    ):
        assert abs(rate - clipped / counted) <= 1e-6 + ambiguous / counted
    # The allowance above must stay an exception.
    assert sum(oracle.ambiguous) <= 1e-3 * sum(oracle.counted)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_follows_the_oracle_on_dense_gradients(name):
    arguments = CONFIGURATIONS[name]
    rng = np.random.default_rng(1)
    weights, variables = start(rng)
    gradients = [heavy_tailed_gradients(rng, s, STEPS) for s in SHAPES]
    scale = np.float32(arguments.get("loss_scale_factor", 1))
    optimizer = AdamaxClipped(**arguments)
    oracle = AdamaxClippedOracle(weights, **arguments)
    make_step = stepper(optimizer, variables)
    for step in range(STEPS):
        step_gradients = [g[step] * scale for g in gradients]
        make_step(step_gradients)
        oracle.step(step_gradients)
        assert_follows(variables, optimizer, oracle)
    for variable, weight, bound in zip(
        variables, weights, oracle.w_error, strict=True
    ):
        # The bound must be one that a wrong weight could not meet.
        moved = np.abs(numpy(variable) - weight).max()
        assert moved > 10 * bound.max()
    assert_counts(optimizer, oracle, arguments.get("clip_gradients", True))
    assert int(optimizer.iterations) == oracle.iterations


@pytest.mark.parametrize("name", SCHEDULED)
def test_schedules_are_evaluated_at_the_number_of_updates(name):
    arguments = {key: pair[0] for key, pair in SCHEDULED[name]}
    functions = {key: pair[1] for key, pair in SCHEDULED[name]}
    rng = np.random.default_rng(2)
    weights, variables = start(rng)
    gradients = [heavy_tailed_gradients(rng, s, STEPS) for s in SHAPES]
    optimizer = AdamaxClipped(**arguments)
    # 8: a power and a division in float32, on either side.
    oracle = AdamaxClippedOracle(weights, **functions, schedule_roundoffs=8)
    make_step = stepper(optimizer, variables)
    for step in range(STEPS):
        make_step([g[step] for g in gradients])
        oracle.step([g[step] for g in gradients])
        assert_follows(variables, optimizer, oracle)
    assert_counts(optimizer, oracle)


@pytest.mark.parametrize(
    "name",
    [
        "defaults",
        "tight",
        "loose",
        "no clipping",
        "bias correction",
        "decay",
        "clipvalue",
        "clipnorm",
        "global_clipnorm",
        "loss scale",
        "accumulation",
        "ema",
    ],
)
def test_follows_the_oracle_on_sparse_gradients(name):
    arguments = CONFIGURATIONS[name]
    rng = np.random.default_rng(3)
    num_rows, width = 9, 4
    weights, variables = start(rng, [(num_rows, width), (3,)])
    rows = sparse_heavy_tailed_gradients(rng, num_rows, width, STEPS)
    dense = heavy_tailed_gradients(rng, (3,), STEPS)
    scale = np.float32(arguments.get("loss_scale_factor", 1))
    optimizer = AdamaxClipped(**arguments)
    oracle = AdamaxClippedOracle(weights, **arguments)
    make_step = stepper(optimizer, variables)
    for step in range(STEPS):
        indices, values = rows[step]
        gradients = [(indices, values * scale), dense[step] * scale]
        make_step(gradients)
        oracle.step(gradients)
        assert_follows(variables, optimizer, oracle)
    assert_counts(optimizer, oracle, arguments.get("clip_gradients", True))


def test_absent_rows_stay_as_they_are():
    rng = np.random.default_rng(4)
    weights, variables = start(rng, [(6, 3)])
    optimizer = AdamaxClipped()
    apply(optimizer, [np.ones((6, 3), "float32")], variables)
    state = [variables[0], optimizer._momentums[0], optimizer._norms[0]]
    before = [numpy(v) for v in state]
    values = np.array([[1.0, -1, 1], [2, 2, 2], [1, 1, 1]], "float32")
    apply(optimizer, [(np.array([4, 1, 4], "int32"), values)], variables)
    for value, old in zip([numpy(v) for v in state], before, strict=True):
        assert (value[[0, 2, 3, 5]] == old[[0, 2, 3, 5]]).all()
        assert (value[[1, 4]] != old[[1, 4]]).any()
    # Two unique rows of three elements were given to the clipping.
    assert optimizer.clip_statistics().counted == {"weight_0": 18 + 6}


def test_as_many_slices_as_rows_are_not_taken_for_a_dense_gradient():
    values = np.array([[1.0], [2.0], [3.0]], "float32")
    variable = keras.Variable(np.zeros((3, 1), "float32"), name="table")
    optimizer = AdamaxClipped(clip_gradients=False, beta_1=0.0)
    optimizer.apply(
        [sparse(np.array([2, 0, 1], "int32"), values, 3)], [variable]
    )
    np.testing.assert_array_equal(numpy(optimizer._norms[0])[:, 0], [2, 3, 1])


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="BCOO is JAX's own"
)
def test_padding_of_a_bcoo_gradient_counts_for_nothing():
    import jax.numpy as jnp
    from jax.experimental import sparse as jax_sparse

    variable = keras.Variable(np.ones((3, 2), "float32"), name="table")
    optimizer = AdamaxClipped()
    gradient = jax_sparse.BCOO(
        (jnp.ones((4, 2)), jnp.array([[1], [3], [3], [0]])), shape=(3, 2)
    )
    optimizer.apply([gradient], [variable])
    assert optimizer.clip_statistics().counted == {"table": 4}
    assert (numpy(variable)[2] == 1).all()
    assert (numpy(variable)[:2] < 1).all()


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="rows are all there is"
)
def test_a_sparse_gradient_that_is_not_of_rows_is_refused():
    variable = keras.Variable(np.ones((3, 2), "float32"))
    optimizer = AdamaxClipped()
    if keras.backend.backend() == "jax":
        from jax.experimental import sparse as jax_sparse

        gradient = jax_sparse.BCOO.fromdense(np.eye(3, 2, dtype="float32"))
    else:
        import torch

        gradient = torch.eye(3, 2).to_sparse()
    with pytest.raises(ValueError, match="must hold whole rows"):
        optimizer.apply([gradient], [variable])


@pytest.mark.parametrize("compiled", [False, True])
def test_cannot_be_told_from_keras_adamax(compiled):
    x = np.random.default_rng(5).normal(size=(64, 6)).astype("float32")
    y = np.sin(x[:, :2])
    results = []
    for optimizer in (
        keras.optimizers.Adamax(learning_rate=0.01),
        AdamaxClipped(
            learning_rate=0.01,
            clip_gradients=False,
            bias_correction=True,
            epsilon=1e-7,
        ),
    ):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(16, activation="tanh"),
                keras.layers.Dense(2),
            ]
        )
        model.compile(optimizer, "mse", run_eagerly=not compiled)
        history = model.fit(
            x, y, batch_size=16, epochs=10, shuffle=False, verbose=0
        ).history["loss"]
        results.append((history, model.get_weights()))
    (history, weights), (our_history, our_weights) = results
    np.testing.assert_allclose(our_history, history, rtol=2e-6)
    for ours, theirs in zip(our_weights, weights, strict=True):
        # 40 steps of at most 0.01, with a few roundings of each.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=40 * 0.01 * 2e-6)


def test_reproduces_float32_numpy_bit_for_bit_with_the_defaults(monkeypatch):
    # Fused kernels multiply and add with one rounding where NumPy has two.
    monkeypatch.setenv("KERAS_ADAMAX_KERNEL", "reference")
    rng = np.random.default_rng(6)
    w = rng.normal(size=(40,)).astype("float32")
    variable = keras.Variable(w)
    optimizer = AdamaxClipped()
    m, u = np.zeros_like(w), np.zeros_like(w)
    f = np.float32
    for g in heavy_tailed_gradients(rng, (40,), STEPS):
        apply(optimizer, [g], [variable])
        bound = f(1.2) * u + f(1e-4)
        g = np.clip(g, -bound, bound)
        m = f(0.9) * m + (f(1) - f(0.9)) * g
        u = np.maximum(f(0.999) * u, np.abs(g))
        w = w - f(0.001) * m / (u + f(1e-8))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), w)


def test_a_constant_gradient_is_clipped_for_41_steps():
    # The bound of step t is 5e-4 * (1.2^t - 1), and passes 1 at step 42.
    variable = keras.Variable(np.zeros((3,), "float32"), name="w")
    optimizer = AdamaxClipped()
    for _ in range(41):
        apply(optimizer, [np.ones(3, "float32")], [variable])
    assert optimizer.clip_rates() == {"w": 1.0}
    optimizer.reset_clip_rates()
    apply(optimizer, [np.ones(3, "float32")], [variable])
    assert optimizer.clip_rates() == {"w": 0.0}


def test_an_infinite_gradient_is_an_oversized_one():
    variable = keras.Variable(np.zeros((3,), "float32"))
    optimizer = AdamaxClipped()
    gradients = np.array([np.inf, -np.inf, 1.0], "float32")
    apply(optimizer, [gradients], [variable])
    np.testing.assert_array_equal(
        numpy(optimizer._norms[0]), np.full(3, np.float32(1e-4))
    )
    assert np.isfinite(numpy(variable)).all()


def test_the_bound_does_not_overflow():
    variable = keras.Variable(np.zeros((2,), "float32"))
    optimizer = AdamaxClipped(clip_multiplier=4.0)
    apply(optimizer, [np.zeros(2, "float32")], [variable])
    optimizer._norms[0].assign(np.full(2, 3e38, "float32"))
    apply(optimizer, [np.array([np.inf, 1.0], "float32")], [variable])
    assert np.isfinite(numpy(variable)).all()
    assert numpy(optimizer._norms[0])[0] == np.finfo("float32").max


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 1e-7])
def test_nothing_moves_without_gradient_and_state(dtype, epsilon):
    variable = keras.Variable(np.ones(4, "float32"), dtype=dtype)
    optimizer = AdamaxClipped(0.5, epsilon=epsilon, bias_correction=True)
    for _ in range(3):
        apply(optimizer, [np.array([0.0, 0, 1, 0])], [variable])
    value = numpy(variable)
    assert (value[[0, 1, 3]] == 1).all()
    assert value[2] < 1
    assert keras.backend.standardize_dtype(variable.dtype) == dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_float32_rounded_once(dtype):
    rng = np.random.default_rng(7)
    gradients = heavy_tailed_gradients(rng, (50,), STEPS)
    start_value = rng.normal(size=50).astype("float32")
    variable = keras.Variable(start_value, dtype=dtype, name="w")
    oracle = AdamaxClippedOracle([numpy(variable)], dtypes=dtype)
    optimizer = AdamaxClipped()
    for g in gradients:
        # Before each step the oracle takes over the rounded weight, so that
        # its bound is that of a single rounding.
        oracle.set_weights([numpy(variable)])
        g = keras.ops.convert_to_tensor(g, dtype=dtype)
        optimizer.apply([g], [variable])
        oracle.step([keras.ops.convert_to_numpy(g).astype("float64")])
        assert_follows([variable], optimizer, oracle)
    for state in (optimizer._momentums[0], optimizer._norms[0]):
        assert keras.backend.standardize_dtype(state.dtype) == "float32"


def test_excluded_variables_are_not_clipped():
    rng = np.random.default_rng(8)
    weights, variables = start(rng, [(5,), (5,)])
    optimizer = AdamaxClipped(exclude_from_clipping=["weight_1$"])
    oracle = AdamaxClippedOracle(weights, exclude_from_clipping=[1])
    gradients = heavy_tailed_gradients(rng, (2, 5), STEPS)
    for g in gradients:
        apply(optimizer, list(g), variables)
        oracle.step(list(g))
        assert_follows(variables, optimizer, oracle)
    rates = optimizer.clip_rates()
    assert np.isnan(rates["weight_1"])
    assert rates["weight_0"] == oracle.clipped[0] / oracle.counted[0]
    assert optimizer.clip_rate() == rates["weight_0"]


def test_a_pattern_that_matches_nothing_is_an_error_at_build():
    _, variables = start(np.random.default_rng(0), [(5,)])
    optimizer = AdamaxClipped(exclude_from_clipping=["weight", "bias$"])
    with pytest.raises(ValueError, match=r"'bias\$'.*weight_0"):
        optimizer.build(variables)
    assert not optimizer.built


def test_clip_rates_are_zero_without_clipping_and_nan_without_counting():
    _, variables = start(np.random.default_rng(0), [(2,), (3,)])
    unclipped = AdamaxClipped(clip_gradients=False)
    uncounted = AdamaxClipped(track_clip_rate=False)
    assert unclipped.clip_rates() == {} and unclipped.clip_rate() == 0.0
    assert np.isnan(uncounted.clip_rate())
    for optimizer in (unclipped, uncounted):
        apply(optimizer, [np.ones(2), np.ones(3)], variables)
    assert unclipped.clip_rates() == {"weight_0": 0.0, "weight_1": 0.0}
    assert unclipped.clip_rate() == 0.0
    assert np.isnan(list(uncounted.clip_rates().values())).all()
    assert np.isnan(uncounted.clip_rate())


def test_an_absent_gradient_counts_for_nothing():
    _, variables = start(np.random.default_rng(0), [(2,), (3,)])
    optimizer = AdamaxClipped()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        apply(optimizer, [np.ones(2), None], variables)
    rates = optimizer.clip_rates()
    assert rates["weight_0"] == 1.0 and np.isnan(rates["weight_1"])
    assert optimizer.clip_rate() == 1.0


def test_observers_do_not_disturb_one_another():
    _, variables = start(np.random.default_rng(0), [(4,)])
    optimizer = AdamaxClipped(clip_epsilon=1.0)
    large = np.array([5.0, 5, 0.5, 0.5], "float32")
    small = np.full(4, 0.5, "float32")
    optimizer.reset_clip_rates()
    apply(optimizer, [large], variables)
    first = optimizer.clip_statistics()
    apply(optimizer, [small], variables)
    optimizer.reset_clip_rates()
    second = optimizer.clip_statistics()
    apply(optimizer, [small], variables)
    assert optimizer.clip_rate(since=first) == 0.0
    assert optimizer.clip_rate(since=second) == 0.0
    assert optimizer.clip_rate() == 0.0
    assert optimizer.clip_statistics().clipped == {"weight_0": 2}
    assert first.counted == {"weight_0": 4}
    assert second.since(first).rates() == {"weight_0": 0.0}
    with pytest.raises(ValueError, match="taken earlier"):
        first.since(second)
    with pytest.raises(TypeError, match="clip_statistics"):
        optimizer.clip_rates(since={})


def test_rates_stay_exact_after_ten_million_steps():
    rng = np.random.default_rng(9)
    weights, variables = start(rng, [(30, 30)])
    gradients = heavy_tailed_gradients(rng, (30, 30), 20)
    optimizer = AdamaxClipped()
    optimizer.build(variables)
    steps, size = 10_000_000, 900
    from keras_adamax import exact_totals

    before = (steps * size // 7, steps * size)
    optimizer._clip_counts.rows.assign(exact_totals.rows_from_totals([before]))
    optimizer._iterations.assign(steps)
    oracle = AdamaxClippedOracle(weights)
    snapshot = optimizer.clip_statistics()
    assert (
        snapshot.clipped["weight_0"],
        snapshot.counted["weight_0"],
    ) == before
    for g in gradients:
        apply(optimizer, [g], variables)
        oracle.step([g])
    rate = optimizer.clip_rate(since=snapshot)
    allowed = 1e-4 + oracle.ambiguous[0] / oracle.counted[0]
    assert abs(rate - oracle.clip_rate()) <= allowed
    assert 0.05 < rate < 0.95
    assert optimizer.clip_statistics().counted["weight_0"] == (
        before[1] + 20 * size
    )


def test_no_element_of_a_designed_input_is_ambiguous():
    # Powers of two around the bound: 0.25, then 2 * 0.25 + 0.25 and so on.
    oracle = AdamaxClippedOracle(
        [np.zeros(4)], clip_multiplier=2.0, clip_epsilon=0.25, beta_2=0.5
    )
    variable = keras.Variable(np.zeros(4, "float32"), name="w")
    optimizer = AdamaxClipped(
        clip_multiplier=2.0, clip_epsilon=0.25, beta_2=0.5
    )
    for g in ([1.0, 0.125, 0, -8], [0.5, 8, -0.125, 0.5], [2.0, -2, 2, 0.125]):
        g = np.array(g, "float32")
        oracle.step([g])
        apply(optimizer, [g], [variable])
        assert oracle.ambiguous == [0]
        assert optimizer.clip_statistics().clipped == {"w": oracle.clipped[0]}
    assert oracle.clipped[0] > 0


def test_variables_with_the_same_path_have_keys_of_their_own():
    variables = [
        keras.Variable(np.zeros(2, "float32"), name="kernel") for _ in range(3)
    ]
    optimizer = AdamaxClipped()
    apply(optimizer, [np.ones(2)] * 3, variables)
    assert list(optimizer.clip_rates()) == ["kernel", "kernel#2", "kernel#3"]


def test_layout_of_the_state():
    _, variables = start(np.random.default_rng(0), [(2, 3), (3,)])
    layouts = []
    for arguments in (
        {},
        {"clip_gradients": False, "track_clip_rate": False},
        {
            "learning_rate": staircase([1], [0.1, 0.2])[0],
            "skip_nonfinite": True,
        },
    ):
        optimizer = AdamaxClipped(**arguments)
        optimizer.build(variables)
        layouts.append([(v.name, tuple(v.shape)) for v in optimizer.variables])
    assert layouts[0] == layouts[1] == layouts[2]
    names = [name for name, _ in layouts[0]]
    assert "weight_0_momentum" in names and "weight_1_norm" in names
