"""The update as calls that TensorFlow's XLA makes: results, memory, faults."""

import concurrent.futures
import functools
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_adamax
from keras_adamax.kernels import SETTING, _compiled_library
from tests.kernels.test_xla_form import OPTIONS, run
from tests.oracle import AdamaxClippedOracle, heavy_tailed_gradients
from tests.support import assert_same, make_step, make_variables, state_of

if keras.backend.backend() != "tensorflow":
    pytest.skip("this is a kernel of TensorFlow", allow_module_level=True)

import tensorflow as tf

from keras_adamax.kernels import _cpu_library, _tensorflow_in_xla

ROOT = pathlib.Path(keras_adamax.__file__).parents[1]
# In several blocks, in one, without elements, a scalar; in several calls.
SHAPES = ((37, 5), (70_001,), (3, 0), (), (600, 500))
# XLA computes with what these add to the rule, or with a step's scalars, and
# rounds a product and a sum once.
ROUNDED = ("corrected", "scheduled", "decayed, averaged", "accumulated")
ROUNDED += ("scaled",)

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, _compiled_library.COMPILERS)),
    reason="a C++ compiler is needed",
)


@pytest.mark.parametrize("name", OPTIONS)
def test_gives_what_the_reference_gives(monkeypatch, name):
    monkeypatch.setenv(SETTING, "reference")
    expected, counts = run("eager", 24, shapes=SHAPES, **OPTIONS[name])
    monkeypatch.setenv(SETTING, "compiled")
    actual, actual_counts = run("jit", 24, shapes=SHAPES, **OPTIONS[name])
    assert actual_counts == counts
    if name not in ROUNDED:
        assert_same(expected, actual)
    assert list(actual) == list(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(
            actual[path], value, rtol=1e-4, atol=1e-5, err_msg=path
        )


def apply(optimizer, variables, gradients):
    optimizer.apply(gradients, variables)


@pytest.mark.parametrize("dtype", ("float32", "float64", "float16", "bfloat16"))
@pytest.mark.parametrize("given", ("float32", "float64", "float16", "bfloat16"))
def test_gives_it_in_every_dtype_for_200_steps(monkeypatch, dtype, given):
    """Bit for bit."""
    shapes = ((37, 5), (9_000,), ())
    rng = np.random.default_rng(1)
    series = [heavy_tailed_gradients(rng, shape, 200) for shape in shapes]
    results = []
    for kernel in ("reference", "compiled"):
        monkeypatch.setenv(SETTING, kernel)
        variables = make_variables(
            [np.ones(shape, "float32") for shape in shapes], dtype=dtype
        )
        optimizer = keras_adamax.AdamaxClipped(
            0.01, exclude_from_clipping=["weight_2"]
        )
        optimizer.build(variables)

        step = functools.partial(apply, optimizer, variables)
        if kernel == "compiled":
            step = tf.function(step, jit_compile=True)
        for gradients in zip(*series, strict=True):
            step([tf.cast(tf.constant(g, "float64"), given) for g in gradients])
        results.append(state_of(optimizer, variables))
    assert_same(*results)


def test_follows_the_oracle(monkeypatch):
    monkeypatch.setenv(SETTING, "compiled")
    rng = np.random.default_rng(2)
    start = np.asarray(rng.normal(size=(40, 2_500)), "float32")
    [variable] = make_variables([start])
    optimizer = keras_adamax.AdamaxClipped(0.01)
    step = make_step("jit", optimizer, [variable])
    oracle = AdamaxClippedOracle([start], learning_rate=0.01, dtypes="float32")
    for gradient in heavy_tailed_gradients(rng, start.shape, 50):
        gradient = gradient.astype("float32")
        step([gradient])
        oracle.step([gradient])
    for name, actual in (
        ("w", variable),
        ("m", optimizer._momentums[0]),
        ("u", optimizer._norms[0]),
    ):
        error = abs(np.asarray(actual.value, "float64") - getattr(oracle, name))
        assert (error <= getattr(oracle, name + "_error")[0]).all(), name
    [clipped] = optimizer.clip_statistics().clipped.values()
    assert abs(clipped - oracle.clipped[0]) <= oracle.uncertain[0]


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (np.inf, np.nan)])
def test_nan_spreads_and_inf_is_clipped(monkeypatch, values):
    results = []
    for kernel, loop in (("reference", "eager"), ("compiled", "jit")):
        monkeypatch.setenv(SETTING, kernel)
        results.append(run(loop, 12, shapes=((37, 5),), nonfinite=values))
    (expected, expected_counts), (actual, counts) = results
    assert counts == expected_counts
    assert_same(expected, actual)


@pytest.mark.parametrize("dtype", ("float32", "float64", "float16", "bfloat16"))
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_one_value_that_is_not_finite_is_found(dtype, value):
    values = np.full(70_001, float(tf.as_dtype(dtype).max))

    @tf.function(jit_compile=True)
    def are_finite(tensor):
        assert _tensorflow_in_xla.serves("compiled", [tensor.dtype])
        return _tensorflow_in_xla.are_finite(
            [tf.zeros((0, 3)), tensor, tf.ones(())]
        )

    assert are_finite(tf.constant(values, dtype))
    values[69_999] = value
    assert not are_finite(tf.constant(values, dtype))


def make(shape=(300, 200), **options):
    [variable] = make_variables([np.ones(shape, "float32")])
    optimizer = keras_adamax.AdamaxClipped(0.1, **options)
    optimizer.build([variable])
    return optimizer, variable


def forms_of(optimizer):
    """The form of each traced update."""
    return [key[0] for key in optimizer._compiled_updates]


def address(tensor):
    return np.from_dlpack(tensor).__array_interface__["data"][0]


class TestWhere:
    def test_what_xla_compiles_is_recognized(self):
        seen = []

        def look():
            seen.append(_tensorflow_in_xla.is_compiled_by_xla())
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
        monkeypatch.setattr(_tensorflow_in_xla, "_call", None)
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
        step = tf.function(functools.partial(apply, optimizer, [variable]))
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
            seen.append(_tensorflow_in_xla.serves("auto", [tf.int32]))
            seen.append(_tensorflow_in_xla.serves("auto", [tf.float32]))

        look()
        assert seen == [False, True]


class TestMemory:
    def test_updates_where_the_state_lies(self):
        optimizer, variable = make()
        step = make_step("jit", optimizer, [variable])
        state = [variable, *optimizer._momentums, *optimizer._norms]
        # Initial values are tensors of somebody else.
        step([np.ones((300, 200))])
        before = [address(v.value.read_value()) for v in state]
        for _ in range(3):
            step([np.ones((300, 200))])
        assert [address(v.value.read_value()) for v in state] == before

    @pytest.mark.parametrize("skip_nonfinite", (False, True))
    def test_a_step_that_is_taken_copies_nothing(self, skip_nonfinite):
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

    def test_what_was_read_keeps_its_value(self):
        optimizer, variable = make()
        state = [variable, *optimizer._momentums, *optimizer._norms]
        state.append(optimizer._clip_counts)
        read = [v.value.read_value() for v in state]
        copies = [np.array(value) for value in read]

        @tf.function(jit_compile=True)
        def step(gradient):
            old = variable.value.read_value()
            optimizer.apply([gradient], [variable])
            return old, variable.value.read_value()

        for _ in range(2):
            before = variable.numpy()
            old, new = step(tf.ones((300, 200)))
            np.testing.assert_array_equal(old, before)
            np.testing.assert_array_equal(new, variable.numpy())
            np.testing.assert_array_less(new, old)
        for value, copy, changed in zip(read, copies, state, strict=True):
            np.testing.assert_array_equal(value, copy)
            assert np.any(np.asarray(changed.value) != copy)

    def test_a_gradient_that_is_the_weight(self, monkeypatch):
        """Of half the squares' sum; both may be one tensor."""
        results = []
        for kernel, jit_compile in (("reference", False), ("compiled", True)):
            monkeypatch.setenv(SETTING, kernel)
            optimizer, variable = make()

            def apply_weight(optimizer, variable):
                optimizer.apply([variable.value.read_value()], [variable])

            step = tf.function(
                functools.partial(apply_weight, optimizer, variable),
                jit_compile=jit_compile,
            )
            for _ in range(5):
                step()
            results.append(state_of(optimizer, [variable]))
        assert_same(*results)


def test_steps_in_many_threads():
    """Blocks of one step never go to another."""
    pairs = [make((700, 500)) for _ in range(4)]
    steps = [make_step("jit", o, [v]) for o, v in pairs]
    gradients = [np.full((700, 500), i + 1.0, "float32") for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            list(pool.map(lambda s, g: s([g]), steps, gradients))
    for (optimizer, variable), gradient in zip(pairs, gradients, strict=True):
        alone, weight = make((700, 500))
        for _ in range(8):
            make_step("eager", alone, [weight])([gradient])
        assert_same(state_of(alone, [weight]), state_of(optimizer, [variable]))


def test_exclusions_are_read_in_every_step():
    """A loaded state may change them, and no trace starts anew for it."""
    optimizer, variable = make(exclude_from_clipping=["weight_0"])
    step = tf.function(
        lambda g: optimizer.apply([g], [variable]), jit_compile=True
    )
    [exclusions] = [
        v for v in optimizer.variables if v.name == "clipping_exclusions"
    ]
    for excluded, norm, counted in ((1.0, 1.0, 0), (0.0, 1e-4, 60_000)):
        exclusions.assign([excluded])
        optimizer._norms[0].assign(tf.zeros((300, 200)))
        step(tf.ones((300, 200)))
        np.testing.assert_allclose(optimizer._norms[0].value, norm)
        statistics = optimizer.clip_statistics()
        assert sum(statistics.counted.values()) == counted
        assert sum(statistics.clipped.values()) == counted


@pytest.mark.parametrize("name", ("UPDATE", "ADD_COUNTS"))
def test_what_does_not_fit_is_refused(name):
    handler = getattr(_cpu_library, name)

    @tf.function(jit_compile=True)
    def call():
        assert _tensorflow_in_xla.serves("compiled", [])
        ones = tf.ones(3)
        return _tensorflow_in_xla._call(
            handler, [ones], [ones], {"clips": "1 : i64"}
        )

    with pytest.raises(tf.errors.OpError, match="does not fit this handler"):
        call()


SCRIPT = """
import os
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, keras_adamax, tensorflow as tf
from keras_adamax.kernels import _cpu_library, _tensorflow_in_xla
{before}
variable = keras.Variable(np.ones(3, "float32"), name="weight")
optimizer = keras_adamax.AdamaxClipped(skip_nonfinite=True)
optimizer.build([variable])
@tf.function(jit_compile=True)
def step():
    optimizer.apply([tf.ones(3)], [variable])
step()
assert optimizer.clip_rate() == 1.0
[key] = optimizer._compiled_updates
print(key[0])
"""


def start(before="", **environment):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        env={**os.environ, **environment},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output.strip(), errors


class TestCompilation:
    def test_by_two_processes_at_a_time(self, tmp_path):
        both = [start(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
        assert [finish(process)[0] for process in both] == ["calls"] * 2
        # One library, and nothing else.
        [_] = (tmp_path / "keras_adamax").iterdir()

    def test_without_a_compiler(self, tmp_path):
        process = start(CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
        output, errors = finish(process)
        assert output == "fused"
        # Nobody is nagged.
        assert "keras_adamax" not in errors

    @pytest.mark.parametrize(
        "before",
        (
            # As where XLA has another interface, ...
            "_tensorflow_in_xla._register = lambda: None",
            # ... reads other modules, ...
            "_tensorflow_in_xla._VERSION = 1_000",
            # ... or TensorFlow is organized in another way.
            "from tensorflow.compiler.tf2xla.python import xla; "
            "del xla.call_module",
        ),
    )
    def test_where_xla_cannot_call_it(self, before):
        assert finish(start(before))[0] == "fused"

    def test_asked_for_where_xla_cannot_call_it(self, monkeypatch):
        _tensorflow_in_xla._failure.cache_clear()
        monkeypatch.setattr(_tensorflow_in_xla, "_VERSION", 1_000)
        monkeypatch.setenv(SETTING, "compiled")
        try:
            optimizer, variable = make()
            step = make_step("jit", optimizer, [variable])
            with pytest.raises(RuntimeError, match="must be 'auto', 'fused'"):
                step([np.ones((300, 200))])
        finally:
            _tensorflow_in_xla._failure.cache_clear()
