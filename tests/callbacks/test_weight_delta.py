"""Weight changes are what NumPy makes of saved weights."""

import math
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_adamax import (
    AdamaxClipped,
    ClipRateLogger,
    WeightDeltaLogger,
)
from keras_adamax.callbacks import _devices, _weight_changes
from keras_adamax.callbacks import _unchanged_weights as unchanged
from tests.callbacks import training


def norm(array):
    return float(np.linalg.norm(np.ravel(array)))


def check_against_saved_weights(logger, saved, length, tolerance=3e-7):
    """All deltas and ratios, between weights that are `length` steps apart."""
    ends = range(length, len(saved), length)
    for end in ends:
        before, now = saved[end - length], saved[end]
        changes = {path: now[path] - before[path] for path in now}
        for path, change in changes.items():
            delta, ratio = (
                training.values(
                    logger.records, step=end, variable=path, quantity=quantity
                )
                for quantity in ("weight_delta", "weight_delta_ratio")
            )
            # float32 weights have no exact difference: half an ulp of each.
            slack = norm(now[path]) * 2.0**-23
            assert delta == [pytest.approx(norm(change), tolerance, slack)]
            assert ratio == [
                pytest.approx(delta[0] / norm(now[path]), tolerance)
            ]
        total = math.hypot(*(norm(change) for change in changes.values()))
        weights = math.hypot(*(norm(value) for value in now.values()))
        assert training.values(
            logger.records, step=end, variable="", quantity="weight_delta"
        ) == [pytest.approx(total, tolerance, weights * 2.0**-23)]
        assert training.values(
            logger.records, step=end, variable="", quantity="weight_delta_ratio"
        ) == [pytest.approx(total / weights, tolerance, 2.0**-23)]
        assert 0 < total < weights
    assert len(training.rows(logger.records, quantity="weight_delta")) == (
        len(ends) * (len(saved[0]) + 1)
    )


@pytest.mark.parametrize(
    ("kind", "update_freq"),
    [("dense", "epoch"), ("dense", 1), ("recurrent", 4), ("embedding", 4)],
)
def test_deltas_equal_numpy_on_saved_weights(kind, update_freq):
    model = training.make_model(kind, AdamaxClipped(0.05))
    logger = WeightDeltaLogger(update_freq)
    watcher = training.WeightWatcher()
    history = training.fit(model, [logger, watcher], kind, epochs=2)
    length = 6 if update_freq == "epoch" else update_freq
    assert len(watcher.weights) == 13
    check_against_saved_weights(logger, watcher.weights, length)
    for key in ("weight_delta", "weight_delta_ratio"):
        last = training.rows(logger.records, variable="", quantity=key)[-1]
        assert history.history[key][-1] == last[-1]


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD, AdamaxClipped])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_copy_is_not_touched_by_the_steps(jit_compile, optimizer):
    # TensorFlow shares memory with the variables until a step writes to them,
    # JAX gives it away, and torch writes in place; our library does so
    # wherever it can.
    if training.BACKEND == "torch" and jit_compile:
        pytest.skip("torch.compile takes most of a minute")
    model = training.make_model(
        optimizer=optimizer(0.01), jit_compile=jit_compile
    )
    logger = WeightDeltaLogger()
    watcher = training.WeightWatcher()
    training.fit(model, [logger, watcher], epochs=3)
    check_against_saved_weights(logger, watcher.weights, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["adam", "adamw", "adamax", "rmsprop", "adafactor", "nadam"]
)
def test_any_optimizer_of_keras(name):
    model = training.make_model(optimizer=name)
    model.optimizer.learning_rate = 0.01
    logger, watcher = WeightDeltaLogger(), training.WeightWatcher()
    training.fit(model, [logger, watcher])
    check_against_saved_weights(logger, watcher.weights, 6)


@pytest.mark.parametrize("wrapper", ["loss scale", "multi", "multi, some"])
def test_optimizers_inside_of_others(wrapper):
    optimizers = keras.optimizers
    if wrapper == "loss scale":
        optimizer = optimizers.LossScaleOptimizer(
            AdamaxClipped(0.01), initial_scale=8.0
        )
    else:
        one = AdamaxClipped if wrapper == "multi" else optimizers.SGD
        optimizer = optimizers.MultiOptimizer(
            optimizers.OptimizerMap(
                one(0.01, name="one"),
                {".*second.*": AdamaxClipped(0.02, name="two")},
            )
        )
    model = training.make_model(optimizer=optimizer)
    logger, watcher = WeightDeltaLogger(3), training.WeightWatcher()
    training.fit(model, [logger, watcher], epochs=2)
    check_against_saved_weights(logger, watcher.weights, 3)


def test_two_do_not_disturb_one_another():
    def fit(*loggers):
        training.fit(
            training.make_model(optimizer=AdamaxClipped(0.01)),
            list(loggers),
            epochs=2,
        )
        return loggers[0].records

    alone = fit(WeightDeltaLogger(2))
    others = WeightDeltaLogger(3), WeightDeltaLogger()
    training.assert_same_records(alone, fit(WeightDeltaLogger(2), *others))
    for other, batches in zip(others, ([3, 6], [6]), strict=True):
        rows = training.rows(other.records, variable="", epoch=1)
        assert sorted({row[2] for row in rows}) == batches


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(300, 300)) * 100
    variable = keras.Variable(before, dtype=dtype, name="weight")
    before = to_float(variable)
    changes = _weight_changes.WeightChanges([variable], with_counts=False)
    variable.assign(before * 1.5)
    step, (change,) = changes.read(
        changes.measure(ops.convert_to_tensor(3, "int32"))
    )
    # The squares alone would overflow float16 a thousandfold.
    assert (step, change.counts) == (3, None)
    now = to_float(variable)
    assert change.change_norm == pytest.approx(norm(now - before), 1e-6)
    assert change.weight_norm == pytest.approx(norm(now), 1e-6)
    copies = changes._previous
    assert [keras.backend.standardize_dtype(c.dtype) for c in copies] == [dtype]


def to_float(variable):
    return ops.convert_to_numpy(ops.cast(variable, "float32")).astype("float64")


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norms_neither_vanish_nor_overflow(size):
    before = np.asarray([3.0, -1.0, 0.0], "float32") * np.float32(size)
    variable = keras.Variable(before)
    changes = _weight_changes.WeightChanges([variable], with_counts=False)
    variable.assign(before * 2)
    _, (change,) = changes.read(
        changes.measure(ops.convert_to_tensor(0, "int32"))
    )
    assert change.change_norm == pytest.approx(size * math.sqrt(10), 1e-6)
    assert change.weight_norm == pytest.approx(size * math.sqrt(40), 1e-6)


def test_steps_beyond_float32_are_exact():
    changes = _weight_changes.WeightChanges([], with_counts=False)
    variable = keras.Variable([1.0])
    changes = _weight_changes.WeightChanges([variable], with_counts=False)
    for step in (0, 2**24 + 1, 2**31 - 1):
        assert (
            changes.read(changes.measure(ops.convert_to_tensor(step, "int32")))[
                0
            ]
            == step
        )


@pytest.mark.parametrize(
    "shape", [(), (0, 3), (1,), (_weight_changes.BLOCK * 2 + 7,), (700, 900)]
)
@pytest.mark.parametrize("largest_index", [2**31 - 1, 2**10])
def test_counts_and_blocks(shape, largest_index, monkeypatch):
    # The second, as if the variable had 2^31 elements.
    monkeypatch.setattr(_weight_changes, "LARGEST_INDEX", largest_index)
    rng = np.random.default_rng(1)
    before = np.asarray(rng.normal(size=shape), "float32")
    move = np.asarray(rng.normal(size=shape), "float32")
    variable = keras.Variable(before)
    changes = _weight_changes.WeightChanges([variable], with_counts=True)
    variable.assign(before + move)
    _, (change,) = changes.read(
        changes.measure(ops.convert_to_tensor(0, "int32"))
    )
    # In float32, as on the device: an element may lie on the edge of a bin.
    moved = np.asarray(before + move - before)
    assert change.change_norm == pytest.approx(
        norm(moved.astype("float64")), 1e-6
    )
    assert change.counts.sum() == moved.size
    if moved.size:
        largest = np.abs(moved).max()
        assert change.largest_change == largest
        expected, _ = np.histogram(
            moved, _weight_changes.BINS, (-largest, largest)
        )
        edges = 1e-6 * moved.size + 1
        assert np.abs(change.counts - expected).max() <= edges


@pytest.mark.slow
@pytest.mark.parametrize("with_counts", [False, True])
def test_memory_of_one_copy_is_all(with_counts, tmp_path):
    """The high-water mark of a process that watches 96 MiB of weights."""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("needs Linux's /proc")
    script = tmp_path / "memory.py"
    script.write_text(MEMORY_SCRIPT, "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(int(with_counts))],
        env=os.environ
        | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(sys.path),
            # What is freed goes back to the system at once: the allocator's
            # reserves would come and go in the figures.
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    window, record, copies = map(float, done.stdout.split())
    # In units of the weights: the copy and some blocks, of which a machine
    # under load may hold more at once. A second copy, or the differences,
    # would make it 2.
    assert window < 1.3
    assert record < 1.6
    assert copies == 1


MEMORY_SCRIPT = """
import ctypes, gc, sys
import keras, numpy as np
from keras import ops
from keras_adamax.callbacks._weight_changes import WeightChanges

COUNTS = sys.argv[1] == "1"

def peak(name):
    with open("/proc/self/status") as file:
        return next(
            int(line.split()[1]) / 1024 for line in file if name in line
        )

def begin():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak("VmRSS")

SHAPES = [(2048, 2048)] * 2 + [(1024, 1024)] * 15 + [(1024, 64)] * 16
weights = [keras.Variable(np.full(s, 1.5, "float32")) for s in SHAPES]
size = sum(np.prod(s) for s in SHAPES) * 4 / 2**20
step = ops.convert_to_tensor(1, "int32")
# What is loaded and compiled once does not count: it does not grow.
small = [keras.Variable(np.ones(s, "float32")) for s in SHAPES]
warm = WeightChanges(small, COUNTS)
warm.read(warm.measure(step))
del warm, small
# Takes what an allocator keeps for later: else nothing seems to need memory.
filler = [ops.multiply(ops.ones((512, 512)), 2.0) for _ in range(300)]

before = begin()
changes = WeightChanges(weights, COUNTS)
window = peak("VmHWM") - before
for v in weights:  # each gets memory of its own again, where it was shared
    v.assign(ops.multiply(v, 1.25))
begin()
changes.read(changes.measure(step))
record = peak("VmHWM") - before
held = sum(np.prod(p.shape) for p in changes._previous) * 4 / 2**20
print(window / size, record / size, held / size)
"""


def test_jax_keeps_no_differences():
    if training.BACKEND != "jax":
        pytest.skip("asks XLA")
    module = _devices.load()
    values = [np.ones((2048, 1024), "float32"), np.ones((50, 50), "float32")]
    arrays = [ops.convert_to_tensor(v) for v in values]
    step = ops.convert_to_tensor(1, "int32")
    for function in (
        _weight_changes._measure_plainly,
        _weight_changes._measure_and_count,
    ):
        lowered = module._measure.lower(
            function, _weight_changes.pack, True, arrays, arrays, step
        )
        analysis = lowered.compile().memory_analysis()
        # A block of both; the weights have 8 MiB.
        assert analysis.temp_size_in_bytes < 2.5 * 2**20
    copies = module._overwritten.lower(arrays, arrays).compile()
    # Into the memory of those before.
    analysis = copies.memory_analysis()
    assert analysis.temp_size_in_bytes < 2**12
    assert analysis.alias_size_in_bytes >= 8 * 2**20


class TestRatios:
    def test_where_something_is_zero(self):
        before = [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]
        after = [[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]]
        model = training.make_model()
        layer = Fixed(before)
        model = keras.Sequential([keras.Input((1,)), layer])
        model.compile(keras.optimizers.SGD(0.0), "mse")

        class Set(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                for v, value in zip(layer.values, after, strict=True):
                    v.assign(value)
                self.model.optimizer.learning_rate = 0.0

        logger = WeightDeltaLogger(warn_unchanged=False)
        model.fit(
            np.ones((1, 1)),
            np.ones((1, 1)),
            callbacks=[logger, Set()],
            verbose=0,
        )
        records = logger.records
        assert training.values(records, quantity="weight_delta") == [
            0.0,
            pytest.approx(math.sqrt(5)),
            0.0,
            pytest.approx(math.sqrt(5)),
        ]
        assert training.values(records, quantity="weight_delta_ratio") == [
            0.0,
            math.inf,
            0.0,
            pytest.approx(math.sqrt(5) / 5),
        ]


class Fixed(keras.layers.Layer):
    """Weights with given values."""

    def __init__(self, values):
        super().__init__(name="fixed")
        self.initial = values

    def build(self, input_shape):
        self.values = [
            self.add_weight(
                shape=(len(value),),
                initializer=lambda shape, dtype, v=value: ops.cast(v, dtype),
                name=f"value_{i}",
            )
            for i, value in enumerate(self.initial)
        ]

    def call(self, x):
        for value in self.values:
            x = x + ops.sum(value)
        return x


@keras.saving.register_keras_serializable("tests")
class BrokenSGD(keras.optimizers.Optimizer):
    """Returns the new weight in place of assigning it."""

    def update_step(self, gradient, variable, learning_rate):
        return ops.subtract(variable, ops.multiply(learning_rate, gradient))

    def get_config(self):
        return {}


class Unused(keras.layers.Dense):
    """Has weights that the loss does not see, or sees times zero."""

    def __init__(self, factor, **kwargs):
        super().__init__(3, **kwargs)
        self.factor = factor

    def call(self, x):
        if self.factor is None:
            return x
        return x + self.factor * ops.sum(super().call(x))


def model_with(layer, optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="first"),
            layer,
            keras.layers.Dense(1, name="last"),
        ],
        name="model",
    )
    model.compile(optimizer, "mse", **training.COMPILE)
    return model


class TestUnchanged:
    def warn(self, model, epochs=2, callbacks=(), **arguments):
        """The only warning of a `fit`."""
        logger = WeightDeltaLogger(**arguments)
        with pytest.warns(UserWarning) as caught:
            training.fit(model, [logger, *callbacks], epochs=epochs)
        (text,) = [
            text
            for text in training.user_warnings(caught)
            if "Gradients do not exist" not in text  # Keras says that itself
        ]
        assert "\n" not in text
        return text

    def test_an_optimizer_that_assigns_nothing(self):
        text = self.warn(training.make_model(optimizer=BrokenSGD(0.01)))
        assert text.startswith(
            "4 of 4 trainable variables did not change at all in 6 updates, "
            "up to step 6: model/first/kernel, model/first/bias, "
            "model/second/kernel, model/second/bias (the optimizer's "
            "`update_step` did not assign anything (BrokenSGD): "
        )
        assert "self.assign(variable, value)" in text

    @pytest.mark.filterwarnings("ignore:Gradients do not exist")
    @pytest.mark.filterwarnings("ignore:Layer 'middle'")
    @pytest.mark.parametrize("optimizer", ["adamax_clipped", "adam"])
    def test_no_gradient(self, optimizer):
        model = model_with(Unused(None, name="middle"), optimizer)
        text = self.warn(model)
        assert text.startswith(
            "2 of 6 trainable variables did not change at all in 6 updates, "
            "up to step 6: model/middle/kernel, model/middle/bias ("
        )
        # JAX makes it a gradient of zeros.
        if optimizer == "adam" or training.BACKEND == "jax":
            assert "(its gradient is zero or absent" in text
            # Whose gradient it was not is known of our optimizer only.
            may_cancel = "or its steps were too small or cancelled out)" in text
            assert may_cancel == (optimizer == "adam")
        else:
            assert "no gradient reached it" in text

    def test_steps_that_cancel_out(self):
        # Lion's steps are of the learning rate's size; from 0 they are exact.
        model = keras.Sequential(
            [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
        )
        model.layers[0].kernel.assign([[0.0]])
        optimizer = keras.optimizers.Lion(0.25, beta_1=1e-9)
        model.compile(optimizer, "mse", **training.COMPILE)
        logger = WeightDeltaLogger(2)
        with pytest.warns(UserWarning) as caught:
            model.fit(
                np.ones((2, 1)),
                np.asarray([[1.0], [-1.0]]),
                1,
                callbacks=[logger],
                shuffle=False,
                verbose=0,
            )
        (text,) = training.user_warnings(caught)
        assert "1 of 1" in text and "in 2 updates" in text
        assert "cancelled out" in text

    @pytest.mark.parametrize("optimizer", ["adamax_clipped", "sgd"])
    def test_a_gradient_of_zero(self, optimizer):
        model = model_with(Unused(0.0, name="middle"), optimizer)
        text = self.warn(model)
        assert "2 of 6" in text
        assert (
            "model/middle/kernel, model/middle/bias (its gradient is zero"
            in text
        )

    def test_a_learning_rate_of_zero(self):
        text = self.warn(training.make_model(optimizer=AdamaxClipped(0.0)))
        assert "4 of 4" in text and "(the learning rate is 0)" in text

    def test_steps_below_the_rounding(self):
        text = self.warn(training.make_model(optimizer=AdamaxClipped(1e-30)))
        # A bias of 0 can move as little as it likes.
        assert "model/first/kernel" in text and "bias" not in text
        assert "smaller than the rounding" in text

    def test_a_layer_frozen_after_compile(self):
        model = training.make_model(optimizer=AdamaxClipped(0.01))

        class Freeze(keras.callbacks.Callback):
            """Does what a frozen layer does once the step sees it."""

            def on_epoch_begin(self, epoch, logs=None):
                layer = self.model.get_layer("first")
                self.kept = [
                    ops.convert_to_numpy(w).copy() for w in layer.weights
                ]

            def on_epoch_end(self, epoch, logs=None):
                pass

        class Restore(keras.callbacks.Callback):
            """Before the logger, which is first when an epoch ends."""

            def on_train_batch_end(self, batch, logs=None):
                if batch < 5:
                    return
                layer = self.model.get_layer("first")
                for weight, value in zip(
                    layer.weights, freeze.kept, strict=True
                ):
                    weight.assign(value)
                layer.trainable = False

        freeze = Freeze()
        logger = WeightDeltaLogger()
        with pytest.warns(UserWarning) as caught:
            training.fit(model, [Restore(), freeze, logger], epochs=1)
        (text,) = training.user_warnings(caught)
        assert (
            "2 of 4 trainable variables did not change at all in 6 updates, up "
            "to step 6: model/first/kernel, model/first/bias (its layer was "
            "frozen (trainable=False) after `compile`"
        ) in text

    def test_a_layer_frozen_between_compile_and_fit(self):
        model = training.make_model(optimizer=AdamaxClipped(0.01))
        model.get_layer("first").trainable = False
        logger = WeightDeltaLogger()
        with pytest.warns(UserWarning) as caught:
            training.fit(model, [logger], epochs=2)
        (text,) = [
            text
            for text in training.user_warnings(caught)
            if "did not change at all" in text
        ]
        assert (
            "2 of 4 trainable variables did not change at all in 6 updates, up "
            "to step 6: model/first/kernel, model/first/bias (its layer was "
            "frozen (trainable=False) after `compile`"
        ) in text
        for layer, moved in (("first", False), ("second", True)):
            values = training.values(
                logger.records,
                variable=f"model/{layer}/kernel",
                quantity="weight_delta",
            )
            assert [value > 0 for value in values] == [moved] * 2

    def test_each_is_named_once(self):
        model = model_with(Unused(0.0, name="middle"), "sgd")
        self.warn(model, epochs=3, update_freq=1)

    def test_can_be_turned_off(self):
        model = model_with(Unused(0.0, name="middle"), "sgd")
        logger = WeightDeltaLogger(warn_unchanged=False)
        training.fit(model, [logger])
        assert training.values(
            logger.records,
            variable="model/middle/kernel",
            quantity="weight_delta",
        ) == [0.0]

    def test_no_update_no_warning(self):
        # All four gradients of a window are accumulated: nothing can change.
        model = training.make_model(
            optimizer=AdamaxClipped(gradient_accumulation_steps=6)
        )
        logger = WeightDeltaLogger(2)
        training.fit(model, [logger])
        rows = training.rows(
            logger.records, variable="", quantity="weight_delta"
        )
        assert [row[3] for row in rows] == [0, 0, 1]
        assert [row[-1] > 0 for row in rows] == [False, False, True]


def test_nan_weights_are_recorded_and_named_once():
    model = training.make_model(optimizer=keras.optimizers.SGD(0.01))
    x, y = training.make_data()
    y[8:12] = np.nan  # the third of six batches
    logger = WeightDeltaLogger(1)
    with pytest.warns(UserWarning) as caught:
        model.fit(
            x, y, 4, epochs=2, callbacks=[logger], shuffle=False, verbose=0
        )
    (text,) = training.user_warnings(caught)
    assert text.startswith(
        "model/first/kernel, model/first/bias, model/second/kernel and "
        "model/second/bias have NaN or infinite weights"
    )
    for variable in ("", "model/first/kernel", "model/second/bias"):
        values = training.values(
            logger.records, variable=variable, quantity="weight_delta"
        )
        assert [math.isnan(v) for v in values] == [False] * 2 + [True] * 10


def test_a_model_that_is_built_in_its_first_batch():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.Dense(3), keras.layers.Dense(1)], name="model"
    )
    model.compile(AdamaxClipped(0.05), "mse", **training.COMPILE)
    logger, watcher = WeightDeltaLogger(3), training.WeightWatcher()
    training.fit(model, [logger, watcher], epochs=2)
    rows = training.rows(logger.records, variable="", quantity="weight_delta")
    assert [row[3] for row in rows] == [3, 6, 9, 12]
    assert all(row[-1] > 0 for row in rows)
    saved = watcher.weights
    # TensorFlow has no weights to start from before the first batch.
    start = saved[1] if training.BACKEND == "tensorflow" else saved[0]
    for path, now in saved[3].items():
        assert training.values(
            logger.records, step=3, variable=path, quantity="weight_delta"
        ) == [pytest.approx(norm(now - start[path]), 1e-5)]


def test_a_model_built_in_its_only_batch_has_nothing_to_compare():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse", **training.COMPILE)
    logger = WeightDeltaLogger()
    history = training.fit(model, [logger], batch_size=24, epochs=2)
    first, second = history.history["weight_delta"]
    assert math.isnan(first) == (training.BACKEND == "tensorflow")
    assert second > 0


class GAN(keras.Model):
    """Two optimizers and a `train_step` of its own, in each backend's way."""

    def __init__(self):
        super().__init__()
        self.one = keras.layers.Dense(1, name="one")
        self.two = keras.layers.Dense(1, name="two")
        self.one.build((None, 4))
        self.two.build((None, 1))
        self.built = True

    def call(self, x):
        return self.two(self.one(x))


@pytest.mark.filterwarnings("ignore:.*trainable.*:UserWarning")
def test_optimizers_that_a_model_holds_itself():
    class Holder(GAN):
        def compile(self, first, second):
            super().compile(loss="mse", **training.COMPILE)
            self.first, self.second = first, second

    if training.BACKEND == "jax":
        pytest.skip(
            "a JAX train_step carries the state of one optimizer; see "
            "test_a_train_step_of_its_own"
        )

    def train_step(self, data):
        x, y = data
        for optimizer, layer in (
            (self.first, self.one),
            (self.second, self.two),
        ):
            variables = layer.trainable_variables
            gradients = gradients_of(self, x, y, variables)
            optimizer.apply(gradients, variables)
        return {"loss": 1.0}

    Holder.train_step = train_step
    model = Holder()
    model.compile(keras.optimizers.SGD(0.01), AdamaxClipped(0.01))
    deltas, rates = WeightDeltaLogger(), ClipRateLogger()
    training.fit(model, [deltas, rates], epochs=2)
    moved = training.rows(deltas.records, quantity="weight_delta")
    # The updates of both.
    assert [row[3] for row in moved] == [12] * 5 + [24] * 5
    assert all(row[-1] > 0 for row in moved)
    clipped = training.rows(rates.records, epoch=0, quantity="clip_rate")
    assert [row[4] for row in clipped] == ["two/kernel", "two/bias", ""]


def test_a_train_step_of_its_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.dense = keras.layers.Dense(1, name="dense")
            self.dense.build((None, 4))
            self.built = True

        def call(self, x):
            return self.dense(x)

    def train_step(self, data):
        x, y = data
        variables = self.trainable_variables
        self.optimizer.apply(gradients_of(self, x, y, variables), variables)
        return {"loss": 1.0}

    def jax_train_step(self, state, data):
        import jax

        trainable, others, optimizer_variables, metrics = state
        x, y = data

        def loss_of(trainable):
            output, new = self.stateless_call(trainable, others, x)
            return ops.mean(ops.square(output - y)), new

        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trainable
        )
        trainable, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, trainable
        )
        return {"loss": loss}, (trainable, others, optimizer_variables, metrics)

    Own.train_step = jax_train_step if training.BACKEND == "jax" else train_step
    model = Own()
    model.compile(
        AdamaxClipped(0.01, clip_epsilon=0.05), loss="mse", **training.COMPILE
    )
    deltas, rates = WeightDeltaLogger(2), ClipRateLogger(2)
    watcher = training.WeightWatcher()
    history = training.fit(model, [deltas, rates, watcher], epochs=2).history
    check_against_saved_weights(deltas, watcher.weights, 2)
    logged = training.rows(rates.records, variable="", quantity="clip_rate")
    assert [row[3] for row in logged] == [2, 4, 6, 8, 10, 12]
    total = model.optimizer.clip_rate()
    assert np.mean([row[-1] for row in logged]) == pytest.approx(total)
    assert 0 < total < 1
    assert len(history["loss"]) == len(history["clip_rate"]) == 2


def gradients_of(model, x, y, variables):
    if training.BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x) - y))
        return tape.gradient(loss, variables)
    import torch

    model.zero_grad()
    loss = ops.mean(ops.square(model(x) - y))
    return torch.autograd.grad(loss, [v.value for v in variables])


def test_shared_and_nested_layers_are_listed_once():
    keras.utils.set_random_seed(0)
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential(
        [keras.Input((4,)), shared, keras.layers.Dense(4, name="dense")],
        name="inner",
    )
    inputs = keras.Input((4,))
    x = shared(inner(shared(inputs)))
    outputs = keras.layers.Dense(1, name="dense")(x)
    model = keras.Model(inputs, outputs, name="outer")
    model.compile(AdamaxClipped(0.01), "mse", **training.COMPILE)
    deltas, rates = WeightDeltaLogger(), ClipRateLogger()
    training.fit(model, [deltas, rates])
    for logger, quantity in ((deltas, "weight_delta"), (rates, "clip_rate")):
        names = [
            row[4] for row in training.rows(logger.records, quantity=quantity)
        ]
        assert len(names) == len(set(names)) == 7
        paths = [v.path for v in model.trainable_variables]
        assert {name.partition("#")[0] for name in names[:-1]} == set(paths)
    assert len(model.trainable_variables) == 6


@pytest.mark.parametrize("logger", [WeightDeltaLogger, ClipRateLogger])
def test_layers_that_freeze_between_fits(logger, tmp_path):
    model = training.make_model(optimizer=AdamaxClipped(0.01))
    logger = logger(filename=tmp_path / "records.csv")
    training.fit(model, [logger])
    for trainable in (False, True):
        model.get_layer("first").trainable = trainable
        model.compile(AdamaxClipped(0.01), "mse", **training.COMPILE)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            training.fit(model, [logger])
    first = {"model/first/kernel", "model/first/bias"}
    second = {"model/second/kernel", "model/second/bias"}
    quantity = logger.summary_keys[0]
    for run, expected in enumerate([first | second, second, first | second]):
        rows = training.rows(logger.records, run=run, quantity=quantity)
        assert {row[4] for row in rows} == expected | {""}
        assert len(rows) == len(expected) + 1
        assert all(row[-1] > 0 for row in rows)
    assert len(training.rows(logger.records, quantity="loss")) == 3


class TestReasonsByVariable:
    def reasons(self, optimizer, variables):
        start = {id(optimizer): optimizer.clip_statistics()}
        zeros = [
            None if getattr(v, "no_gradient", False) else ops.zeros(v.shape)
            for v in variables
        ]
        optimizer.apply(zeros, variables)
        return unchanged.reasons([optimizer], variables, False, start)

    @pytest.mark.filterwarnings("ignore:Gradients do not exist")
    def test_an_excluded_variable_that_was_renamed(self):

        variables = [
            keras.Variable(np.ones(3, "float32"), name=name)
            for name in ("kernel", "bias", "other")
        ]
        optimizer = AdamaxClipped(0.01, exclude_from_clipping=["bias"])
        optimizer.build(variables)
        # As after a state was loaded into a model with other names.
        optimizer._paths = ("a", "b", "c")
        variables[2].no_gradient = True
        assert self.reasons(optimizer, variables) == [
            unchanged.ZERO_GRADIENT,
            unchanged.ZERO_GRADIENT,
            unchanged.NO_GRADIENT,
        ]

    def test_a_scale_that_is_overwritten_with_its_gradient(self):

        variables = [
            keras.Variable(np.ones(3, "float32"), name=name)
            for name in ("kernel", "scale")
        ]
        variables[1].overwrite_with_gradient = True
        optimizer = AdamaxClipped(0.01)
        optimizer.build(variables)
        assert self.reasons(optimizer, variables)[1] == unchanged.OVERWRITTEN
        # And it spoils nobody else's.
        assert self.reasons(optimizer, variables)[0] == unchanged.ZERO_GRADIENT
