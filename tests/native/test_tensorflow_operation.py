"""The compiled update of TensorFlow in every loop: what it gives, where."""

import concurrent.futures
import functools
import gc
import pathlib
import weakref

import keras
import numpy as np
import pytest

import keras_adamax
from keras_adamax.kernel_choice import SETTING
from keras_adamax.native import build
from tests.native import compiled
from tests.native.compiled import make, needs_compiler
from tests.oracle import heavy_tailed_gradients
from tests.support import (
    LOOPS,
    assert_same,
    make_step,
    make_variables,
    state_of,
)
from tests.updates.runs import OPTIONS

if keras.backend.backend() != "tensorflow":
    pytest.skip("this is a kernel of TensorFlow", allow_module_level=True)

import tensorflow as tf

from keras_adamax.native import tensorflow_operation

pytestmark = needs_compiler

DTYPES = ("float32", "float64", "float16", "bfloat16")
# XLA computes with what these add to the rule, or with a step's scalars, and
# rounds a product and a sum once.
ROUNDED = ("corrected", "scheduled", "decayed, averaged", "accumulated")
ROUNDED += ("scaled",)


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", OPTIONS)
def test_gives_what_the_reference_gives(monkeypatch, name, loop):
    compiled.assert_gives_what_the_reference_gives(
        monkeypatch,
        loop,
        is_exact=loop != "jit" or name not in ROUNDED,
        **OPTIONS[name],
    )


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", (None, True))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_gives_it_in_every_dtype_for_200_steps(
    monkeypatch, dtype, given, jit_compile
):
    """Bit for bit."""
    compile_step = functools.partial(tf.function, jit_compile=True)
    compiled.assert_takes_gradients(
        monkeypatch, dtype, given, *([compile_step] if jit_compile else [])
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_follows_the_oracle(monkeypatch, loop):
    monkeypatch.setenv(SETTING, "compiled")
    compiled.assert_follows_the_oracle(loop, bias_correction=True)


@pytest.mark.parametrize("loop", ("graph", "jit"))
@pytest.mark.parametrize("values", [(np.inf, -np.inf), (np.inf, np.nan)])
def test_nan_spreads_and_inf_is_clipped(monkeypatch, loop, values):
    compiled.assert_nan_spreads_and_inf_is_clipped(monkeypatch, loop, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_one_value_that_is_not_finite_is_found(dtype, value):
    largest = float(tf.as_dtype(dtype).max)
    values = np.full(70_001, largest)
    values[:2] = [-largest, 0.0]
    tensors = [tf.zeros((0, 3)), tf.constant(values, dtype), tf.ones(())]
    count = tensorflow_operation.count_nonfinite
    assert count(tensors).numpy().tolist() == [0, 0, 0]
    values[69_999] = value
    tensors[1] = tf.constant(values, dtype)
    assert count(tensors).numpy().tolist() == [0, 1, 0]


@pytest.mark.parametrize("jit_compile", (False, True))
@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
def test_variables_of_tensorflow(monkeypatch, dtype, jit_compile):
    """Keras's optimizers take them, too; dense, sparse, of another dtype."""
    results = []
    for kernel in ("reference", "compiled"):
        monkeypatch.setenv(SETTING, kernel)
        variables = [tf.Variable(tf.ones((5, 3), dtype)) for _ in range(3)]
        optimizer = keras_adamax.AdamaxClipped(0.1)
        optimizer.build(variables)

        def step(optimizer, variables, size):
            gradient = tf.fill((5, 3), size)
            rows = tf.IndexedSlices(gradient[:2], [1, 1], [5, 3])
            # XLA has a form of its own for rows, and rounds once.
            last = gradient if jit_compile else rows
            optimizer.apply(
                [tf.cast(gradient, dtype), gradient, last], variables
            )

        take = functools.partial(step, optimizer, variables)
        if jit_compile and kernel == "compiled":
            take = tf.function(take, jit_compile=True)
        for size in (1.0, 3.0, 2.0):
            take(tf.constant(size))
        results.append(state_of(optimizer))
        results[-1].update(
            (f"raw {i}", v.numpy()) for i, v in enumerate(variables)
        )
        results[-1]["counts"] = optimizer.clip_statistics()
    assert results[0].pop("counts") == results[1].pop("counts")
    assert_same(*results)


def address(tensor):
    if tensor.dtype == tf.bfloat16:
        # NumPy does not know it.
        tensor = tf.bitcast(tensor, tf.uint16)
    return np.from_dlpack(tensor).__array_interface__["data"][0]


class TestRows:
    """Sparse gradients: rows of a variable, which may repeat."""

    def run(self, monkeypatch, kernel, loop, shape, lengths, **options):
        monkeypatch.setenv(SETTING, kernel)
        dtype = options.pop("dtype", "float32")
        given = options.pop("given", dtype)
        rng = np.random.default_rng(3)
        variables = make_variables(
            [rng.normal(size=shape), np.ones(4)], dtype=dtype
        )
        optimizer = keras_adamax.AdamaxClipped(0.01, **options)
        optimizer.build(variables)

        def apply(values, rows, dense):
            sparse = tf.IndexedSlices(values, rows, tf.constant(shape))
            optimizer.apply([sparse, dense], variables)

        if loop == "graph":
            apply = tf.function(apply, reduce_retracing=True)
        for number, length in enumerate(lengths):
            # Half of them to the same few rows.
            rows = rng.integers(0, shape[0], length)
            rows[: length // 2] %= 3
            [values] = heavy_tailed_gradients(rng, (length, *shape[1:]), 1)
            apply(
                tf.cast(tf.constant(values), given),
                tf.constant(rows, ("int32", "int64")[number % 2]),
                tf.ones(4, dtype),
            )
        return state_of(optimizer, variables), optimizer.clip_statistics()

    def compare(self, monkeypatch, loop, *args, **options):
        (expected, expected_counts), (actual, counts) = (
            self.run(monkeypatch, kernel, loop, *args, **options)
            for kernel in ("reference", "compiled")
        )
        assert counts == expected_counts
        assert any(counts.clipped.values()) or "exclude" in str(options)
        assert_same(expected, actual)

    @pytest.mark.slow
    @pytest.mark.parametrize("loop", ("eager", "graph"))
    @pytest.mark.parametrize(
        "options",
        (
            {},
            {"bias_correction": True},
            {"track_clip_rate": False, "clip_multiplier": 1.5},
            {"exclude_from_clipping": ["weight_0"]},
            {"skip_nonfinite": True, "clipvalue": 10.0},
            {"loss_scale_factor": 8.0, "global_clipnorm": 100.0},
        ),
        ids=str,
    )
    def test_gives_what_the_reference_gives(self, monkeypatch, loop, options):
        """Bit for bit."""
        if options.get("track_clip_rate") is False:
            # Nothing is counted, so that is all to compare.
            results = [
                self.run(monkeypatch, kernel, loop, (50, 6), [40, 1], **options)
                for kernel in ("reference", "compiled")
            ]
            assert_same(results[0][0], results[1][0])
            return
        self.compare(monkeypatch, loop, (50, 6), [40, 1, 200, 0, 7], **options)

    @pytest.mark.parametrize(
        "shape, length",
        [
            ((100_000, 3), 50),  # many more rows than there are gradients
            ((4_000, 130), 3_000),  # in several chunks
            ((9,), 30),
            ((5, 2, 3), 30),
            ((5, 0), 3),
            ((1, 40_000), 2),  # a row is larger than a chunk
        ],
    )
    def test_of_every_shape(self, monkeypatch, shape, length):
        self.compare(monkeypatch, "graph", shape, [length] * 4)

    @pytest.mark.parametrize("dtype", ("float64", "float16", "bfloat16"))
    def test_of_every_dtype(self, monkeypatch, dtype):
        self.compare(monkeypatch, "graph", (50, 6), [40] * 60, dtype=dtype)

    @pytest.mark.parametrize(
        "dtype, given", [("bfloat16", "float32"), ("float32", "bfloat16")]
    )
    def test_of_another_dtype(self, monkeypatch, dtype, given):
        self.compare(
            monkeypatch, "graph", (50, 6), [40] * 9, dtype=dtype, given=given
        )

    @pytest.mark.parametrize("rows", ([5], [-1], [0, 2**31 - 1]))
    def test_that_are_not_there_are_refused(self, rows):
        optimizer, variable = make((5, 2))
        before = state_of(optimizer, [variable])
        gradient = tf.IndexedSlices(
            tf.ones((len(rows), 2)), tf.constant(rows), tf.constant([5, 2])
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match="of the 5"):
            optimizer.apply([gradient], [variable])
        assert_same(before, state_of(optimizer, [variable]))

    def test_of_which_nothing_else_is_touched(self):
        """Nor copied: the table stays where it is."""
        optimizer, variable = make((1_000, 8))
        state = [variable, *optimizer._momentums, *optimizer._norms]
        gradient = tf.IndexedSlices(
            tf.ones((2, 8)), tf.constant([3, 3]), tf.constant([1_000, 8])
        )
        addresses = []
        for _ in range(4):
            optimizer.apply([gradient], [variable])
            addresses.append([address(v.value.read_value()) for v in state])
        # Initial values are tensors of somebody else.
        assert addresses[1] == addresses[2] == addresses[3]
        changed = np.unique(np.nonzero(variable.numpy() != 1.0)[0])
        assert list(changed) == [3]

    def test_that_were_read_keep_their_values(self):
        optimizer, variable = make((10, 2))
        read = variable.value.read_value()
        gradient = tf.IndexedSlices(
            tf.ones((1, 2)), tf.constant([3]), tf.constant([10, 2])
        )
        optimizer.apply([gradient], [variable])
        np.testing.assert_array_equal(read, 1.0)
        assert np.all(variable.numpy()[3] < 1.0)


class TestMemory:
    @pytest.mark.parametrize("loop", ("graph", "jit"))
    @pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
    def test_updates_where_the_state_lies(self, loop, dtype):
        [variable] = make_variables([np.ones((300, 200))], dtype=dtype)
        optimizer = keras_adamax.AdamaxClipped(0.1)
        step = make_step(loop, optimizer, [variable])
        state = [variable, *optimizer._momentums, *optimizer._norms]
        # Initial values are tensors of somebody else.
        step([np.ones((300, 200))])
        before = [address(v.value.read_value()) for v in state]
        for _ in range(3):
            step([np.ones((300, 200))])
        assert [address(v.value.read_value()) for v in state] == before

    @pytest.mark.parametrize("kernel", ("compiled", "fused"))
    def test_keeps_no_gradients(self, monkeypatch, kernel):
        monkeypatch.setenv(SETTING, kernel)
        optimizer, variable = make()
        gradient = tf.ones((300, 200))
        optimizer.apply([gradient], [variable])
        kept = weakref.ref(gradient)
        del gradient
        gc.collect()
        assert kept() is None

    @pytest.mark.parametrize("jit_compile", (False, True))
    def test_what_was_read_keeps_its_value(self, jit_compile):
        optimizer, variable = make()
        state = [variable, *optimizer._momentums, *optimizer._norms]
        state.append(optimizer._clip_counts.rows)
        read = [v.value.read_value() for v in state]
        copies = [np.array(value) for value in read]

        @tf.function(jit_compile=jit_compile)
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

    @pytest.mark.parametrize("jit_compile", (False, True))
    def test_a_gradient_that_is_the_weight(self, monkeypatch, jit_compile):
        """Of half the squares' sum; both may be one tensor."""
        results = []
        for kernel in ("reference", "compiled"):
            monkeypatch.setenv(SETTING, kernel)
            optimizer, variable = make()

            def apply(optimizer, variable):
                optimizer.apply([variable.value.read_value()], [variable])

            step = tf.function(
                functools.partial(apply, optimizer, variable),
                jit_compile=jit_compile and kernel == "compiled",
            )
            for _ in range(5):
                step()
            results.append(state_of(optimizer, [variable]))
        assert_same(*results)


@pytest.mark.parametrize("loop", ("graph", "jit"))
def test_steps_in_many_threads(loop):
    """Blocks of one step never go to another."""
    pairs = [make((700, 500)) for _ in range(6)]
    steps = [make_step(loop, o, [v]) for o, v in pairs]
    gradients = [np.full((700, 500), i + 1.0, "float32") for i in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(8):
            list(pool.map(lambda s, g: s([g]), steps, gradients))
    for (optimizer, variable), gradient in zip(pairs, gradients, strict=True):
        alone, weight = make((700, 500))
        for _ in range(8):
            make_step("eager", alone, [weight])([gradient])
        assert_same(state_of(alone, [weight]), state_of(optimizer, [variable]))


def test_one_optimizer_in_many_threads():
    """Each of the updates is whole."""
    optimizer, variable = make((700, 500))
    gradient = tf.ones((700, 500))
    step = tf.function(lambda: optimizer.apply([gradient], [variable]))
    step()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: step(), range(11)))
    norm = np.asarray(optimizer._norms[0].value)
    assert norm.min() == norm.max()
    [counted] = optimizer.clip_statistics().counted.values()
    assert counted == 12 * 700 * 500


@pytest.mark.parametrize("jit_compile", (False, True))
def test_exclusions_are_read_in_every_step(jit_compile):
    """A loaded state may change them, and no trace starts anew for it."""
    optimizer, variable = make(exclude_from_clipping=["weight_0"])
    step = tf.function(
        lambda g: optimizer.apply([g], [variable]), jit_compile=jit_compile
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


def test_other_dtypes_are_left_to_xla():
    assert not tensorflow_operation.serves("auto", [tf.zeros(1, "int32")])
    assert tensorflow_operation.serves("auto", [tf.zeros(1)])


@pytest.mark.parametrize(
    "change",
    (
        {"gradients": [tf.ones(5)]},
        {"gradients": [tf.ones(4, "float64")]},
        {"norms": ["short"]},
        {"norms": ["double"]},
        {"clip_counts": ["w"]},
        {"indices": [1]},
        {"indices": [0, 0]},
        {"gradients": [tf.ones(4), tf.ones(4)]},
        {"exclusions": [tf.zeros(0)]},
    ),
    ids=str,
)
def test_what_does_not_fit_is_refused(change):
    """Nothing is written then."""
    variables = {
        "w": tf.Variable(tf.ones(4)),
        "m": tf.Variable(tf.zeros(4)),
        "u": tf.Variable(tf.zeros(4)),
        "short": tf.Variable(tf.zeros(3)),
        "double": tf.Variable(tf.zeros(4, "float64")),
        "counts": tf.Variable(tf.zeros((1, 6))),
    }
    arguments = {
        "weights": ["w"],
        "momentums": ["m"],
        "norms": ["u"],
        "clip_counts": ["counts"],
        "gradients": [tf.ones(4)],
        "scalars": [tf.constant(0.5)] * 7,
        "exclusions": [],
        "indices": [0],
        "clips": True,
        "measures": 0,
        **change,
    }
    for name in ("weights", "momentums", "norms", "clip_counts"):
        arguments[name] = [variables[v].handle for v in arguments[name]]
    update = tensorflow_operation._operations().keras_adamax_update
    with pytest.raises(tf.errors.InvalidArgumentError, match="do not fit"):
        update(**arguments)
    np.testing.assert_array_equal(variables["w"], 1.0)
    np.testing.assert_array_equal(variables["m"], 0.0)


SCRIPT = """
import os
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, keras_adamax
variable = keras.Variable(np.ones(3, "float32"), name="weight")
optimizer = keras_adamax.AdamaxClipped()
optimizer.build([variable])
optimizer.apply([np.ones(3, "float32")], [variable])
assert optimizer.clip_rate() == 1.0
[key] = optimizer._kept_by_kernel["functions"]
print(key[0])
"""


class TestCompilation(compiled.CompilationTests):
    arguments = ("-c", SCRIPT)
    served = "operation"
    other = "fused"
    is_quiet = False
    caches = (tensorflow_operation._failure, tensorflow_operation._operations)

    def test_another_release_gets_a_library_of_its_own(
        self, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        ran = []
        monkeypatch.setattr(
            build,
            "_run",
            lambda command: (
                ran.append(command),
                _touch(command),
                b"the source",
            )[-1],
        )
        load = build.load.__wrapped__
        paths = [
            load(
                "tensorflow_operation.cpp",
                release=release,
                open_library=lambda p: p,
            )
            for release in ("1.0", "2.0", "1.0")
        ]
        assert paths[0] == paths[2] != paths[1]


def _touch(command):
    if "-o" in command:
        pathlib.Path(command[command.index("-o") + 1]).touch()
