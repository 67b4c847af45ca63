"""Canaries: what `AdamaxClipped` uses of Keras that is not public.

There is no public place for clipping sparse rows, for a live weight decay or
for a product of all `beta_1`, so the optimizer overrides private methods and
reads private attributes. When a test here fails, Keras has changed one of
them: read its changes before anything else.
"""

import ast
import inspect
import pathlib

import keras
import numpy as np
import pytest

import keras_adamax
from keras_adamax import AdamaxClipped, _keras_private
from tests import support
from tests.gradients import numpy, to_backend
from tests.support import BACKEND

Optimizer = keras.optimizers.Optimizer

# Name to parameters, of the methods; each has a test below.
METHODS = {
    "_clip_gradients": ["self", "grads"],
    "_apply_weight_decay": ["self", "variables"],
    "_backend_update_step": [
        "self",
        "grads",
        "trainable_variables",
        "learning_rate",
    ],
    "_check_variables_are_known": ["self", "variables"],
    "_get_variable_index": ["self", "variable"],
    "_get_current_learning_rate": ["self"],
    "_use_weight_decay": ["self", "variable"],
    "_overwrite_variable_with_gradient": ["self", "variable"],
    "build": ["self", "variables"],
    "apply": ["self", "grads", "trainable_variables"],
    "apply_gradients": ["self", "grads_and_vars"],
    "stateless_apply": [
        "self",
        "optimizer_variables",
        "grads",
        "trainable_variables",
    ],
    "update_step": ["self", "gradient", "variable", "learning_rate"],
    "assign": ["self", "variable", "value"],
    "exclude_from_weight_decay": ["self", "var_list", "var_names"],
    "finalize_variable_values": ["self", "var_list"],
    "set_weights": ["self", "weights"],
    "save_own_variables": ["self", "store"],
    "load_own_variables": ["self", "store"],
}
ATTRIBUTES = {
    "_accumulated_gradients",
    "_iterations",
    "_learning_rate",
    "_model_variables_moving_average",
    "_trainable_variables",
    "_trainable_variables_indices",
    "_var_key",
    "_variables",
}
ROOMS = ("optimizer", "backends", "native", "state", "updates")
# Of variables and of torch; `tests/updates` and `tests/native` have the tests.
OF_VARIABLES = {"_foreach_copy_", "_value", "_version"}
# Public, in spite of the line, so that it is no name of a field.
OF_NAMED_TUPLES = {"_fields", "_replace"}
# Reached by `getattr` with a default, which would hide that they are gone.
BY_NAME = {"_exclude_from_weight_decay_pattern", "_h5_entry_group", "_layout"}


class Recorder(Optimizer):
    """Gradient descent that writes down what Keras calls, and with what."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []
        self.is_recording = True

    def record(self, name, *values):
        def copy(value):
            return value if value is None else np.array(numpy(value))

        self.calls.append((name, *map(copy, values)))

    def _clip_gradients(self, grads):
        self.record("clip", *grads)
        result = super()._clip_gradients(grads)
        self.record("clipped", *result)
        return result

    def _apply_weight_decay(self, variables):
        self.record("decay", *variables)
        super()._apply_weight_decay(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        self.record("begin", learning_rate, *grads)
        super()._backend_update_step(grads, trainable_variables, learning_rate)
        self.record("end", *trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        self.record("update", gradient, variable, self._iterations)
        self.assign(variable, variable - learning_rate * gradient)

    def _update_model_variables_moving_average(self, trainable_variables):
        self.record("average", *trainable_variables)
        super()._update_model_variables_moving_average(trainable_variables)

    def names(self):
        return [call[0] for call in self.calls]

    def values(self, name):
        """Of the last such call."""
        return [call[1:] for call in self.calls if call[0] == name][-1]


def apply(optimizer, gradients, variables):
    tensors = [
        to_backend(g, v) for g, v in zip(gradients, variables, strict=True)
    ]
    optimizer.apply(tensors, variables)


def arrays(*values):
    return [np.asarray(value, "float32") for value in values]


def test_every_private_name_in_use_is_known_here():
    """Who uses another one adds it here, and a test for it below."""
    package = pathlib.Path(keras_adamax.__file__).parent
    folders = [package, *(package / room for room in ROOMS)]
    files = [file for folder in folders for file in folder.glob("*.py")]
    used, ours, by_name = set(), set(), set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                ours.add(node.name)
            if isinstance(node, ast.Call) and (
                ast.unparse(node.func) in ("getattr", "hasattr")
            ):
                name = node.args[1]
                if isinstance(name, ast.Constant) and name.value[0] == "_":
                    by_name.add(name.value)
            if not isinstance(node, ast.Attribute):
                continue
            name = node.attr
            if isinstance(node.ctx, ast.Store):
                ours.add(name)
            if name.startswith("_") and not name.startswith("__"):
                used.add(name)
    # What we override is ours and Keras's.
    overridden = {name for name in ours if hasattr(Optimizer, name)}
    known = {name for name in METHODS if name.startswith("_")} | ATTRIBUTES
    known |= OF_VARIABLES | OF_NAMED_TUPLES
    assert used - ours <= known
    assert by_name - ours == BY_NAME
    assert overridden & used <= known


@pytest.mark.parametrize("name", METHODS)
def test_signatures(name):
    parameters = inspect.signature(getattr(Optimizer, name)).parameters
    assert list(parameters) == METHODS[name]
    ours = inspect.signature(getattr(AdamaxClipped, name)).parameters
    assert list(ours) == METHODS[name]


class TestOrderOfCalls:
    def test_of_a_step(self):
        variables = support.make_variables(arrays([1.0, 2.0], 3.0))
        variables[1].constraint = keras.constraints.NonNeg()
        optimizer = Recorder(
            learning_rate=0.5,
            weight_decay=0.25,
            clipvalue=2.0,
            loss_scale_factor=4.0,
            use_ema=True,
        )
        apply(optimizer, arrays([8.0, -16.0], 40.0), variables)
        assert optimizer.names() == [
            "clip",
            "clipped",
            "decay",
            "begin",
            "update",
            "update",
            "end",
            "average",
        ]
        # Unscaled before the clipping.
        np.testing.assert_equal(
            optimizer.values("clip"), arrays([2.0, -4.0], 10.0)
        )
        clipped = arrays([2.0, -2.0], 2.0)
        np.testing.assert_equal(optimizer.values("clipped"), clipped)
        # The decay comes before the step.
        np.testing.assert_equal(
            optimizer.values("decay"), arrays([1.0, 2.0], 3.0)
        )
        np.testing.assert_equal(
            optimizer.values("begin"), [np.float32(0.5), *clipped]
        )
        decayed = arrays([0.875, 1.75], 2.625)
        np.testing.assert_equal(
            optimizer.values("update"), [clipped[1], decayed[1], 0]
        )
        np.testing.assert_equal(
            optimizer.values("end"), arrays([-0.125, 2.75], 1.625)
        )
        # `iterations` counts last.
        assert int(numpy(optimizer._iterations)) == 1

    def test_constraints_come_after_the_step(self):
        variables = support.make_variables(arrays([1.0, 2.0]))
        variables[0].constraint = keras.constraints.NonNeg()
        optimizer = Recorder(learning_rate=1.0, use_ema=True)
        apply(optimizer, arrays([4.0, 1.0]), variables)
        np.testing.assert_equal(
            optimizer.values("average"), arrays([-3.0, 1.0])
        )
        np.testing.assert_equal(numpy(variables[0]), [0.0, 1.0])

    def test_accumulated_gradients_are_clipped_as_their_mean(self):
        variables = support.make_variables(arrays([1.0, 2.0]))
        optimizer = Recorder(
            learning_rate=1.0, clipvalue=2.0, gradient_accumulation_steps=2
        )
        apply(optimizer, arrays([3.0, 1.0]), variables)
        before = len(optimizer.calls)
        # JAX calls it always, and takes back what it did.
        assert (before == 0) == (BACKEND != "jax")
        np.testing.assert_equal(numpy(variables[0]), [1.0, 2.0])
        apply(optimizer, arrays([5.0, 2.0]), variables)
        assert optimizer.names()[before:] == [
            "clip",
            "clipped",
            "decay",
            "begin",
            "update",
            "end",
        ]
        np.testing.assert_equal(optimizer.values("clip"), arrays([4.0, 1.5]))
        np.testing.assert_equal(numpy(variables[0]), [-1.0, 0.5])

    def test_absent_and_overwritten_variables_are_filtered_before(self):
        variables = support.make_variables(arrays(1.0, 2.0, 3.0))
        variables[2].overwrite_with_gradient = True
        optimizer = Recorder(learning_rate=1.0, loss_scale_factor=4.0)
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            apply(
                optimizer, [np.float32(4.0), None, np.float32(8.0)], variables
            )
        np.testing.assert_equal(optimizer.values("clip"), arrays(1.0))
        np.testing.assert_equal([numpy(v) for v in variables], [0.0, 2.0, 8.0])

    def test_weight_decay_reads_the_attribute_in_every_step(self):
        """Our property gives it the live value there."""
        reads = []

        class Reader(Recorder):
            @property
            def weight_decay(self):
                reads.append("weight_decay")
                return keras.ops.convert_to_tensor(0.5)

            @weight_decay.setter
            def weight_decay(self, value):
                reads.append("set")

            def _get_current_learning_rate(self):
                reads.append("learning_rate")
                return super()._get_current_learning_rate()

        optimizer = Reader(learning_rate=1.0)
        # Keras's constructor sets it.
        assert "set" in reads
        variables = support.make_variables(arrays(1.0))
        optimizer.build(variables)
        reads.clear()
        optimizer._apply_weight_decay(variables)
        assert set(reads) == {"weight_decay", "learning_rate"}
        np.testing.assert_equal(numpy(variables[0]), 0.5)

    def test_stateless_apply_gives_gradients_alone(self):
        if BACKEND == "tensorflow":
            with pytest.raises(ValueError, match="not supported"):
                Recorder(learning_rate=1.0).stateless_apply([], [], [])
            return
        seen = []

        class Stateless(Recorder):
            def apply(self, grads, trainable_variables=None):
                seen.append((len(grads), trainable_variables))
                super().apply(grads, trainable_variables)

        optimizer = Stateless(learning_rate=1.0)
        variables = support.make_variables(arrays(1.0))
        optimizer.build(variables)
        optimizer.stateless_apply(
            [v.value for v in optimizer.variables],
            [to_backend(np.float32(1.0), variables[0])],
            [v.value for v in variables],
        )
        assert seen == [(1, None)]


class TestAttributes:
    def test_after_construction(self):
        optimizer = Recorder(learning_rate=0.25)
        assert isinstance(optimizer._learning_rate, keras.Variable)
        assert (
            optimizer._get_current_learning_rate() is optimizer._learning_rate
        )
        assert isinstance(optimizer._iterations, keras.Variable)
        assert optimizer._variables[:2] == [
            optimizer._iterations,
            optimizer._learning_rate,
        ]
        assert optimizer._iterations.aggregation == "only_first_replica"
        assert not optimizer.built

    @pytest.mark.parametrize("kind", ["schedule", "callable"])
    def test_a_learning_rate_that_is_no_number(self, kind):
        """We put it in place of the variable that Keras made."""
        schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 4, 0.0)
        optimizer = Recorder(learning_rate=0.25)
        variable = optimizer._learning_rate
        optimizer._learning_rate = (
            schedule if kind == "schedule" else lambda: 0.75
        )
        # The clock is Keras's own, which counts micro-steps.
        optimizer._iterations.assign(1)
        rate = optimizer._get_current_learning_rate()
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(rate), 0.75, rtol=1e-6
        )
        assert any(v is variable for v in optimizer.variables)

    def test_after_build(self):
        variables = support.make_variables(arrays([1.0, 2.0], 3.0))
        variables[1].overwrite_with_gradient = True
        optimizer = Recorder(
            learning_rate=1.0, use_ema=True, gradient_accumulation_steps=2
        )
        optimizer.exclude_from_weight_decay(var_names=["weight_1"])
        optimizer.build(variables)
        assert optimizer.built
        assert isinstance(optimizer._trainable_variables, list)
        for i, v in enumerate(variables):
            assert optimizer._trainable_variables[i] is v
            assert optimizer._get_variable_index(v) == i
            assert optimizer._overwrite_variable_with_gradient(v) == (i == 1)
            assert optimizer._use_weight_decay(v) == (i == 0)
        averages = optimizer._model_variables_moving_average
        assert [a is None for a in averages] == [False, True]
        accumulators = optimizer._accumulated_gradients
        assert [a.shape for a in accumulators] == [v.shape for v in variables]
        tracked = {id(v) for v in optimizer._variables}
        assert {id(averages[0]), *map(id, accumulators)} <= tracked

    def test_variables_that_are_not_known(self):
        """The spike gate needs their indices before Keras's check."""
        variables = support.make_variables(arrays(1.0, 2.0))
        gradients = [keras.ops.ones(()), keras.ops.ones(())]
        for optimizer in (
            Recorder(learning_rate=1.0),
            AdamaxClipped(spike_threshold=0.2),
        ):
            optimizer.build(variables[:1])
            optimizer._check_variables_are_known(variables[:1])
            with pytest.raises(ValueError, match="Unknown variable"):
                optimizer._check_variables_are_known(variables)
            with pytest.raises(ValueError, match="Unknown variable"):
                optimizer.apply(gradients, variables)

    def test_names_that_are_excluded_from_weight_decay(self):
        """Saved with the state."""
        optimizer = Recorder(learning_rate=1.0)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma"])
        pattern = optimizer._exclude_from_weight_decay_pattern
        # From a set.
        assert set(pattern.pattern.split("|")) == {"bias", "gamma"}

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_the_layout_of_a_variable(self, dtype):
        """State that is not of the weight's dtype gets it by its name."""
        layout = None
        if BACKEND == "jax":
            mesh = keras.distribution.DeviceMesh(
                (1,), ["model"], keras.distribution.list_devices()[:1]
            )
            layout = keras.distribution.TensorLayout(["model"], mesh)
        variable = keras.Variable(
            np.ones(3, "float32"), dtype=dtype, layout=layout, name="weight"
        )
        assert variable._layout is layout
        optimizer = AdamaxClipped()
        optimizer.build([variable])
        assert optimizer._momentums[0]._layout is layout
        assert optimizer._norms[0]._layout is layout

    def test_iterations_count_updates_and_the_variable_counts_calls(self):
        optimizer = Recorder(learning_rate=1.0, gradient_accumulation_steps=3)
        optimizer._iterations.assign(7)
        assert int(numpy(optimizer.iterations)) == 2
        assert int(numpy(optimizer._iterations)) == 7

    def test_attributes_are_tracked_variables(self):
        """We keep Keras from that for hyperparameters that are set."""
        optimizer = Recorder(learning_rate=1.0)
        count = len(optimizer.variables)
        optimizer.something = keras.Variable(1.0)
        assert len(optimizer.variables) == count + 1
        ours = AdamaxClipped()
        count = len(ours.variables)
        ours.learning_rate = keras.Variable(0.5)
        with pytest.raises(TypeError):
            ours.beta_1 = keras.Variable(0.5)
        assert len(ours.variables) == count


class TestStores:
    @pytest.mark.parametrize(
        "optimizer_class", [keras.optimizers.Adam, Recorder]
    )
    def test_the_name_of_the_optimizer_beside_its_entries(
        self, optimizer_class, tmp_path
    ):
        """`H5IOStore._h5_entry_group` tells whose state it is."""
        seen = []

        class Probe(Recorder):
            def load_own_variables(self, store):
                seen.append(str(store._h5_entry_group.attrs["name"]))
                super().load_own_variables(store)

        def model(optimizer):
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile(optimizer, "mse")
            optimizer.build(model.trainable_variables)
            return model

        path = tmp_path / "model.weights.h5"
        saved = optimizer_class(learning_rate=0.5, name="some_name")
        model(saved).save_weights(path)
        if optimizer_class is keras.optimizers.Adam:
            with pytest.warns(UserWarning, match="Skipping variable loading"):
                model(Probe(learning_rate=1.0)).load_weights(path)
        else:
            model(Probe(learning_rate=1.0)).load_weights(path)
        assert seen == ["some_name"]


def test_which_variables_an_optimizer_was_built_with():
    """`_keras_private` asks for it; no public name tells."""
    one, other, strange = (keras.Variable([float(i)]) for i in range(3))
    for optimizer in (keras.optimizers.Adam(), AdamaxClipped()):
        optimizer.build([other, one])
        trained = _keras_private.trained_variables(optimizer)
        assert [id(v) for v in trained] == [id(other), id(one)]
        places = [
            _keras_private.place_of(optimizer, v) for v in (one, other, strange)
        ]
        assert places == [1, 0, None]


class TestBackends:
    @pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow")
    def test_tensorflow_assigns_rows(self):
        import tensorflow as tf

        assert callable(
            tf.__internal__.distribute.strategy_supports_no_merge_call
        )
        optimizer = Recorder(learning_rate=1.0)
        variable = keras.Variable(np.zeros((4, 2), "float32"))
        rows = tf.IndexedSlices(tf.ones((3, 2)), tf.constant([2, 0, 2]))
        optimizer.assign(variable, rows)
        np.testing.assert_equal(
            numpy(variable), [[1, 1], [0, 0], [1, 1], [0, 0]]
        )

    @pytest.mark.skipif(BACKEND != "jax", reason="JAX")
    def test_jax_takes_the_values_of_variables_in_fit(self):
        """`to_numpy` makes a clear error of it."""
        optimizer = AdamaxClipped()
        model = support.start_fit(arrays([1.0, 2.0]), optimizer, "jit")
        seen = []

        class Probe(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append(optimizer._iterations._value)
                with pytest.raises(TypeError):
                    seen.append(optimizer._iterations.value)

        support.fit(model, [arrays([1.0, 1.0])] * 2, callbacks=[Probe()])
        assert seen == [None, None]

    @pytest.mark.skipif(BACKEND != "torch", reason="torch")
    def test_torch_keeps_its_fast_paths_to_exact_classes(self):
        """A subclass of Keras's Adamax would get the loop, not the kernel."""
        assert type(keras.optimizers.Adamax()) is not keras.optimizers.Adamax

        class Mine(keras.optimizers.Adamax):
            pass

        assert type(Mine()) is Mine
        assert "parallel" not in str(type(AdamaxClipped()).__mro__).lower()
