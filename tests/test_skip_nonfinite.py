"""`skip_nonfinite`: a bad step changes `skipped_steps` and nothing else."""

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped
from tests import support
from tests.gradients import numpy
from tests.support import BACKEND

SHAPES = ((3, 2), (), (3, 0), (2,))
STEPS = 6
BAD_STEPS = (0, 3, 4)
# What a skipped step must leave alone, all of it at once.
EVERYTHING = {
    "clip_epsilon": 0.5,
    "weight_decay": 0.25,
    "use_ema": True,
    "ema_momentum": 0.5,
    "ema_overwrite_frequency": 2,
    "global_clipnorm": 5.0,
    "bias_correction": True,
    "learning_rate": 0.125,
}
CONFIGS = {
    "defaults": {},
    "everything": EVERYTHING,
    "loss scale": {
        "loss_scale_factor": 4.0,
        "clipnorm": 3.0,
        "clip_epsilon": 0.5,
    },
}


def beta_1():
    return keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.75])


def beta_1_function(step):
    return 0.5 if step <= 1 else 0.75


def spoil(gradients, value, weight=0):
    """The gradients of a step, one element of which is `value`."""
    gradients = list(gradients)
    g = gradients[weight]
    if isinstance(g, tuple):
        indices, values = g
        values = values.copy()
        values[-1, 0] = value
        gradients[weight] = (indices, values)
    else:
        g = g.copy()
        g[(-1,) * g.ndim] = value
        gradients[weight] = g
    return gradients


def start(seed=0, shapes=SHAPES, steps=STEPS):
    rng = np.random.default_rng(seed)
    return (
        support.values_of(rng, shapes),
        support.gradients_of(rng, shapes, steps),
    )


def check(loop, optimizer, variables, oracle, gradients, bad_steps=BAD_STEPS):
    """Steps, bad ones before good ones, each compared with the oracle."""
    step = support.make_step(loop, optimizer, variables)
    bad_values = (np.nan, np.inf, -np.inf)
    skipped = 0
    for i, g in enumerate(gradients):
        if i in bad_steps:
            before = support.state_of(optimizer, variables)
            step(spoil(g, bad_values[skipped % 3]))
            skipped += 1
            after = support.state_of(optimizer, variables)
            support.assert_same(before, after, but=["/skipped_steps"])
            assert optimizer.skipped_steps() == skipped
        step(g)
        oracle.step(g)
        support.assert_follows(oracle, optimizer, variables)
    assert optimizer.skipped_steps() == skipped == len(bad_steps)
    assert step.traces <= 1


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_loops(loop, config):
    config = CONFIGS[config]
    values, gradients = start()
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(skip_nonfinite=True, beta_1=beta_1(), **config)
    oracle = support.oracle_of(values, beta_1=beta_1_function, **config)
    check(loop, optimizer, variables, oracle, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_sparse_loops(loop, config):
    config = CONFIGS[config]
    rng = np.random.default_rng(1)
    values = support.values_of(rng, [(5, 2), (3,)])
    table = support.sparse_gradients_of(rng, 5, 2, STEPS)
    # One shape, so that there is one trace.
    table = [(i[:5], v[:5]) for i, v in table]
    dense = support.gradients_of(rng, [(3,)], STEPS)
    gradients = [[t, *d] for t, d in zip(table, dense, strict=True)]
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(skip_nonfinite=True, **config)
    oracle = support.oracle_of(values, **config)
    check(loop, optimizer, variables, oracle, gradients)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_rows_that_overflow_when_summed(loop):
    """The decision is made on what the rule is given: the sum of rows."""
    values, _ = start(shapes=[(4, 2)])
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(skip_nonfinite=True)
    step = support.make_step(loop, optimizer, variables)
    before = support.state_of(optimizer, variables)
    indices = np.array([1, 2, 1], "int32")
    large = np.full((3, 2), 3e38, "float32")
    step([(indices, large)])
    after = support.state_of(optimizer, variables)
    support.assert_same(before, after, but=["/skipped_steps"])
    # Each of them alone is finite, and clipped.
    step([(np.array([1, 2, 3], "int32"), large)])
    assert optimizer.skipped_steps() == 1
    assert optimizer.clip_rate() == 1.0


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_accumulation_skips_micro_batches_alone(loop):
    config = EVERYTHING | {"gradient_accumulation_steps": 3}
    values, gradients = start(steps=7)
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(skip_nonfinite=True, **config)
    oracle = support.oracle_of(values, **config)
    # First, in the middle and at the last micro-batch of an update.
    check(loop, optimizer, variables, oracle, gradients, bad_steps=(0, 4, 5))
    assert int(numpy(optimizer.iterations)) == 2


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_absent_gradients(loop):
    values, gradients = start()
    gradients = [[g[0], None, g[2], None] for g in gradients]
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(skip_nonfinite=True, **EVERYTHING)
    oracle = support.oracle_of(values, **EVERYTHING)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        check(loop, optimizer, variables, oracle, gradients)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_constraints_and_overwritten_variables_stay(loop):
    values, gradients = start(shapes=[(3,), (2,)])
    variables = [
        keras.Variable(values[0], name="constrained"),
        keras.Variable(values[1], name="overwritten"),
    ]
    # It would change the weight in any step that is not skipped.
    variables[0].constraint = keras.constraints.MaxNorm(1e-3)
    variables[1].overwrite_with_gradient = True
    optimizer = AdamaxClipped(skip_nonfinite=True)
    step = support.make_step(loop, optimizer, variables)
    for weight in (0, 1):
        before = support.state_of(optimizer, variables)
        step(spoil(gradients[0], np.nan, weight))
        after = support.state_of(optimizer, variables)
        support.assert_same(before, after, but=["/skipped_steps"])
    step(gradients[0])
    assert optimizer.skipped_steps() == 2
    assert np.linalg.norm(numpy(variables[0])) <= 1.001e-3
    np.testing.assert_array_equal(numpy(variables[1]), gradients[0][1])


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_half_precision(loop):
    dtype = "float16"
    values, gradients = start()
    variables = support.make_variables(values, dtype=dtype)
    optimizer = AdamaxClipped(skip_nonfinite=True)
    oracle = support.oracle_of([numpy(v) for v in variables], dtypes=dtype)
    check(loop, optimizer, variables, oracle, gradients)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_what_overflows_only_after_unscaling(loop):
    values, gradients = start(shapes=[(3,)])
    variables = support.make_variables(values)
    optimizer = AdamaxClipped(skip_nonfinite=True, loss_scale_factor=2.0**-10)
    step = support.make_step(loop, optimizer, variables)
    before = support.state_of(optimizer, variables)
    step([np.full(3, 1e37, "float32")])
    after = support.state_of(optimizer, variables)
    support.assert_same(before, after, but=["/skipped_steps"])


@pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
def test_fit(mode):
    values, gradients = start()
    config = EVERYTHING | {"gradient_accumulation_steps": 2}
    optimizer = AdamaxClipped(skip_nonfinite=True, **config)
    model = support.start_fit(values, optimizer, mode)
    oracle = support.oracle_of(values, skip_nonfinite=True, **config)
    spoilt = []
    for i, g in enumerate(gradients):
        if i in BAD_STEPS:
            spoilt.append(spoil(g, (np.nan, np.inf, -np.inf)[i % 3], i % 2))
        spoilt.append(g)
    support.run_oracle(oracle, spoilt)
    assert oracle.skipped_steps == len(BAD_STEPS)
    support.fit(model, spoilt)
    assert optimizer.skipped_steps() == len(BAD_STEPS)
    support.assert_follows(oracle, optimizer, model.weights, averages=True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="dense elsewhere")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_of_an_embedding(jit_compile):
    rng = np.random.default_rng(4)
    optimizer = AdamaxClipped(skip_nonfinite=True)
    model = keras.Sequential(
        [keras.layers.Embedding(6, 2), keras.layers.Flatten()]
    )
    model.build((None, 3))

    def loss(y_true, y_pred):
        # The gradient is the target.
        return keras.ops.sum(y_true * y_pred, axis=-1)

    model.compile(optimizer, loss, jit_compile=jit_compile)
    value = numpy(model.weights[0])
    x = rng.integers(0, 6, (5, 3))
    x[:, 2] = x[:, 0]
    y = np.stack([support.gradients_of(rng, [(6,)], 1)[0][0] for _ in x])
    y[2, 0] = np.nan
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    oracle = support.oracle_of([value], skip_nonfinite=True)
    for i, g in zip(x, y, strict=True):
        oracle.step([(i, g.reshape(3, 2))])
    assert optimizer.skipped_steps() == oracle.skipped_steps == 1
    support.assert_follows(oracle, optimizer, model.weights)


@pytest.mark.parametrize(
    "loop", [x for x in support.LOOPS if (BACKEND, x) != ("jax", "eager")]
)
def test_loss_scale_optimizer_withholds_on_its_own(loop):
    """What it withholds never reaches us, and is not ours to count."""
    values, gradients = start()
    variables = support.make_variables(values)
    inner = AdamaxClipped(skip_nonfinite=True)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    step = support.make_step(loop, optimizer, variables)
    oracle = support.oracle_of(values)
    for g in gradients[:2]:
        step([x * np.float32(4.0) for x in g])
        oracle.step(g)
    before = support.state_of(inner, variables)
    step(spoil(gradients[2], np.nan))
    support.assert_same(before, support.state_of(inner, variables))
    step([x * np.float32(2.0) for x in gradients[3]])
    oracle.step(gradients[3])
    assert inner.skipped_steps() == 0
    support.assert_follows(oracle, inner, variables)


@pytest.mark.parametrize("loop", support.EVERY_LOOP)
def test_multi_optimizer(loop):
    """Each of its optimizers decides on what it is given."""
    values, gradients = start(shapes=[(3, 2), (2,)])
    variables = support.make_variables(values)
    first = AdamaxClipped(skip_nonfinite=True)
    second = AdamaxClipped(skip_nonfinite=True)
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(second, {"weight_0": first})
    )
    step = support.make_step(loop, optimizer, variables)
    oracles = [support.oracle_of([v], skip_nonfinite=True) for v in values]
    for i, g in enumerate(gradients):
        if i in BAD_STEPS:
            g = spoil(g, np.nan, weight=1)
        step(g)
        oracles[0].step(g[:1])
        oracles[1].step(g[1:])
    support.assert_follows(oracles[0], first, variables[:1])
    support.assert_follows(oracles[1], second, variables[1:])
    assert (first.skipped_steps(), second.skipped_steps()) == (0, 3)


class TestWithoutIt:
    """As in Keras, NaN spreads; an Inf is an oversized gradient."""

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_nan_spreads_in_loops(self, loop):
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped()
        step = support.make_step(loop, optimizer, variables)
        step(gradients[0])
        step(spoil(gradients[1], np.nan))
        for _ in range(2):
            expected = np.zeros((3, 2), bool)
            expected[-1, -1] = True
            assert (np.isnan(numpy(variables[0])) == expected).all()
            for v in variables[1:]:
                assert np.isfinite(numpy(v)).all()
            # It stays NaN.
            step(gradients[2])
        assert optimizer.skipped_steps() == 0

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_infinity_is_clipped_in_loops(self, loop, sign):
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped()
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values)
        for i, g in enumerate(gradients):
            g = spoil(g, sign * np.inf) if i in BAD_STEPS else g
            step(g)
            oracle.step(g)
            support.assert_follows(oracle, optimizer, variables)
        assert all(np.isfinite(numpy(v)).all() for v in variables)
        assert optimizer.skipped_steps() == 0

    @pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
    def test_both_in_fit(self, mode):
        values, gradients = start()
        optimizer = AdamaxClipped()
        model = support.start_fit(values, optimizer, mode)
        gradients[1] = spoil(gradients[1], np.inf)
        support.fit(model, gradients[:3])
        oracle = support.run_oracle(support.oracle_of(values), gradients[:3])
        support.assert_follows(oracle, optimizer, model.weights)
        gradients[3] = spoil(gradients[3], np.nan)
        support.fit(model, gradients[3:])
        assert np.isnan(numpy(model.weights[0])).sum() == 1
        for v in model.weights[1:]:
            assert np.isfinite(numpy(v)).all()
        assert optimizer.skipped_steps() == 0
