"""The update as calls that TensorFlow's XLA makes: where, and if it cannot.

What it gives there is in `test_tensorflow_operation.py`, the loop "jit".
"""

import keras
import numpy as np
import pytest

import keras_adamax
from keras_adamax.kernel_choice import SETTING
from tests.native import compiled
from tests.native.compiled import finish, make, needs_compiler, start
from tests.support import assert_same, make_step, state_of

if keras.backend.backend() != "tensorflow":
    pytest.skip("this is a kernel of TensorFlow", allow_module_level=True)

import tensorflow as tf

from keras_adamax.native import supported, tensorflow_xla

pytestmark = needs_compiler


@pytest.mark.parametrize("dtype", ("float32", "float64", "float16", "bfloat16"))
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_one_value_that_is_not_finite_is_found(dtype, value):
    values = np.full(70_001, float(tf.as_dtype(dtype).max))

    @tf.function(jit_compile=True)
    def count(tensor):
        assert tensorflow_xla.serves("compiled", [tensor])
        return tensorflow_xla.count_nonfinite(
            [tf.zeros((0, 3)), tensor, tf.ones(())]
        )

    assert not count(tf.constant(values, dtype)).numpy().any()
    values[69_999] = value
    found = count(tf.constant(values, dtype)).numpy().tolist()
    assert found == [[0, 0], [1, 0], [0, 0]]


def forms_of(optimizer):
    """The form of each traced update."""
    return [key[0] for key in optimizer._kept_by_kernel["functions"]]


class TestWhere:
    def test_what_xla_compiles_is_recognized(self):
        seen = []

        def look():
            seen.append(tensorflow_xla.is_compiled_by_xla())
            return tf.constant(1.0)

        look()
        tf.function(look)()
        assert seen == [False, False]

        @tf.function(jit_compile=True)
        def step():
            tf.cond(tf.constant(1.0) > 0.0, look, lambda: tf.constant(2.0))
            for _ in tf.range(3):
                look()
            return tf.function(look)()

        step()
        assert seen[2:] and all(seen[2:])

    @pytest.mark.parametrize("kernel", ("auto", "compiled"))
    @pytest.mark.parametrize("skip_nonfinite", (False, True))
    def test_one_optimizer_in_all_modes(
        self, monkeypatch, skip_nonfinite, kernel
    ):
        monkeypatch.setenv(SETTING, kernel)
        optimizer, variable = make(skip_nonfinite=skip_nonfinite)
        for loop in ("jit", "graph", "eager"):
            make_step(loop, optimizer, [variable])([np.ones((300, 200))])
        assert forms_of(optimizer) == ["calls", "operation"]
        assert int(optimizer.iterations) == 3

    @pytest.mark.parametrize("kernel", ("fused", "reference"))
    def test_only_where_it_was_chosen(self, monkeypatch, kernel):
        monkeypatch.setenv(SETTING, kernel)
        optimizer, variable = make(skip_nonfinite=True)
        monkeypatch.setattr(tensorflow_xla, "_call", None)
        make_step("jit", optimizer, [variable])([np.ones((300, 200))])
        assert variable.numpy().max() < 1.0

    @pytest.mark.parametrize(
        "jit_compile, form", [(False, "operation"), (True, "calls")]
    )
    def test_in_fit(self, jit_compile, form):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile("adamax_clipped", "mse", jit_compile=jit_compile)
        model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
        assert forms_of(model.optimizer) == [form]

    def test_in_loops_and_branches_of_fit(self, monkeypatch):
        """Several steps in one execution, each one taken or not."""
        results = []
        for kernel in ("reference", "compiled"):
            monkeypatch.setenv(SETTING, kernel)
            keras.utils.set_random_seed(1)
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            optimizer = keras.optimizers.LossScaleOptimizer(
                keras_adamax.AdamaxClipped(0.1), initial_scale=4.0
            )
            model.compile(
                optimizer, "mse", jit_compile=True, steps_per_execution=4
            )
            x = np.random.default_rng(1).normal(size=(64, 3))
            x[20] = np.inf
            model.fit(x, np.ones((64, 2)), 8, epochs=3, verbose=0)
            results.append(model.get_weights())
        assert forms_of(optimizer.inner_optimizer) == ["calls"]
        for expected, actual in zip(*results, strict=True):
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(actual, expected, rtol=1e-4)

    def test_a_tape_around_the_step(self, monkeypatch):
        """What a step returns may depend on what it has updated."""
        monkeypatch.setenv(SETTING, "compiled")
        optimizer, variable = make((4,))

        @tf.function(jit_compile=True)
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(variable.value * x)
            [gradient] = tape.gradient(loss, [variable.value])
            optimizer.apply([gradient], [variable])
            return loss + tf.reduce_sum(variable.value * x)

        x = tf.constant([1.0, 2.0, 3.0, 4.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = step(x)
        assert forms_of(optimizer) == ["calls"]
        # Old and new weights; no gradient goes through an assignment.
        np.testing.assert_allclose(
            tape.gradient(total, x), 1.0 + variable.numpy(), rtol=1e-6
        )

    def test_a_step_traced_for_xla_runs_outside_of_it(self, monkeypatch):
        """TensorFlow gives it what it traced in the function around it."""
        monkeypatch.setenv(SETTING, "compiled")
        optimizer, variable = make()
        step = tf.function(lambda g: optimizer.apply(g, [variable]))
        tf.function(lambda g: step(g), jit_compile=True)([tf.ones((300, 200))])
        step([tf.ones((300, 200))])
        assert forms_of(optimizer) == ["calls"]
        monkeypatch.setenv(SETTING, "reference")
        expected, weight = make()
        for _ in range(2):
            expected.apply([tf.ones((300, 200))], [weight])
        assert_same(
            state_of(expected, [weight]), state_of(optimizer, [variable])
        )
        assert optimizer.clip_statistics() == expected.clip_statistics()

    def test_other_dtypes_are_left_to_xla(self):
        seen = []

        @tf.function(jit_compile=True)
        def look():
            for dtype in ("int32", "float32"):
                tensors = [tf.zeros(1, dtype)]
                seen.append(tensorflow_xla.serves("auto", tensors))

        look()
        assert seen == [False, True]


@pytest.mark.parametrize("skip_nonfinite", (False, True))
def test_a_step_that_is_taken_copies_nothing(skip_nonfinite):
    """A skipped one does: XLA puts it all into a branch."""
    optimizer, variable = make(skip_nonfinite=skip_nonfinite)

    @tf.function(jit_compile=True)
    def step(gradient):
        optimizer.apply([gradient], [variable])

    program = step.experimental_get_compiler_ir(tf.ones((300, 200)))(
        stage="optimized_hlo"
    )
    taken = [
        function
        for function in program.split("\n}\n")
        if "keras_adamax_update" in function or "\nENTRY" in function
    ]
    assert len(taken) == 1 + skip_nonfinite
    assert "input_output_alias={ {0}: (" in program
    assert not any("f32[300,200]{1,0} copy(" in f for f in taken)


@pytest.mark.parametrize("name", ("UPDATE", "ADD_COUNTS"))
def test_what_does_not_fit_is_refused(name):
    handler = getattr(supported, name)

    @tf.function(jit_compile=True)
    def call():
        assert tensorflow_xla.serves("compiled", [])
        ones = tf.ones(3)
        return tensorflow_xla._call(
            handler, [ones], [ones], {"clips": "1 : i64"}
        )

    with pytest.raises(tf.errors.OpError, match="does not fit this handler"):
        call()


SCRIPT = """
import os
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, keras_adamax, tensorflow as tf
from keras_adamax.native import supported
from keras_adamax.native import tensorflow_xla
{before}
variable = keras.Variable(np.ones(3, "float32"), name="weight")
optimizer = keras_adamax.AdamaxClipped(skip_nonfinite=True)
optimizer.build([variable])
@tf.function(jit_compile=True)
def step():
    optimizer.apply([tf.ones(3)], [variable])
step()
assert optimizer.clip_rate() == 1.0
[key] = optimizer._kept_by_kernel["functions"]
print(key[0])
"""


@pytest.mark.nightly
class TestCompilation(compiled.CompilationTests):
    arguments = ("-c", SCRIPT.format(before=""))
    served = "calls"
    other = "fused"
    is_quiet = False
    loop = "jit"
    caches = (tensorflow_xla._failure,)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "before",
        (
            # As where XLA has another interface, ...
            "tensorflow_xla._register = lambda: None",
            # ... reads other modules, ...
            "tensorflow_xla._VERSION = 1_000",
            # ... or TensorFlow is organized in another way.
            "from tensorflow.compiler.tf2xla.python import xla; "
            "del xla.call_module",
        ),
    )
    def test_where_xla_cannot_call_it(self, before):
        script = SCRIPT.format(before=before)
        assert finish(start("-c", script))[0] == "fused"

    def test_asked_for_where_xla_cannot_call_it(self, monkeypatch):
        tensorflow_xla._failure.cache_clear()
        monkeypatch.setattr(tensorflow_xla, "_VERSION", 1_000)
        monkeypatch.setenv(SETTING, "compiled")
        try:
            optimizer, variable = make()
            step = make_step("jit", optimizer, [variable])
            with pytest.raises(RuntimeError, match="must be 'auto', 'fused'"):
                step([np.ones((300, 200))])
        finally:
            tensorflow_xla._failure.cache_clear()
