"""Everything that Keras does to an optimizer, against the oracle."""

import contextlib
import gc

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped
from tests import support
from tests.gradients import numpy, to_backend
from tests.support import BACKEND

STEPS = 7
FIT = support.FIT_MODES[support.DEFAULT_FIT]

CONFIGS = {
    "defaults": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "ema": {
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 3,
    },
    "decay": {"weight_decay": 0.25, "learning_rate": 0.125},
    "clipnorm": {"clipnorm": 3.0},
    "clipvalue": {"clipvalue": 1.5},
    "global_clipnorm": {"global_clipnorm": 5.0},
    "loss scale": {"loss_scale_factor": 8.0},
    "all at once": {
        "gradient_accumulation_steps": 3,
        "global_clipnorm": 5.0,
        "weight_decay": 0.25,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "learning_rate": 0.125,
    },
}
SPARSE_CONFIGS = {
    name: CONFIGS[name]
    for name in (
        "defaults",
        "accumulation",
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "loss scale",
    )
} | {"decay and ema": CONFIGS["decay"] | CONFIGS["ema"]}
# With them ours is Keras's Adamax.
PLAIN_ADAMAX = {
    "clip_gradients": False,
    "bias_correction": True,
    "epsilon": 1e-7,
}
BOTH = pytest.mark.parametrize(
    "optimizer_class", [keras.optimizers.Adamax, AdamaxClipped]
)


def start(seed=0, shapes=support.SHAPES, steps=STEPS):
    rng = np.random.default_rng(seed)
    return (
        support.values_of(rng, shapes),
        support.gradients_of(rng, shapes, steps),
    )


@pytest.mark.slow
class TestLoops:
    @pytest.mark.parametrize("config", CONFIGS)
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_dense(self, loop, config):
        config = CONFIGS[config]
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(clip_epsilon=0.5, **config)
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values, clip_epsilon=0.5, **config)
        for g in gradients:
            step(g)
            oracle.step(g)
            support.assert_follows(oracle, optimizer, variables)
        assert 0 < oracle.clip_rate() < 1

    @pytest.mark.parametrize("config", SPARSE_CONFIGS)
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_sparse(self, loop, config):
        config = SPARSE_CONFIGS[config]
        rng = np.random.default_rng(1)
        values = support.values_of(rng, [(5, 2), (3,)])
        table = support.sparse_gradients_of(rng, 5, 2, 6)
        dense = support.gradients_of(rng, [(3,)], 6)
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(clip_epsilon=0.5, **config)
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values, clip_epsilon=0.5, **config)
        for t, d in zip(table, dense, strict=True):
            step([t, *d])
            oracle.step([t, *d])
            support.assert_follows(oracle, optimizer, variables)
        assert 0 < oracle.clip_rate() < 1

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_weight_decay_spares_the_excluded(self, loop):
        values, gradients = start(shapes=[(3,), (3,), (3,)])
        config = {"weight_decay": 0.5, "learning_rate": 0.25}
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**config)
        optimizer.exclude_from_weight_decay(
            var_list=[variables[0]], var_names=["t_2"]
        )
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(
            values, exclude_from_weight_decay=[0, 2], **config
        )
        for g in gradients:
            step(g)
        support.run_oracle(oracle, gradients)
        support.assert_follows(oracle, optimizer, variables)

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_weight_decay_with_all_excluded(self, loop):
        values, gradients = start(shapes=[(3,)])
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["weight"])
        step = support.make_step(loop, optimizer, variables)
        for g in gradients:
            step(g)
        oracle = support.run_oracle(support.oracle_of(values), gradients)
        support.assert_follows(oracle, optimizer, variables)

    @pytest.mark.parametrize("config", ["accumulation", "clipnorm"])
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_variables_of_size_zero(self, loop, config):
        shapes = [(0,), (0, 3), (3, 0), (2, 0, 3), (2,)]
        values, gradients = start(shapes=shapes, steps=4)
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(skip_nonfinite=True, **CONFIGS[config])
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values, **CONFIGS[config])
        for g in gradients:
            step(g)
        support.run_oracle(oracle, gradients)
        support.assert_follows(oracle, optimizer, variables)
        assert np.isnan(list(optimizer.clip_rates().values())[:4]).all()

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_traces_once_and_keeps_dtypes(self, loop):
        values, gradients = start(steps=3)
        variables = [
            keras.Variable(value, dtype=dtype, name="w")
            for value, dtype in zip(
                values, ["float32", "float16", "bfloat16"], strict=True
            )
        ]
        beta_1 = keras.optimizers.schedules.ExponentialDecay(0.9, 10, 0.5)
        optimizer = AdamaxClipped(
            beta_1=beta_1, bias_correction=True, weight_decay=0.1, use_ema=True
        )
        step = support.make_step(loop, optimizer, variables)
        for g in gradients:
            optimizer.clip_multiplier = 1.0 + np.abs(g[1])
            step(g)
        assert step.traces == (loop in ("graph", "jit", "stateless"))
        assert [v.dtype for v in variables] == [
            "float32",
            "float16",
            "bfloat16",
        ]
        state = (*optimizer._momentums, *optimizer._norms)
        assert {v.dtype for v in state} == {"float32"}


@pytest.mark.parametrize("config", ["defaults", "ema", "all at once"])
@pytest.mark.parametrize("mode", support.EVERY_FIT_MODE)
def test_fit(mode, config):
    config = CONFIGS[config]
    values, gradients = start()
    optimizer = AdamaxClipped(clip_epsilon=0.5, **config)
    model = support.start_fit(values, optimizer, mode)
    support.fit(model, gradients)
    oracle = support.oracle_of(values, clip_epsilon=0.5, **config)
    support.run_oracle(oracle, gradients)
    support.assert_follows(
        oracle, optimizer, model.weights, averages=optimizer.use_ema
    )
    assert 0 < optimizer.clip_rate() < 1


def test_fit_scales_and_unscales_the_loss():
    values, gradients = start()
    optimizer = AdamaxClipped(loss_scale_factor=256.0)
    model = support.start_fit(values, optimizer)
    support.fit(model, gradients)
    oracle = support.run_oracle(support.oracle_of(values), gradients)
    support.assert_follows(oracle, optimizer, model.weights)


def test_train_on_batch():
    values, gradients = start()
    optimizer = AdamaxClipped()
    model = support.start_fit(values, optimizer)
    for step in gradients:
        x = np.concatenate([np.ravel(g) for g in step])[None]
        model.train_on_batch(x, np.zeros(1, "float32"))
    oracle = support.run_oracle(support.oracle_of(values), gradients)
    support.assert_follows(oracle, optimizer, model.weights)


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
# Dynamo and Inductor warn about themselves.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"spike_threshold": 0.9, "skip_nonfinite": True},
        {"track_gradient_norms": True, "skip_nonfinite": True},
        {"track_gradient_norms": True},
    ],
    ids=str,
)
def test_torch_compile(config):
    """Keras's own Adamax works with `jit_compile=True`: so must ours."""
    values, gradients = start()
    config = dict(config)
    optimizer = AdamaxClipped(**config)
    model = support.start_fit(values, optimizer, jit_compile=True)
    support.fit(model, gradients)
    measures = config.pop("track_gradient_norms", False)
    oracle = support.run_oracle(support.oracle_of(values, **config), gradients)
    support.assert_follows(oracle, optimizer, model.weights)
    assert optimizer.spike_steps() == oracle.spike_steps
    if measures:
        norm = np.sqrt(np.mean([np.square(g[0]).sum() for g in gradients]))
        [found, *_] = optimizer.gradient_statistics().gradient_norms().values()
        assert found == pytest.approx(norm, rel=1e-5)


class EmbeddingModel(keras.Model):
    """The gradient of row `i` is the second input where the first is `i`."""

    def __init__(self, table):
        super().__init__()
        self.embedding = keras.layers.Embedding(*table.shape)
        self.embedding.build()
        self.embedding.embeddings.assign(table)

    def call(self, inputs):
        indices, values = inputs
        return keras.ops.sum(self.embedding(indices) * values, axis=(1, 2))


@pytest.mark.parametrize(
    "config",
    [
        "defaults",
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "loss scale",
        "all at once",
    ],
)
@pytest.mark.parametrize("mode", support.COMPILED_FIT)
def test_fit_of_an_embedding(mode, config):
    """Sparse on TensorFlow, where repeated indices must be summed."""
    if mode == "jit" and config not in ("defaults", "all at once"):
        pytest.skip("The loops cover it")
    config = dict(CONFIGS[config])
    rng = np.random.default_rng(2)
    table = support.values_of(rng, [(6, 2)])[0]
    indices = rng.integers(0, 6, (6, 1, 5)).astype("int32")
    indices[..., -1] = indices[..., 0]
    values = np.stack(
        [support.gradients_of(rng, [(1, 5, 2)], 1)[0][0] for _ in range(6)]
    )
    optimizer = AdamaxClipped(clip_epsilon=0.5, **config)
    model = EmbeddingModel(table)
    model.compile(optimizer, support.output_as_loss, **support.FIT_MODES[mode])
    x = (indices.reshape(6, 5), values.reshape(6, 5, 2))
    model.fit(x, np.zeros(6), batch_size=1, shuffle=False, verbose=0)

    # The loss is scaled and unscaled.
    config.pop("loss_scale_factor", None)
    oracle = support.oracle_of([table], clip_epsilon=0.5, **config)
    for i, v in zip(*x, strict=True):
        if BACKEND != "tensorflow":
            dense = np.zeros_like(table)
            np.add.at(dense, i, v)
            oracle.step([dense])
        else:
            oracle.step([(i, v)])
    support.assert_follows(
        oracle, optimizer, model.weights, averages=optimizer.use_ema
    )


class TestDtypes:
    @pytest.mark.parametrize("epsilon", [0.0, 1e-8])
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_half_precision_is_rounded_once(self, loop, dtype, epsilon):
        values, gradients = start(shapes=[(4, 3), (4,)])
        gradients = [[g, np.zeros(4, "float32")] for g, _ in gradients]
        variables = support.make_variables(values, dtype=dtype)
        values = [numpy(v) for v in variables]
        config = {"epsilon": epsilon, "learning_rate": 0.125}
        optimizer = AdamaxClipped(**config)
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values, dtypes=dtype, **config)
        for g in gradients:
            # So that its bound is that of one rounding.
            oracle.set_weights([numpy(v) for v in variables])
            step(g)
            oracle.step(g)
            support.assert_follows(oracle, optimizer, variables)
        # Zero gradient, zero state, maybe zero epsilon: no 0/0.
        np.testing.assert_array_equal(numpy(variables[1]), values[1])

    @pytest.mark.parametrize(
        "policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
    )
    @pytest.mark.parametrize("mode", support.COMPILED_FIT)
    def test_policies_in_fit(self, mode, policy):
        values, gradients = start(shapes=[(4, 3), (4,)])
        gradients = [[g, np.zeros(4, "float32")] for g, _ in gradients]
        optimizer = AdamaxClipped(epsilon=0.0, learning_rate=0.125)
        model = support.start_fit(values, optimizer, mode, dtype=policy)
        values = [numpy(v) for v in model.weights]
        dtype = "float32" if policy.startswith("mixed") else policy
        assert {v.dtype for v in model.weights} == {dtype}
        support.fit(model, gradients)
        oracle = support.oracle_of(
            values, epsilon=0.0, learning_rate=0.125, dtypes=dtype
        )
        support.run_oracle(oracle, gradients)
        support.assert_follows(oracle, optimizer, model.weights)
        np.testing.assert_array_equal(numpy(model.weights[1]), values[1])
        assert {v.dtype for v in model.weights} == {dtype}

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_float64(self, loop):
        with enable_float64():
            values, gradients = start(shapes=[(4, 3)])
            values = [v.astype("float64") + 1e-12 for v in values]
            gradients = [[g.astype("float64") / 3] for (g,) in gradients]
            variables = support.make_variables(values, dtype="float64")
            optimizer = AdamaxClipped()
            step = support.make_step(loop, optimizer, variables)
            oracle = support.oracle_of(values, dtypes="float64")
            for g in gradients:
                step(g)
                oracle.step(g)
                support.assert_follows(oracle, optimizer, variables)
            assert {v.dtype for v in optimizer._norms} == {"float64"}


def enable_float64():
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


class LossScale:
    """What Keras's LossScaleOptimizer does to its scale."""

    def __init__(self, initial_scale, dynamic_growth_steps):
        self.scale = initial_scale
        self.growth_steps = dynamic_growth_steps
        self.finite_steps = 0

    def update(self, is_finite):
        if not is_finite:
            self.finite_steps = 0
            self.scale *= 0.5
            return
        self.finite_steps += 1
        if self.finite_steps == self.growth_steps:
            self.finite_steps = 0
            self.scale *= 2.0


class TestLossScaleOptimizer:
    # Eagerly on JAX Keras's own optimizers fail in it, see below.
    @pytest.mark.parametrize(
        "loop",
        [x for x in support.LOOPS if (BACKEND, x) != ("jax", "eager")],
    )
    def test_withheld_steps_change_nothing(self, loop):
        values, gradients = start(shapes=[(3, 2), (2,)])
        variables = support.make_variables(values)
        inner = AdamaxClipped()
        optimizer = keras.optimizers.LossScaleOptimizer(
            inner, initial_scale=8.0, dynamic_growth_steps=3
        )
        scale = LossScale(8.0, 3)
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values)
        for i, g in enumerate(gradients):
            if i == 3:
                before = support.state_of(inner, variables)
                bad = [g[0].copy(), g[1]]
                bad[0][1, 1] = np.inf
                step(bad)
                scale.update(is_finite=False)
                support.assert_same(before, support.state_of(inner, variables))
            step([x * np.float32(scale.scale) for x in g])
            scale.update(is_finite=True)
            oracle.step(g)
            support.assert_follows(oracle, inner, variables)
        assert float(numpy(optimizer.dynamic_scale)) == scale.scale
        assert inner.skipped_steps() == 0

    @pytest.mark.skipif(BACKEND != "jax", reason="works on other backends")
    @pytest.mark.xfail(
        strict=True, reason="LossScaleOptimizer.apply fails eagerly on JAX"
    )
    @BOTH
    def test_eager_on_jax(self, optimizer_class):
        values, gradients = start(shapes=[(3, 2)])
        variables = support.make_variables(values)
        inner = optimizer_class()
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
        support.make_step("eager", optimizer, variables)(gradients[0])

    @pytest.mark.parametrize("mode", support.COMPILED_FIT)
    def test_automatically_in_fit(self, mode):
        values, gradients = start(shapes=[(3, 2), (2,)], steps=12)
        inner = AdamaxClipped(gradient_accumulation_steps=2)
        model = support.start_fit(
            values, inner, mode, dtype="mixed_float16", auto_scale_loss=True
        )
        assert model.optimizer.inner_optimizer is inner
        support.fit(model, gradients)
        scale = LossScale(2.0**15, 2000)
        oracle = support.oracle_of(values, gradient_accumulation_steps=2)
        withheld = 0
        for g in gradients:
            largest = max(np.abs(x).max() for x in g) * scale.scale
            is_finite = largest <= np.finfo("float16").max
            scale.update(is_finite)
            withheld += not is_finite
            if is_finite:
                oracle.step(g)
        assert 0 < withheld < 8
        support.assert_follows(oracle, inner, model.weights)
        assert inner.skipped_steps() == 0


class TestMultiOptimizer:
    def assert_follows_both(self, values, gradients, first, second, variables):
        oracle = support.oracle_of(values[:1], clip_multiplier=1.5)
        support.run_oracle(oracle, [g[:1] for g in gradients])
        support.assert_follows(oracle, first, variables[:1])
        if isinstance(second, AdamaxClipped):
            oracle = support.oracle_of(values[1:], learning_rate=0.25)
            support.run_oracle(oracle, [g[1:] for g in gradients])
            support.assert_follows(oracle, second, variables[1:])
            return
        for i in (1, 2):
            expected = values[i] - 0.25 * sum(g[i] for g in gradients)
            np.testing.assert_allclose(
                numpy(variables[i]), expected, rtol=1e-5, atol=1e-5
            )

    def wrap(self, first, second):
        return keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(second, {".*weight_0": first})
        )

    @pytest.mark.parametrize(
        "second_class", [AdamaxClipped, keras.optimizers.SGD]
    )
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_loops(self, loop, second_class):
        values, gradients = start()
        variables = support.make_variables(values)
        first = AdamaxClipped(clip_multiplier=1.5)
        second = second_class(learning_rate=0.25)
        step = support.make_step(loop, self.wrap(first, second), variables)
        for g in gradients:
            step(g)
        self.assert_follows_both(values, gradients, first, second, variables)

    @pytest.mark.parametrize(
        "second_class", [AdamaxClipped, keras.optimizers.SGD]
    )
    @pytest.mark.parametrize("mode", support.COMPILED_FIT)
    def test_fit(self, mode, second_class):
        values, gradients = start()
        first = AdamaxClipped(clip_multiplier=1.5)
        second = second_class(learning_rate=0.25)
        optimizer = self.wrap(first, second)
        model = support.start_fit(values, optimizer, mode)
        support.fit(model, gradients)
        self.assert_follows_both(
            values, gradients, first, second, model.weights
        )


class TestAbsentGradients:
    @pytest.mark.parametrize(
        "config", ["defaults", "accumulation", "all at once"]
    )
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_a_variable_without_gradient_stays(self, loop, config):
        config = CONFIGS[config]
        values, gradients = start(shapes=[(3, 2), (2,)])
        gradients = [[g, None] for g, _ in gradients]
        variables = support.make_variables(values)
        optimizer = AdamaxClipped(**config)
        step = support.make_step(loop, optimizer, variables)
        oracle = support.oracle_of(values, **config)
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            for g in gradients:
                step(g)
        support.run_oracle(oracle, gradients)
        support.assert_follows(oracle, optimizer, variables)
        assert list(optimizer.clip_statistics().counted.values())[1] == 0

    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_none_at_all_is_an_error(self, loop):
        values, _ = start(shapes=[(3, 2), (2,)])
        for skip_nonfinite in (False, True):
            variables = support.make_variables(values)
            optimizer = AdamaxClipped(skip_nonfinite=skip_nonfinite)
            step = support.make_step(loop, optimizer, variables)
            before = support.state_of(optimizer, variables)
            with pytest.raises(ValueError, match="No gradients provided"):
                step([None, None])
            support.assert_same(before, support.state_of(optimizer, variables))

    @pytest.mark.parametrize("loop", support.LOOPS[:1])
    def test_a_wrong_number_is_an_error(self, loop):
        values, gradients = start(shapes=[(3, 2), (2,)])
        variables = support.make_variables(values)
        optimizer = AdamaxClipped()
        optimizer.build(variables)
        tensors = [
            to_backend(g, v)
            for g, v in zip(gradients[0], variables, strict=True)
        ]
        before = support.state_of(optimizer, variables)
        for wrong in (tensors[:1], [*tensors, tensors[0]]):
            with pytest.raises(ValueError, match=r"Received: (1|3) gradient"):
                optimizer.apply(wrong, variables)
            with pytest.raises(ValueError, match=r"Received: (1|3) gradient"):
                optimizer.apply(wrong)
        optimizer.apply([])
        support.assert_same(before, support.state_of(optimizer, variables))

    def test_fit_with_an_unused_weight(self):
        values, gradients = start(shapes=[(3, 2), (2,)])
        optimizer = AdamaxClipped()
        model = support.start_fit(values, optimizer, unused=[1])
        if BACKEND == "jax":
            # JAX gives a gradient of zeros.
            support.fit(model, gradients)
            gradients = [[g, np.zeros(2, "float32")] for g, _ in gradients]
        else:
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                support.fit(model, gradients)
            gradients = [[g, None] for g, _ in gradients]
        oracle = support.run_oracle(support.oracle_of(values), gradients)
        support.assert_follows(oracle, optimizer, model.weights)
        np.testing.assert_array_equal(numpy(model.weights[1]), values[1])


def dense_model(optimizer, **kwargs):
    model = keras.Sequential(
        [
            keras.layers.Dense(4, activation="tanh", name="first"),
            keras.layers.Dense(2, name="second"),
        ],
        name="model",
    )
    model.build((None, 3))
    model.compile(optimizer, "mse", **(FIT | kwargs))
    return model


def fit_dense(model, epochs=2):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(8, 3)).astype("float32")
    y = np.stack([x.sum(axis=1), x[:, 0]], axis=1)
    return model.fit(
        x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0
    )


class TestRecompiling:
    def test_frozen_layers_stay(self):
        optimizer = AdamaxClipped(weight_decay=0.1)
        model = dense_model(optimizer)
        model.layers[0].trainable = False
        model.compile(optimizer, "mse", **FIT)
        before = [numpy(v) for v in model.weights]
        fit_dense(model)
        after = [numpy(v) for v in model.weights]
        for i in range(2):
            np.testing.assert_array_equal(before[i], after[i])
            assert (before[i + 2] != after[i + 2]).any()
        rates = optimizer.clip_rates()
        assert [path.split("/")[-2:] for path in rates] == [
            ["second", "kernel"],
            ["second", "bias"],
        ]
        assert list(optimizer.clip_statistics().counted.values()) == [32, 8]

    @pytest.mark.parametrize("mode", support.COMPILED_FIT)
    def test_the_same_optimizer_goes_on(self, mode):
        values, gradients = start()
        optimizer = AdamaxClipped()
        model = support.start_fit(values, optimizer, mode)
        support.fit(model, gradients[:3])
        model.compile(
            optimizer,
            support.output_as_loss,
            auto_scale_loss=False,
            **support.FIT_MODES[mode],
        )
        support.fit(model, gradients[3:])
        oracle = support.run_oracle(support.oracle_of(values), gradients)
        support.assert_follows(oracle, optimizer, model.weights)

    @pytest.mark.xfail(
        strict=True,
        raises=ValueError,
        reason="Keras builds an optimizer once: it does not know the variables "
        "of layers that were frozen then",
    )
    @BOTH
    def test_the_same_optimizer_after_unfreezing(self, optimizer_class):
        optimizer = optimizer_class()
        model = dense_model(optimizer)
        model.layers[0].trainable = False
        model.compile(optimizer, "mse", **FIT)
        fit_dense(model)
        model.layers[0].trainable = True
        model.compile(optimizer, "mse", **FIT)
        fit_dense(model)

    @pytest.mark.skipif(BACKEND != "jax", reason="works elsewhere")
    @pytest.mark.xfail(
        strict=True,
        raises=TypeError,
        reason="Keras on JAX asks for the averages at the end of `fit` before "
        "it has given the optimizer its variables back",
    )
    @BOTH
    def test_a_second_fit_with_averages(self, optimizer_class):
        model = dense_model(optimizer_class(use_ema=True))
        fit_dense(model)
        fit_dense(model)

    def test_a_new_optimizer_after_unfreezing(self):
        model = dense_model(AdamaxClipped())
        model.layers[0].trainable = False
        model.compile(AdamaxClipped(), "mse", **FIT)
        fit_dense(model)
        model.layers[0].trainable = True
        optimizer = AdamaxClipped()
        model.compile(optimizer, "mse", **FIT)
        before = numpy(model.weights[0])
        fit_dense(model)
        assert (numpy(model.weights[0]) != before).any()
        assert len(optimizer.clip_rates()) == 4


def test_a_model_without_trainable_weights():
    optimizer = AdamaxClipped(weight_decay=0.1, use_ema=True)
    model = dense_model(optimizer)
    model.trainable = False
    model.compile(optimizer, "mse", **FIT)
    before = [numpy(v) for v in model.weights]
    if BACKEND == "jax":
        fit_dense(model)
    else:
        with pytest.warns(UserWarning, match="any trainable weights"):
            fit_dense(model)
    for value, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(value, numpy(variable))
    assert optimizer.clip_rates() == {}
    assert np.isnan(optimizer.clip_rate())


@pytest.mark.parametrize("mode", support.COMPILED_FIT)
def test_constraints(mode):
    values, gradients = start(shapes=[(3, 2)])
    values = [np.abs(v) for v in values]
    optimizer = AdamaxClipped(learning_rate=0.5)
    model = support.start_fit(
        values,
        optimizer,
        mode,
        constraints={0: keras.constraints.NonNeg()},
    )
    support.fit(model, gradients)
    oracle = support.oracle_of(values, learning_rate=0.5)
    was_active = False
    for g in gradients:
        oracle.step(g)
        was_active = was_active or (oracle.w[0] < 0).any()
        # 0 is exact, and what is next to it stays uncertain.
        oracle.w[0] = np.maximum(oracle.w[0], 0.0)
    assert was_active
    support.assert_follows(oracle, optimizer, model.weights)


class TestOverwriteWithGradient:
    @pytest.mark.parametrize(
        "config",
        [{}, {"gradient_accumulation_steps": 2}, {"use_ema": True}],
        ids=str,
    )
    @pytest.mark.parametrize("loop", support.EVERY_LOOP)
    def test_such_a_variable_becomes_its_gradient(self, loop, config):
        values, gradients = start(shapes=[(3, 2), (2,)], steps=4)
        gradients = [[g, np.abs(h)] for g, h in gradients]
        variables = support.make_variables(values)
        variables[1].overwrite_with_gradient = True
        optimizer = AdamaxClipped(**config)
        step = support.make_step(loop, optimizer, variables)
        for g in gradients:
            step(g)
        if "gradient_accumulation_steps" in config:
            expected = np.maximum(gradients[-1][1], gradients[-2][1])
        else:
            expected = gradients[-1][1]
        np.testing.assert_array_equal(numpy(variables[1]), expected)
        oracle = support.oracle_of(values[:1], **config)
        support.run_oracle(oracle, [g[:1] for g in gradients])
        support.assert_follows(oracle, optimizer, variables[:1])
        assert np.isnan(optimizer.clip_rates()["weight_1"])
        assert optimizer.clip_rate() == oracle.clip_rate()

    @pytest.mark.skipif(BACKEND == "torch", reason="works there")
    @pytest.mark.xfail(
        strict=True,
        reason="Keras keeps no average of such a variable, and stumbles over "
        "it when it overwrites the others",
    )
    @BOTH
    def test_with_ema_overwrite_frequency(self, optimizer_class):
        values, gradients = start(shapes=[(3, 2), (2,)])
        variables = support.make_variables(values)
        variables[1].overwrite_with_gradient = True
        optimizer = optimizer_class(use_ema=True, ema_overwrite_frequency=1)
        step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
        step(gradients[0])

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", support.COMPILED_FIT)
    def test_float8(self, mode):
        results = []
        for optimizer in (
            keras.optimizers.Adamax(learning_rate=0.125),
            AdamaxClipped(learning_rate=0.125, **PLAIN_ADAMAX),
        ):
            keras.utils.set_random_seed(0)
            model = dense_model(optimizer)
            for layer in model.layers:
                layer.quantize("float8")
            model.compile(optimizer, "mse", **support.FIT_MODES[mode])
            before = [numpy(v) for v in model.trainable_weights]
            fit_dense(model)
            results.append([numpy(v) for v in model.trainable_weights])
        overwritten = [
            getattr(v, "overwrite_with_gradient", False)
            for v in model.trainable_weights
        ]
        assert sum(overwritten) == 12
        for adamax, ours, first in zip(*results, before, strict=True):
            assert (ours != first).any()
            np.testing.assert_allclose(ours, adamax, rtol=1e-5, atol=1e-6)
        rates = np.array(list(optimizer.clip_rates().values()))
        assert (rates == 0).all()


class TestNames:
    def test_equal_paths_have_keys_of_their_own(self):
        class Twins(keras.Model):
            def __init__(self):
                super().__init__(name="twins")
                self.left = keras.layers.Dense(2, name="dense")
                self.right = keras.layers.Dense(2, name="dense")

            def call(self, x):
                return self.left(x) - 3 * self.right(x)

        optimizer = AdamaxClipped()
        model = Twins()
        model.compile(optimizer, "mse", **FIT)
        fit_dense(model)
        paths = [v.path for v in model.trainable_weights]
        assert len(set(paths)) == 2
        rates = optimizer.clip_rates()
        assert len(rates) == 4
        assert set(paths) < set(rates)
        assert list(optimizer.clip_statistics().counted.values()) == [
            4 * 6,
            4 * 2,
            4 * 6,
            4 * 2,
        ]

    def test_a_shared_layer_is_counted_once(self):
        layer = keras.layers.Dense(3, use_bias=False, name="shared")
        inputs = keras.Input((3,))
        outputs = layer(layer(inputs))
        model = keras.Model(inputs, keras.ops.sum(outputs, axis=1))
        optimizer = AdamaxClipped()
        model.compile(optimizer, "mse", **FIT)
        x = np.ones((4, 3), "float32")
        model.fit(x, np.zeros(4), batch_size=2, verbose=0)
        statistics = optimizer.clip_statistics()
        assert list(statistics.counted.values()) == [2 * 9]


class TestCustomLoops:
    def test_apply_gradients_returns_the_iterations(self):
        values, gradients = start()
        variables = support.make_variables(values)
        optimizer = AdamaxClipped()
        for i, step in enumerate(gradients):
            tensors = [
                to_backend(g, v) for g, v in zip(step, variables, strict=True)
            ]
            result = optimizer.apply_gradients(
                zip(tensors, variables, strict=True)
            )
            assert int(numpy(result)) == i + 1
        oracle = support.run_oracle(support.oracle_of(values), gradients)
        support.assert_follows(oracle, optimizer, variables)

    def test_apply_without_variables_needs_a_build(self):
        optimizer = AdamaxClipped()
        with pytest.raises(ValueError, match="must already be built"):
            optimizer.apply([keras.ops.ones(2)])

    @pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("config", ["defaults", "all at once"])
    def test_tape_on_raw_variables_inside_a_function(self, config, jit_compile):
        import tensorflow as tf

        config = CONFIGS[config]
        values, gradients = start(shapes=[(3, 2), (2,)])
        variables = [tf.Variable(v, name="raw") for v in values]
        optimizer = AdamaxClipped(**config)
        # Without a build: that happens in the first trace.
        oracle = support.oracle_of(values, **config)

        @tf.function(jit_compile=jit_compile)
        def step(gradients):
            with tf.GradientTape() as tape:
                loss = tf.add_n(
                    [
                        tf.reduce_sum(g * v)
                        for g, v in zip(gradients, variables, strict=True)
                    ]
                )
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

        for g in gradients:
            step([tf.constant(x) for x in g])
        support.run_oracle(oracle, gradients)
        support.assert_follows(oracle, optimizer, variables)
        assert list(optimizer.clip_rates()) == ["raw:0", "raw:0#2"]

    @pytest.mark.skipif(BACKEND != "torch", reason="torch")
    def test_loop_with_backward(self):
        values, gradients = start(shapes=[(3, 2), (2,)])
        variables = support.make_variables(values)
        optimizer = AdamaxClipped()
        for step in gradients:
            for v in variables:
                v.value.grad = None
            loss = sum(
                keras.ops.sum(to_backend(g, v) * v.value)
                for g, v in zip(step, variables, strict=True)
            )
            loss.backward(create_graph=False)
            optimizer.apply([v.value.grad for v in variables], variables)
        oracle = support.run_oracle(support.oracle_of(values), gradients)
        support.assert_follows(oracle, optimizer, variables)
        # Autograd did not follow the update: a graph would grow for ever.
        state = (*optimizer.variables, *variables)
        assert all(v.value.grad_fn is None for v in state)
        assert all(v.value.requires_grad for v in variables)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"bias_correction": True},
        {"clip_gradients": False},
        {"clip_multiplier": 1.0, "clip_epsilon": 0.1},
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_momentum": 0.5},
        {"global_clipnorm": 1.0},
        {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.1},
    ],
    ids=str,
)
def test_converges(config):
    """A contract that every configuration keeps: it minimizes a parabola."""
    values = [np.full((2, 2), 4.0, "float32"), np.float32(-1.0)]
    variables = support.make_variables(values)
    steps = 150 * config.get("gradient_accumulation_steps", 1)
    schedule = keras.optimizers.schedules.CosineDecay(0.3, steps)
    optimizer = AdamaxClipped(schedule, **({"beta_2": 0.9} | config))
    step = support.make_step(support.COMPILED_LOOP, optimizer, variables)
    for _ in range(steps):
        step([2 * (numpy(v) - 3.0) for v in variables])
    for v in variables:
        np.testing.assert_allclose(numpy(v), 3.0, atol=0.05)


@pytest.mark.parametrize("mode", support.COMPILED_FIT)
def test_without_clipping_it_is_adamax_in_fit(mode):
    results = []
    for optimizer in (
        keras.optimizers.Adamax(learning_rate=0.03, weight_decay=0.1),
        AdamaxClipped(learning_rate=0.03, weight_decay=0.1, **PLAIN_ADAMAX),
    ):
        keras.utils.set_random_seed(0)
        model = dense_model(optimizer, **support.FIT_MODES[mode])
        history = fit_dense(model, epochs=4).history["loss"]
        results.append([*(numpy(v) for v in model.weights), history])
    assert results[0][-1][-1] < results[0][-1][0]
    for adamax, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, adamax, rtol=2e-5, atol=1e-6)


def test_a_discarded_optimizer_is_freed():
    """No global list or closure keeps the state alive."""
    import weakref

    values, gradients = start()
    variables = support.make_variables(values)
    optimizer = AdamaxClipped()
    support.make_step(
        "eager" if BACKEND != "torch" else "no_grad", optimizer, variables
    )(gradients[0])
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
