"""The spike gate: a spike changes what the gate holds and nothing else."""

import json
import math
import warnings

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st

import keras_adamax
from keras_adamax import AdamaxClipped, LinearRamp, spike_rule
from tests import support
from tests.gradients import numpy
from tests.support import BACKEND, repeated

SHAPES = ((3, 2), (), (3, 0), (2,))
GATE = {"spike_threshold": 0.25, "max_skipped_spikes": 2}
# What a spike changes.
GATE_STATE = ("/spike_gate", "/last_spikes")
WARM_UP = [1] * 8
# After the warm-up: a spike alone, then a lasting change of two steps more
# than are left out, and a spike when the gate is armed again.
FACTORS = [*WARM_UP, 64, 1, 64, 64, 64, 64, 1, 1, 64, 1]
CONFIGS = {
    "defaults": {"clip_epsilon": 0.5},
    "everything": {
        "clip_epsilon": 0.5,
        "weight_decay": 0.25,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
        "global_clipnorm": 100.0,
        "bias_correction": True,
        "learning_rate": 0.125,
    },
    "loss scale": {
        "clip_epsilon": 0.5,
        "loss_scale_factor": 4.0,
        "clipvalue": 32.0,
    },
}


def calm(rng, shape, factor=1):
    """Elements of one size, about 1, which float16 holds exactly."""
    size = rng.integers(128, 192, shape) / 128
    return np.asarray(factor * size * rng.choice([-1.0, 1.0], shape), "float32")


def start(shapes=SHAPES, factors=FACTORS, seed=0):
    rng = np.random.default_rng(seed)
    return (
        support.values_of(rng, shapes),
        [[calm(rng, shape, factor) for shape in shapes] for factor in factors],
    )


def gate_of(optimizer):
    return numpy(optimizer._spike_gate.state).tolist()


def assert_gate(oracle, optimizer):
    """The state of the gate is the oracle's, exactly."""
    assert oracle.uncertain_rates == 0
    assert gate_of(optimizer) == [
        oracle.is_armed,
        oracle.skips_in_row,
        oracle.spike_steps,
    ]
    assert optimizer.spike_steps() == oracle.spike_steps
    assert_last(oracle, optimizer)


def assert_last(oracle, optimizer):
    """What is kept of the last spikes is what the oracle saw."""
    kept = optimizer.spikes()
    paths = optimizer._paths or optimizer._restoration.saved.paths
    first = max(oracle.spike_steps - 16, 0)
    assert [s.number for s in kept] == [
        *range(first + 1, oracle.spike_steps + 1)
    ]
    for spike, (call, step, rate, own) in zip(
        kept, oracle.spikes[first:], strict=True
    ):
        assert (spike.call, spike.step) == (call, step)
        assert spike.rate == pytest.approx(rate, rel=1e-6)
        named = list(spike.variables.values())
        # Of those with equal rates any may be named.
        largest = [r for r in sorted(own.values(), reverse=True) if r > 0]
        assert named == pytest.approx(largest[:5], rel=1e-6)
        for path, value in spike.variables.items():
            assert value == pytest.approx(own[paths.index(path)], rel=1e-6)


def check(loop, optimizer, variables, oracle, gradients, spikes):
    """Steps, each compared with the oracle; `spikes` are left out."""
    step = support.make_step(loop, optimizer, variables)
    for g in gradients:
        total = oracle.spike_steps
        before = support.state_of(optimizer, variables)
        step(g)
        oracle.step(g)
        if oracle.spike_steps > total:
            after = support.state_of(optimizer, variables)
            support.assert_same(before, after, but=GATE_STATE)
        support.assert_follows(oracle, optimizer, variables)
        assert_gate(oracle, optimizer)
    assert oracle.spike_steps == spikes
    assert optimizer.skipped_steps() == oracle.skipped_steps
    assert step.traces <= 1


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_loops(loop, config):
    config = CONFIGS[config] | GATE
    values, gradients = start()
    scale = config.get("loss_scale_factor", 1.0)
    gradients = [[np.float32(scale) * g for g in s] for s in gradients]
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(**config)
    oracle = support.oracle_of(values, **config)
    check(loop, optimizer, variables, oracle, gradients, spikes=4)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_schedules(loop):
    def multiplier(step):
        return 1.3 if step < 4 else 1.6

    values, gradients = start()
    variables = support.make_variables(values)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [3], [1.3, 1.6]
    )
    optimizer = AdamaxClipped(
        clip_multiplier=schedule, clip_epsilon=0.5, **GATE
    )
    oracle = support.oracle_of(
        values, clip_multiplier=multiplier, clip_epsilon=0.5, **GATE
    )
    check(loop, optimizer, variables, oracle, gradients, spikes=4)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_sparse_loops(loop, config):
    config = CONFIGS[config] | GATE
    scale = config.get("loss_scale_factor", 1.0)
    rng = np.random.default_rng(1)
    values = support.values_of(rng, [(5, 2), (3,)])
    gradients = []
    for i, factor in enumerate([*[1] * 24, *FACTORS[len(WARM_UP) :]]):
        # With repeated indices; at first of one row after the other.
        indices = np.array([i % 5, (i + 1) % 5, i % 5], "int32")
        rows = abs(calm(rng, (3, 2), factor * scale))
        gradients.append([(indices, rows), calm(rng, (3,), factor * scale)])
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(**config)
    oracle = support.oracle_of(values, **config)
    check(loop, optimizer, variables, oracle, gradients, spikes=4)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_rows_are_summed_and_absent_ones_not_counted(loop):
    optimizer = AdamaxClipped(
        clip_epsilon=1.0, spike_threshold=0.6, max_skipped_spikes=9
    )
    [table] = support.make_variables([np.zeros((9, 2), "float32")])
    step = support.make_step(loop, optimizer, [table])
    index = np.array([4, 4, 2], "int32")

    def rows(first, second, third):
        return [(index, np.float32([[first] * 2, [second] * 2, [third] * 2]))]

    step(rows(0.25, 0.5, 0.5))
    assert gate_of(optimizer) == [1, 0, 0]
    # A sum of 8 in one of two rows: half of the elements that are there.
    step(rows(4, 4, 0.5))
    assert gate_of(optimizer) == [1, 0, 0]
    # Each occurrence exceeds its bound, and their sum does not.
    step(rows(90, -90, 0.5))
    assert gate_of(optimizer) == [1, 0, 0]
    step(rows(90, 90, 90))
    assert gate_of(optimizer) == [1, 1, 1]


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_accumulation(loop):
    """A micro-batch is left out alone, wherever it stands in an update."""
    config = CONFIGS["everything"] | {"gradient_accumulation_steps": 3}
    config |= {"global_clipnorm": None, "clipnorm": 64.0}
    factors = [*[1] * 30, 512, 1, 512, 1, 512, *[512] * 4, *[1] * 12, 512]
    values, gradients = start(factors=factors)
    # Of one sign, so that the mean has their size.
    gradients = [list(map(np.abs, g)) for g in gradients]
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(**config, **GATE)
    oracle = support.oracle_of(values, **config, **GATE)
    check(loop, optimizer, variables, oracle, gradients, spikes=5)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_accumulation_passes_the_warm_up(loop):
    """The first micro-batches of an update have a part of its size alone."""
    values, _ = start(shapes=[(4,)])
    gradients = [[np.ones(4, "float32")]] * 200
    variables = support.make_variables(values)
    config = {"gradient_accumulation_steps": 4, "clip_epsilon": 1e-2}
    optimizer = AdamaxClipped(**config, **GATE)
    oracle = support.oracle_of(values, **config, **GATE)
    check(loop, optimizer, variables, oracle, gradients, spikes=0)
    assert optimizer.clip_rate() > 0.1
    assert gate_of(optimizer) == [1, 0, 0]


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_excluded_and_absent_gradients(loop):
    values, gradients = start()
    for step in gradients:
        # It would be a spike in every step.
        step[0] *= np.float32(1e6)
        step[3] = None
    variables = support.make_variables(values)
    config = {"clip_epsilon": 0.5, **GATE}
    optimizer = AdamaxClipped(exclude_from_clipping=["weight_0"], **config)
    oracle = support.oracle_of(values, exclude_from_clipping=[0], **config)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        check(loop, optimizer, variables, oracle, gradients, spikes=4)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_nothing_given_is_no_spike(loop):
    values, gradients = start()
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(exclude_from_clipping=["weight"], **GATE)
    oracle = support.oracle_of(
        values, exclude_from_clipping=range(len(values)), **GATE
    )
    check(loop, optimizer, variables, oracle, gradients, spikes=0)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_constraints_and_overwritten_variables_stay(loop):
    values, _ = start(shapes=[(3,), (2,)])
    variables = [
        keras.Variable(values[0], name="constrained"),
        keras.Variable(values[1], name="overwritten"),
    ]
    variables[0].constraint = keras.constraints.MaxNorm(1e-3)
    variables[1].overwrite_with_gradient = True
    optimizer = AdamaxClipped(clip_epsilon=0.5, **GATE)
    step = support.make_step(loop, optimizer, variables)
    one = np.ones(3, "float32")
    for _ in WARM_UP:
        # What overwrites a variable is not clipped, so it is no spike.
        step([one, np.full(2, 1e6, "float32")])
    before = support.state_of(optimizer, variables)
    step([99 * one, np.ones(2, "float32")])
    after = support.state_of(optimizer, variables)
    support.assert_same(before, after, but=GATE_STATE)
    assert optimizer.spike_steps() == 1
    # Nothing is left that could be clipped.
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        step([None, np.ones(2, "float32")])
    np.testing.assert_array_equal(numpy(variables[1]), [1, 1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_dtypes(loop, dtype):
    if (BACKEND, dtype) == ("jax", "float64"):
        pytest.skip("JAX has float32 unless it is told otherwise")
    values, gradients = start()
    variables = support.make_variables(values, dtype=dtype)
    optimizer = AdamaxClipped(clip_epsilon=0.5, **GATE)
    oracle = support.oracle_of(
        [np.float64(numpy(v)) for v in variables],
        dtypes=dtype,
        clip_epsilon=0.5,
        **GATE,
    )
    check(loop, optimizer, variables, oracle, gradients, spikes=4)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_nan_and_infinity_without_skipping(loop):
    """An Inf is above its bound. A NaN is not, and counts as given."""
    optimizer = AdamaxClipped(clip_epsilon=2.0, **GATE)
    variables = support.make_variables([np.zeros(4, "float32")])
    step = support.make_step(loop, optimizer, variables)
    step([np.ones(4, "float32")])
    before = support.state_of(optimizer, variables)
    step([np.float32([np.inf, -np.inf, 1, 1])])
    after = support.state_of(optimizer, variables)
    support.assert_same(before, after, but=GATE_STATE)
    assert gate_of(optimizer) == [1, 1, 1]
    step([np.float32([np.nan, np.nan, np.nan, np.inf])])
    assert gate_of(optimizer) == [1, 0, 1]
    assert np.isnan(numpy(variables[0])).sum() == 3


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_with_skip_nonfinite(loop, config):
    """What is not finite does not reach the gate, in a row of spikes, too."""
    config = CONFIGS[config] | GATE | {"skip_nonfinite": True}
    values, gradients = start(factors=[*WARM_UP, 64, 64, 64, 64, 1, 1])
    scale = config.get("loss_scale_factor", 1.0)
    gradients = [[np.float32(scale) * g for g in s] for s in gradients]
    for i, value in ((9, np.nan), (0, np.inf), (12, -np.inf)):
        bad = [g.copy() for g in gradients[i]]
        bad[0][0, 0] = value
        gradients.insert(i, bad)
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(**config)
    oracle = support.oracle_of(values, **config)
    step = support.make_step(loop, optimizer, variables)
    for g in gradients:
        skipped = oracle.skipped_steps
        before = support.state_of(optimizer, variables)
        step(g)
        oracle.step(g)
        if oracle.skipped_steps > skipped:
            after = support.state_of(optimizer, variables)
            support.assert_same(before, after, but=["/skipped_steps"])
        support.assert_follows(oracle, optimizer, variables)
        assert_gate(oracle, optimizer)
    assert optimizer.skipped_steps() == oracle.skipped_steps == 3
    assert optimizer.spike_steps() == 2


@pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
def test_fit(mode):
    config = CONFIGS["everything"] | {"gradient_accumulation_steps": 2} | GATE
    factors = [*[1] * 18, 512, 1, 1, 512, 1, 512, 512, 512, 1, 1, 1, 1]
    values, gradients = start(factors=factors)
    gradients = [list(map(np.abs, g)) for g in gradients]
    optimizer = AdamaxClipped(**config)
    model = support.start_fit(values, optimizer, mode)
    oracle = support.run_oracle(support.oracle_of(values, **config), gradients)
    support.fit(model, gradients)
    assert oracle.spike_steps == 4
    assert_gate(oracle, optimizer)
    support.assert_follows(oracle, optimizer, model.weights, averages=True)


@pytest.mark.parametrize(
    "loop", [x for x in support.LOOPS if (BACKEND, x) != ("jax", "eager")]
)
def test_inside_of_a_loss_scale_optimizer(loop):
    values, gradients = start()
    variables = support.make_variables(values)
    inner = AdamaxClipped(clip_epsilon=0.5, **GATE)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    step = support.make_step(loop, optimizer, variables)
    oracle = support.oracle_of(values, clip_epsilon=0.5, **GATE)
    for g in gradients:
        step([x * np.float32(4.0) for x in g])
        oracle.step(g)
        support.assert_follows(oracle, inner, variables)
        assert_gate(oracle, inner)
    assert inner.spike_steps() == 4


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_multi_optimizer(loop):
    """Each of its optimizers decides on what it is given."""
    values, gradients = start(shapes=[(3, 2), (2,)])
    for step in gradients:
        step[1] = np.sign(step[1])
    variables = support.make_variables(values)
    first, second = (AdamaxClipped(clip_epsilon=0.5, **GATE) for _ in range(2))
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(second, {"weight_0": first})
    )
    step = support.make_step(loop, optimizer, variables)
    oracles = [support.oracle_of([v], clip_epsilon=0.5, **GATE) for v in values]
    for g in gradients:
        step(g)
        oracles[0].step(g[:1])
        oracles[1].step(g[1:])
    assert_gate(oracles[0], first)
    assert_gate(oracles[1], second)
    assert (first.spike_steps(), second.spike_steps()) == (4, 0)
    support.assert_follows(oracles[0], first, variables[:1])
    support.assert_follows(oracles[1], second, variables[1:])


class TestSample:
    """Of large variables a part is looked at, evenly spread."""

    @staticmethod
    def error(above):
        """Of the rate that a sample of these booleans has."""
        stride = spike_rule.stride_of(above.shape)
        assert stride > 20
        sample = numpy(
            spike_rule.sample_of(
                keras.ops.convert_to_tensor(above), above.shape, stride
            )
        )
        assert sample.shape == (spike_rule.sample_size(above.shape, stride),)
        return abs(sample.mean() - above.mean())

    @pytest.mark.parametrize(
        ("shape", "total", "stride"),
        [
            ((), None, 1),
            ((0, 3), None, 1),
            ((2**20,), None, 1),
            ((2**20 + 1,), None, 8),
            ((2**17 * 9 + 1,), None, 9),
            ((65536, 4096), None, 2047),
            ((3, 3, 512, 512), None, 17),
            ((2560, 4096), None, 79),
            # One of many.
            ((256, 260), 2**20, 1),
            ((256, 260), 2**20 + 1, 7),
            ((0, 3), 2**21, 1),
            ((2**13 + 1,), 2**21, 1),
            ((2**14 + 1,), 2**21, 2),
            ((2**15 + 1,), 2**21, 4),
            ((2560, 4096), 2**30, 79),
        ],
    )
    def test_stride(self, shape, total, stride):
        assert spike_rule.stride_of(shape, total) == stride
        size = math.prod(shape)
        looked_at = size
        if stride > 1:
            looked_at = 16 * len(range(0, size // 16, stride))
        assert spike_rule.sample_size(shape, stride) == looked_at
        assert looked_at >= min(size, spike_rule.FEWEST)

    @hypothesis.given(
        st.lists(st.integers(1, 3000), min_size=1, max_size=4).filter(
            lambda shape: math.prod(shape) <= 10**9
        ),
        st.integers(0, 10**9),
    )
    def test_every_stride_meets_all_of_every_axis(self, shape, others):
        size = math.prod(shape)
        stride = spike_rule.stride_of(shape, size + others)
        assert 1 <= stride <= max(8, size // spike_rule.SAMPLE)
        assert all(math.gcd(stride, length) == 1 for length in shape)

    @hypothesis.given(
        st.lists(st.integers(2**14, 2**22), min_size=1, max_size=300)
    )
    def test_a_step_has_enough_elements(self, sizes):
        looked_at = sum(
            spike_rule.sample_size((n,), spike_rule.stride_of((n,), sum(sizes)))
            for n in sizes
        )
        assert looked_at >= min(sum(sizes), spike_rule.SAMPLE)

    @pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5])
    @pytest.mark.parametrize("shape", [(2048, 2048), (4096, 1000), (3000001,)])
    @pytest.mark.parametrize("kind", ["elements", "rows", "columns", "block"])
    def test_error_is_below_half_a_per_cent(self, shape, fraction, kind):
        """However the elements above their bounds are spread."""
        rng = np.random.default_rng(0)
        above = np.zeros(shape, bool)
        if kind == "elements":
            above = rng.random(shape) < fraction
        elif kind == "rows":
            above[rng.random(shape[0]) < fraction] = True
        elif kind == "columns":
            above[..., rng.random(shape[-1]) < fraction] = True
        else:
            above[: round(fraction**0.5 * shape[0])] = True
        assert self.error(above) < 0.005

    def test_where_whole_runs_exceed_alike_it_is_larger(self):
        """As in the dense gradient of an embedding with short rows."""
        shape = (200003, 16)
        above = np.zeros(shape, bool)
        above[np.random.default_rng(0).random(shape[0]) < 0.2] = True
        assert self.error(above) < 0.015

    @pytest.mark.skipif(BACKEND != "torch", reason="others check shapes")
    def test_a_gradient_of_another_shape(self):
        variables = support.make_variables([np.zeros(4, "float32")])
        optimizer = AdamaxClipped(clip_epsilon=1.0, spike_threshold=0.5)
        optimizer.build(variables)
        for size, number in ((0.5, 0), (99.0, 1)):
            # It is the gradient of each of the four weights.
            gradient = keras.ops.convert_to_tensor([size], "float32")
            optimizer.apply([gradient], variables)
            assert optimizer.spike_steps() == number
        with pytest.raises(RuntimeError, match="size"):
            optimizer.apply([keras.ops.ones(4000)], variables)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "loop", [support.LOOPS[-1], *repeated(*support.LOOPS[:-1])]
    )
    def test_it_is_weighted_by_the_size_of_the_variable(self, loop):
        """Of 1.6 million elements in one variable and 0.4 in another."""
        shapes = ((1600, 1000), (400, 1000))
        variables = support.make_variables(
            [np.zeros(shape, "float32") for shape in shapes]
        )
        config = {"clip_epsilon": 2.0, "spike_threshold": 0.799}
        optimizer = AdamaxClipped(**config)
        oracle = support.oracle_of(
            [np.zeros(shape) for shape in shapes], **config
        )
        step = support.make_step(loop, optimizer, variables)
        steps = [[np.ones(shape, "float32") for shape in shapes]] * 3
        steps.append([steps[0][0] * 99, steps[0][1]])
        # A fifth of the elements: of the sample, it would be 56 %.
        steps.append([steps[0][0], steps[0][1] * 99])
        for g in steps:
            step(g)
            oracle.step(g)
            assert_gate(oracle, optimizer)
        np.testing.assert_allclose(oracle.rates[-2:], [0.8, 0.2], rtol=1e-6)
        assert optimizer.spike_steps() == 1

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    @pytest.mark.parametrize(
        "config",
        [
            {},
            *(
                pytest.param(config, marks=pytest.mark.slow)
                for config in (
                    {"global_clipnorm": 1e6},
                    {"gradient_accumulation_steps": 2},
                    {"loss_scale_factor": 2.0, "clipvalue": 1e6},
                    {"exclude_from_clipping": ["weight_1"]},
                )
            ),
        ],
        ids=str,
    )
    def test_what_is_looked_at_is_the_oracles(self, loop, config):
        """Noise with a rate that only the same sample decides the same way."""
        rng = np.random.default_rng(3)
        shapes = ((700, 901), (5,), (30000,), (500000,))
        values = [np.zeros(shape, "float32") for shape in shapes]
        variables = support.make_variables(values)
        excluded = [1] if "exclude_from_clipping" in config else []
        scale = config.get("loss_scale_factor", 1.0)
        optimizer = AdamaxClipped(
            spike_threshold=0.2, clip_epsilon=1.0, **config
        )
        oracle = support.oracle_of(
            values,
            spike_threshold=0.2,
            clip_epsilon=1.0,
            **(config | {"exclude_from_clipping": excluded}),
        )
        step = support.make_step(loop, optimizer, variables)
        accumulated = config.get("gradient_accumulation_steps", 1)
        scale *= accumulated**0.5
        factors = (0.1, 0.1, 0.85, 0.87, 0.9, 2.1, 0.1, 2.0)
        for factor in np.repeat(factors, accumulated):
            g = [
                np.float32(scale * factor * rng.normal(size=shape))
                for shape in shapes
            ]
            step(g)
            oracle.step(g)
            assert gate_of(optimizer)[2] == oracle.spike_steps
        assert 0 < oracle.spike_steps < 6


class TestLast:
    """The last 16 spikes are kept, with the variables that stood out."""

    CONFIG = {
        "clip_epsilon": 2.0,
        "spike_threshold": 0.1,
        "max_skipped_spikes": 99,
    }

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
    def test_the_five_of_the_largest_rates(self, mode):
        """Not those with the most elements above their bounds."""
        shapes = [(40,), (10,), (10,), (4,), (), (10,), (100,)]
        above = [10, 5, 9, 2, 0, 1, 20]
        spiky = []
        for shape, number in zip(shapes, above, strict=True):
            g = np.ones(math.prod(shape), "float32")
            g[:number] = 99
            spiky.append(g.reshape(shape))
        calm = [np.ones(shape, "float32") for shape in shapes]
        optimizer = AdamaxClipped(**self.CONFIG)
        model = support.start_fit(calm, optimizer, mode)
        support.fit(model, [calm, spiky, calm])
        [spike] = optimizer.spikes()
        assert (spike.number, spike.call, spike.step) == (1, 2, 1)
        assert spike.rate == pytest.approx(47 / 175)
        paths = [v.path for v in model.trainable_variables]
        assert list(spike.variables) == [paths[i] for i in (2, 1, 3, 0, 6)]
        assert list(spike.variables.values()) == pytest.approx(
            [0.9, 0.5, 0.5, 0.25, 0.2]
        )

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_older_ones_are_counted_alone(self, loop):
        values, _ = start(shapes=[(3,), (2,)])
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**self.CONFIG)
        oracle = support.oracle_of(values, **self.CONFIG)
        step = support.make_step(loop, optimizer, variables)
        sizes = [1, *[99] * 10, 1, 1, *[99] * 13, 1]
        for size in sizes:
            g = [np.full(n, size, "float32") for n in (3, 2)]
            step(g)
            oracle.step(g)
        assert_gate(oracle, optimizer)
        kept = optimizer.spikes()
        assert [s.call for s in kept] == [9, 10, 11, *range(14, 27)]
        assert [s.step for s in kept] == [1] * 3 + [3] * 13
        assert kept[0].number == 23 - 15
        assert optimizer.spikes(since=21) == kept[-2:]
        assert optimizer.spikes(since=23) == []
        statistics = optimizer.spike_statistics()
        assert statistics.spikes == tuple(kept)
        assert (statistics.spike_steps, statistics.calls) == (23, 27)
        assert statistics.step == 4

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_large_numbers_are_exact(self, loop):
        optimizer = AdamaxClipped(skip_nonfinite=True, **self.CONFIG)
        variables = support.make_variables([np.zeros(4, "float32")])
        optimizer.build(variables)
        optimizer._spike_gate.state.assign([1, 0, 2**24])
        optimizer._iterations.assign(2**30 + 1)
        optimizer._skipped_steps.assign(2**25 + 1)
        step = support.make_step(loop, optimizer, variables)
        step([np.full(4, 99, "float32")])
        [spike] = optimizer.spikes()
        assert spike.number == 2**24 + 1
        assert spike.call == 2**30 + 1 + 2**25 + 1 + 2**24 + 1
        assert spike.step == 2**30 + 1

    def test_what_since_takes(self):
        optimizer = AdamaxClipped(spike_threshold=0.2)
        assert optimizer.spikes() == []
        with pytest.raises(ValueError, match="`since`.*>= 0.*since=-1"):
            optimizer.spikes(since=-1)
        with pytest.raises(TypeError, match="`since`.*integer"):
            optimizer.spikes(since=1.0)

    def test_without_a_gate(self):
        optimizer = AdamaxClipped()
        assert optimizer.last_spikes is None
        assert optimizer.spikes() == []
        assert optimizer.spike_statistics() == keras_adamax.SpikeStatistics(
            0, 0, 0, ()
        )


class Gate:
    """The gate in plain Python, from its description alone."""

    def __init__(self, threshold, most):
        self.threshold, self.most = threshold, most
        self.armed, self.row, self.total = False, 0, 0

    def passes(self, rate, updates):
        if rate <= self.threshold:
            if updates:
                self.armed = True
            self.row = 0
            return True
        if self.armed and self.row < self.most:
            self.row += 1
            self.total += 1
            return False
        self.armed = False
        self.row = 0
        return True


class TestStateMachine:
    @hypothesis.settings(max_examples=50, deadline=None)
    @hypothesis.given(
        threshold=st.sampled_from([0.1, 0.2, 1 / 3, 0.5, 0.9]),
        most=st.integers(1, 4),
        steps=st.lists(
            st.tuples(st.integers(0, 30), st.booleans()), max_size=25
        ),
    )
    def test_it_is_the_description(self, threshold, most, steps):
        gate = Gate(threshold, most)
        convert = keras.ops.convert_to_tensor
        state = convert(np.zeros(3, "int32"))
        limits = (
            convert(np.float32(threshold)),
            convert(np.float32(most)),
        )
        for above, updates in steps:
            counts = [
                spike_rule.Counts(convert(np.float32([above])), (10.0,)),
                spike_rule.Counts(convert(np.float32([0])), (20.0,)),
            ]
            left_out, state = spike_rule.decide(
                state, spike_rule.rate_of(counts), *limits, convert(updates)
            )
            assert bool(numpy(left_out)) != gate.passes(above / 30, updates)
            assert numpy(state).tolist() == [gate.armed, gate.row, gate.total]

    def test_without_accumulation_every_step_is_an_update(self):
        convert = keras.ops.convert_to_tensor
        for rate in (0.1, 0.3):
            arguments = (
                convert(np.int32([0, 0, 7])),
                convert(np.float32(rate)),
                convert(np.float32(0.2)),
                convert(np.float32(5)),
            )
            results = [
                spike_rule.decide(*arguments, is_update)
                for is_update in (None, convert(True))
            ]
            for expected, actual in zip(*results, strict=True):
                np.testing.assert_array_equal(numpy(expected), numpy(actual))

    def test_a_rate_of_the_threshold_is_no_spike(self):
        for above, given, threshold in ((2, 10, 0.2), (1, 3, 1 / 3)):
            optimizer = AdamaxClipped(
                clip_epsilon=1.0, spike_threshold=threshold
            )
            variables = support.make_variables([np.zeros(given, "float32")])
            step = support.make_step(
                support.COMPILED_LOOP, optimizer, variables
            )
            step([np.zeros(given, "float32")])
            g = np.zeros(given, "float32")
            g[:above] = 99
            step([g])
            assert gate_of(optimizer) == [1, 0, 0]
            g[:] = 0
            g[: above + 1] = 999
            step([g])
            assert gate_of(optimizer) == [1, 1, 1]

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_the_total_goes_on_from_a_large_one(self, loop):
        optimizer = AdamaxClipped(clip_epsilon=2.0, **GATE)
        variables = support.make_variables([np.zeros(4, "float32")])
        optimizer.build(variables)
        optimizer._spike_gate.state.assign([1, 0, 2**24 + 1])
        step = support.make_step(loop, optimizer, variables)
        step([np.full(4, 99, "float32")])
        assert optimizer.spike_steps() == 2**24 + 2


class TestLive:
    @pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
    def test_in_fit(self, mode):
        shapes = ((4,),)
        values, gradients = start(shapes, [*WARM_UP, 64, 1])
        optimizer = AdamaxClipped(
            clip_epsilon=0.5, spike_threshold=0.3, max_skipped_spikes=1
        )
        model = support.start_fit(values, optimizer, mode)
        support.fit(model, gradients)
        assert optimizer.spike_steps() == 1
        optimizer.spike_threshold = 0.8
        gradients[0][0][1:] *= 64
        support.fit(model, gradients[:1])
        assert optimizer.spike_steps() == 1
        optimizer.spike_threshold = 0.7
        optimizer.max_skipped_spikes = 3
        assert (optimizer.spike_threshold, optimizer.max_skipped_spikes) == (
            0.7,
            3,
        )
        support.fit(model, [gradients[0]] * 4)
        assert gate_of(optimizer) == [0, 0, 4]
        config = optimizer.get_config()
        assert config["spike_threshold"] == 0.7
        assert config["max_skipped_spikes"] == 3
        again = AdamaxClipped.from_config(config)
        assert again.get_config() == config

    def test_what_cannot_be_set(self):
        optimizer = AdamaxClipped()
        for name, value in (
            ("spike_threshold", 0.5),
            ("max_skipped_spikes", 3),
        ):
            with pytest.raises(
                AttributeError,
                match=f"`{name}` cannot be set: `spike_threshold` was None "
                f".*spike_threshold=0.2.*Received: {name}={value}",
            ):
                setattr(optimizer, name, value)
        assert optimizer.spike_threshold is None
        assert optimizer.max_skipped_spikes == 5
        optimizer = AdamaxClipped(spike_threshold=0.5)
        with pytest.raises(AttributeError, match="cannot be turned off"):
            optimizer.spike_threshold = None
        with pytest.raises(ValueError, match=r"spike_threshold.*\(0, 1\)"):
            optimizer.spike_threshold = 1.0
        with pytest.raises(TypeError, match="max_skipped_spikes.*integer >= 1"):
            optimizer.max_skipped_spikes = 2.0
        with pytest.raises(ValueError, match="max_skipped_spikes.*integer"):
            optimizer.max_skipped_spikes = 0
        assert optimizer.spike_threshold == 0.5
        assert optimizer.max_skipped_spikes == 5
        with pytest.raises(AttributeError, match="`spike_threshold` was None"):
            AdamaxClipped(clip_gradients=False).max_skipped_spikes = 3


class TestOff:
    """Without a threshold nothing is added to a step."""

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_no_work_is_done(self, loop, monkeypatch):
        def fail(*arguments):
            raise AssertionError("the gate is off")

        for name in ("stride_of", "decide", "rate_of", "are_above", "row_of"):
            monkeypatch.setattr(spike_rule, name, fail)
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(clip_epsilon=0.5)
        oracle = support.oracle_of(values, clip_epsilon=0.5)
        step = support.make_step(loop, optimizer, variables)
        for g in gradients:
            step(g)
            oracle.step(g)
        support.assert_follows(oracle, optimizer, variables)
        assert optimizer.spike_steps() == 0

    def test_no_variable_is_added(self):
        """The layout from before there were gates, also with other numbers."""
        [variable] = support.make_variables([np.zeros(3, "float32")])
        for most in (5, 7):
            optimizer = AdamaxClipped(max_skipped_spikes=most)
            optimizer.build([variable])
            assert [(v.name, tuple(v.shape)) for v in optimizer.variables] == [
                ("iteration", ()),
                ("learning_rate", ()),
                ("hyperparameters", (6,)),
                ("log_beta_1_product", ()),
                ("skipped_steps", ()),
                ("weight_0_momentum", (3,)),
                ("weight_0_norm", (3,)),
                ("clip_counts", (1, 6)),
                ("clipping_exclusions", (1,)),
            ]
            assert optimizer.max_skipped_spikes == most
            gated = AdamaxClipped(spike_threshold=0.5, max_skipped_spikes=most)
            gated.build([variable])
            layouts = [
                {v.name: tuple(v.shape) for v in o.variables}
                for o in (optimizer, gated)
            ]
            assert layouts[1] == layouts[0] | {
                "hyperparameters": (8,),
                "spike_gate": (3,),
                "last_spikes": (16, 17),
            }
            assert optimizer.get_config()["max_skipped_spikes"] == most

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_what_is_applied_is_the_same_bit_for_bit(self, loop):
        """A gate that lets all pass changes nothing but its own state."""
        values, gradients = start(factors=[0.25, 1, 2, 4, 64, 1, 1, 0.5] * 2)
        states = []
        for config in ({}, {"spike_threshold": 0.999}):
            variables = support.make_variables(values)
            optimizer = AdamaxClipped(**config)
            step = support.make_step(loop, optimizer, variables)
            for g in gradients:
                step(g)
            assert optimizer.spike_steps() == 0
            state = support.state_of(optimizer, variables)
            own = (*GATE_STATE, "/hyperparameters")
            states.append(
                {
                    k.partition(": ")[2]: v
                    for k, v in state.items()
                    if not k.endswith(own)
                }
            )
        support.assert_same(*states)


class TestTolerance:
    def test_values_of_the_formula(self):
        assert AdamaxClipped().spike_tolerance == pytest.approx(0.00546, 1e-2)
        assert AdamaxClipped(beta_2=0.99).spike_tolerance == pytest.approx(
            0.0522, 1e-2
        )
        assert AdamaxClipped(
            beta_2=0.99, clip_multiplier=1.05
        ).spike_tolerance == pytest.approx(0.171, 1e-2)

    @hypothesis.given(st.floats(1.0, 1e6), st.floats(0.0, 0.999999))
    def test_it_solves_its_equation(self, multiplier, beta_2):
        p = spike_rule.tolerance(multiplier, beta_2)
        assert 0 < p <= 1
        if 0 < beta_2 and multiplier > 1:
            assert p * math.log(multiplier) == pytest.approx(
                (1 - p) * -math.log(beta_2), rel=1e-6, abs=1e-12
            )

    def test_extremes(self):
        assert AdamaxClipped(clip_multiplier=1).spike_tolerance == 1.0
        assert AdamaxClipped(beta_2=0).spike_tolerance == 1.0
        assert AdamaxClipped(clip_gradients=False).spike_tolerance == 0.0

    def test_it_is_of_the_present_values(self):
        optimizer = AdamaxClipped()
        optimizer.beta_2 = 0.99
        assert (
            optimizer.spike_tolerance
            == AdamaxClipped(beta_2=0.99).spike_tolerance
        )
        optimizer = AdamaxClipped(
            beta_2=LinearRamp(0.9, 0.99, num_steps=2),
            clip_multiplier=LinearRamp(0.5, 1.5, num_steps=2),
            gradient_accumulation_steps=2,
        )
        assert optimizer.spike_tolerance == 1.0
        optimizer._iterations.assign(5)
        assert optimizer.spike_tolerance == pytest.approx(
            spike_rule.tolerance(1.5, 0.99), rel=1e-4
        )
        with pytest.raises(AttributeError, match="spike_tolerance.*read-only"):
            optimizer.spike_tolerance = 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("p", "holds"), [(0.03, True), (0.10, False)], ids=str
    )
    def test_it_is_the_share_that_the_bound_survives(self, p, holds):
        """Below it the bound stays near ordinary gradients; above, it grows."""
        rng = np.random.default_rng(0)
        config = {"beta_2": 0.99, "clip_epsilon": 1e-8}
        oracle = support.oracle_of([np.zeros(1)], **config)
        oracle.u[0][:] = 1.0
        assert (p < AdamaxClipped(**config).spike_tolerance) == holds
        for _ in range(4000):
            oracle.step([np.array([1e30 if rng.random() < p else 1.0])])
        assert (oracle.u[0][0] < 100.0) == holds


def test_without_clipping():
    for config in ({"spike_threshold": 0.2}, {"max_skipped_spikes": 3}):
        with pytest.raises(ValueError, match="need the bounds of the clipping"):
            AdamaxClipped(clip_gradients=False, **config)
    AdamaxClipped(clip_gradients=False, max_skipped_spikes=5)


class TestSaved:
    """The gate is saved by role, and goes on where it was."""

    CONFIG = {"clip_epsilon": 0.5, **GATE}

    def stopped(self, number):
        """An optimizer and its oracle after some steps, and the rest."""
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**self.CONFIG)
        oracle = support.oracle_of(values, **self.CONFIG)
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        for g in gradients[:number]:
            step(g)
            oracle.step(g)
        store = {}
        optimizer.save_own_variables(store)
        return store, variables, oracle, gradients[number:]

    def test_another_number_is_written_by_position(self):
        variables = support.make_variables(start()[0])
        saved = AdamaxClipped(spike_threshold=0.2, max_skipped_spikes=5)
        optimizer = AdamaxClipped(spike_threshold=0.2, max_skipped_spikes=3)
        for one in (saved, optimizer):
            one.build(variables)
        support.set_weights(optimizer, [numpy(v) for v in saved.variables])
        config = optimizer.get_config()
        assert AdamaxClipped.from_config(config).max_skipped_spikes == 5

    # In a row of spikes, when it is not armed, and when it is.
    @pytest.mark.parametrize("number", [12, *repeated(11, 13, 14, 15)])
    @pytest.mark.parametrize("is_built", [True, False])
    def test_it_goes_on(self, number, is_built):
        store, variables, oracle, gradients = self.stopped(number)
        optimizer = AdamaxClipped(**self.CONFIG)
        if is_built:
            optimizer.build(variables)
        optimizer.load_own_variables(store)
        assert_gate(oracle, optimizer)
        check(
            support.COMPILED_LOOP,
            optimizer,
            variables,
            oracle,
            gradients,
            spikes=4,
        )

    @pytest.mark.parametrize("is_built", [True, False])
    def test_variables_in_another_order(self, is_built):
        store, variables, oracle, _ = self.stopped(12)
        optimizer = AdamaxClipped(**self.CONFIG)
        if is_built:
            optimizer.build(variables[::-1])
        optimizer.load_own_variables(store)
        before = optimizer.spikes()
        assert len(before) == oracle.spike_steps == 3
        optimizer.build(variables[::-1])
        assert optimizer.spikes() == before
        for spike in before:
            assert set(spike.variables) == {
                "weight_0",
                "weight_1",
                "weight_3",
            }

    def test_one_that_is_damaged(self):
        store, variables, _, _ = self.stopped(12)
        for damaged in (
            store["last_spikes"][1:],
            np.where(store["last_spikes"] > 0, 9, 0),
        ):
            manifest = json.loads(store["manifest"].tobytes())
            for entry in manifest["entries"]:
                if entry["role"] == "last_spikes":
                    entry["shape"] = list(damaged.shape)
            text = np.frombuffer(json.dumps(manifest).encode(), "uint8")
            optimizer = AdamaxClipped(**self.CONFIG)
            optimizer.build(variables)
            with pytest.raises(ValueError, match="damaged"):
                optimizer.load_own_variables(
                    store | {"manifest": text, "last_spikes": damaged}
                )
            assert optimizer.spikes() == []

    def test_a_state_without_it_starts_fresh(self):
        store, variables, _, _ = self.stopped(11)
        manifest = json.loads(store["manifest"].tobytes())
        assert "spike_gate" in {e["role"] for e in manifest["entries"]}
        manifest["entries"] = [
            e
            for e in manifest["entries"]
            if e["role"] not in ("spike_gate", "last_spikes")
        ]
        for name in ("spike_threshold", "max_skipped_spikes"):
            del manifest["constructed"][name], manifest["current"][name]
        text = json.dumps(manifest).encode()
        del store["spike_gate"], store["last_spikes"]
        store["hyperparameters"] = store["hyperparameters"][:6]
        for entry in manifest["entries"]:
            if entry["role"] == "hyperparameters":
                entry["shape"] = [6]
        text = json.dumps(manifest).encode()
        store["manifest"] = np.frombuffer(text, "uint8")
        optimizer = AdamaxClipped(spike_threshold=0.7, clip_epsilon=0.5)
        optimizer.build(variables)
        optimizer._spike_gate.state.assign([1, 2, 3])
        optimizer.load_own_variables(store)
        assert gate_of(optimizer) == [0, 0, 0]
        assert optimizer.spike_threshold == 0.7
        assert optimizer.max_skipped_spikes == 5
        assert int(optimizer.iterations) > 0

    def test_a_damaged_one_is_refused(self):
        store, variables, _, _ = self.stopped(11)
        manifest = json.loads(store["manifest"].tobytes())
        [entry] = [e for e in manifest["entries"] if e["role"] == "spike_gate"]
        entry["shape"] = [2]
        store["spike_gate"] = np.zeros(2)
        text = json.dumps(manifest).encode()
        store["manifest"] = np.frombuffer(text, "uint8")
        optimizer = AdamaxClipped(**self.CONFIG)
        optimizer.build(variables)
        with pytest.raises(
            ValueError,
            match="spike_gate does not hold is_armed, skips_in_row, spike_ste",
        ):
            optimizer.load_own_variables(store)
        assert int(optimizer.iterations) == 0

    @pytest.mark.parametrize("is_built", [True, False])
    def test_a_state_with_it_loads_without_a_gate_and_back(self, is_built):
        store, variables, oracle, _ = self.stopped(12)
        assert oracle.spike_steps == 3
        off = AdamaxClipped(clip_epsilon=0.5)
        if is_built:
            off.build(variables)
        off.load_own_variables(store)
        off.build(variables)
        assert off.spike_threshold is None
        assert off.spike_steps() == 0
        assert int(off.iterations) == oracle.iterations
        store = {}
        off.save_own_variables(store)
        assert "spike_gate" not in store
        on = AdamaxClipped(**self.CONFIG)
        if is_built:
            on.build(variables)
            on._spike_gate.state.assign([1, 2, 3])
        on.load_own_variables(store)
        on.build(variables)
        assert gate_of(on) == [0, 0, 0]
        assert on.spike_threshold == 0.25
        assert int(on.iterations) == oracle.iterations

    def test_a_model_is_saved(self, tmp_path):
        values, gradients = start()
        optimizer = AdamaxClipped(**self.CONFIG)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(optimizer, keras.losses.MeanSquaredError())
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        optimizer.max_skipped_spikes = 9
        optimizer._spike_gate.state.assign([1, 1, 6])
        for name in ("model.keras", "model.h5"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.save(tmp_path / name)
            other = keras.saving.load_model(tmp_path / name).optimizer
            other.build(model.trainable_variables)
            assert gate_of(other) == [1, 1, 6]
            assert other.get_config() == optimizer.get_config()
