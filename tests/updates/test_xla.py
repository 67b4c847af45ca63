"""The form for XLA: the reference's results on TensorFlow and JAX."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_adamax
from keras_adamax import updates
from keras_adamax.kernel_choice import SETTING
from keras_adamax.updates import xla
from tests.native import compiled
from tests.support import BACKEND, LOOPS, assert_same, make_step, state_of
from tests.updates.runs import (
    OPTIONS,
    WEIGHT_PRECISION,
    assert_equal_up_to_rounding,
    make,
    run,
)

if BACKEND == "torch":
    pytest.skip("torch has kernels of its own", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, loop",
    [(options, LOOPS[-1]) for options in OPTIONS.values()]
    + [({}, loop) for loop in LOOPS[:-1]],
    ids=[*OPTIONS, *LOOPS[:-1]],
)
def test_gives_what_the_reference_gives(monkeypatch, options, loop):
    if "beta_2" in options or "accumulat" in str(options):
        # The bounds below hold for the norm's usual decay.
        tolerance_steps = 2000
    else:
        tolerance_steps = 24
    monkeypatch.setenv(SETTING, "reference")
    expected, expected_counts = run(LOOPS[-1], 24, **options)
    monkeypatch.setenv(SETTING, "fused")
    actual, counts = run(loop, 24, **options)
    assert counts == expected_counts
    assert_equal_up_to_rounding(actual, expected, tolerance_steps)


# In TensorFlow's plain graph, XLA compiles the update alone.
@pytest.mark.slow
@pytest.mark.parametrize(
    "loop", [x for x in LOOPS if x in ("graph", *compiled.COMPILED_BY_XLA)]
)
@pytest.mark.parametrize(
    "dtype",
    # JAX has no float64 unless it is told to.
    [d for d in WEIGHT_PRECISION if BACKEND != "jax" or d != "float64"],
)
def test_gives_it_in_every_dtype_for_200_steps(monkeypatch, dtype, loop):
    shapes = ((37, 5), (9_000,), ())
    options = {"exclude_from_clipping": ["weight_2"], "shapes": shapes}
    monkeypatch.setenv(SETTING, "reference")
    expected, expected_counts = run(LOOPS[-1], 200, dtype, **options)
    monkeypatch.setenv(SETTING, "fused")
    actual, counts = run(loop, 200, dtype, **options)
    assert counts == expected_counts
    assert_equal_up_to_rounding(actual, expected, 200, dtype)


@pytest.mark.parametrize("loop", LOOPS)
def test_follows_the_oracle(monkeypatch, loop):
    monkeypatch.setenv(SETTING, "fused")
    compiled.assert_follows_the_oracle(loop, bias_correction=True)


class TestOtherDevices:
    """What XLA is given for a GPU, compiled for the CPU."""

    def leave_cpu(self, monkeypatch):
        kernel = updates.load()
        monkeypatch.setattr(kernel, "_is_on_cpu", lambda: False)
        monkeypatch.setattr(xla, "_slabs", fail)
        if BACKEND == "tensorflow":
            looking = functools.cache(kernel._looking.__wrapped__)
            monkeypatch.setattr(kernel, "_looking", looking)
            monkeypatch.setattr(kernel, "_assign", fail)
        else:
            monkeypatch.setattr(kernel.native_jax, "update", fail)
            monkeypatch.setattr(kernel.jax.lax, "cond", fail)

    @pytest.mark.slow
    @pytest.mark.parametrize("loop", [x for x in LOOPS if x != "eager"])
    @pytest.mark.parametrize(
        "options",
        (
            {"exclude_from_clipping": ["weight_0", "weight_2"]},
            {"skip_nonfinite": True},
            {"skip_nonfinite": True, **OPTIONS["decayed, averaged"]},
        ),
        ids=("excluded", "skipping", "skipping all"),
    )
    def test_give_what_the_reference_gives(self, monkeypatch, options, loop):
        bad = (np.nan, np.inf) if "skip_nonfinite" in options else ()
        options = {"nonfinite": bad, **options}
        monkeypatch.setenv(SETTING, "reference")
        expected, expected_counts = run(LOOPS[-1], 12, **options)
        monkeypatch.setenv(SETTING, "auto")
        self.leave_cpu(monkeypatch)
        actual, counts = run(loop, 12, **options)
        assert counts == expected_counts
        [skipped] = [
            v for k, v in actual.items() if k.endswith("/skipped_steps")
        ]
        assert skipped == (1 if bad else 0)
        assert all(np.isfinite(value).all() for value in actual.values())
        assert_equal_up_to_rounding(actual, expected, 12)


def fail(*args, **kwargs):
    raise AssertionError("this is for CPUs alone")


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (np.inf, np.nan)])
@pytest.mark.parametrize("loop", LOOPS)
def test_nan_spreads_and_inf_is_clipped(monkeypatch, loop, values):
    options = {"shapes": ((37, 5),), "nonfinite": values}
    monkeypatch.setenv(SETTING, "reference")
    expected, expected_counts = run(LOOPS[0], 24, **options)
    monkeypatch.setenv(SETTING, "fused")
    actual, counts = run(loop, 24, **options)
    num_nan = sum(map(np.isnan, values))
    # Whether the norm of a weight that is NaN shows it is XLA's affair, and
    # so is whether its gradients go on to be clipped: 12 steps are left.
    difference = (
        counts.clipped["weight_0"] - expected_counts.clipped["weight_0"]
    )
    assert abs(difference) <= 12 * num_nan
    for path, value in expected.items():
        if not path.endswith("_norm"):
            np.testing.assert_array_equal(
                np.isnan(actual[path]), np.isnan(value), err_msg=path
            )
    (weight,) = (v for path, v in actual.items() if path.endswith("weight_0"))
    assert np.isnan(weight).sum() == num_nan


@settings(deadline=None, max_examples=25)
@given(
    size=st.one_of(
        st.integers(0, 70),
        st.integers(-70, 70).map(lambda n: 2**20 + n),
        st.integers(-70, 70).map(lambda n: 2**12 + n),
        st.integers(0, 300_000),
    ),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    in_slabs=st.booleans(),
)
def test_counts_every_element_once(size, share, in_slabs):
    values = np.random.default_rng(size).random(size) < share
    parts = [
        xla.parts(lambda x: x > 0.0, [tensor(x)], in_slabs)
        for x in (values.astype("float32"), np.ones(3, "float32"))
    ]
    assert list(map(int, xla.totals(parts))) == [values.sum(), 3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4_096, 40_000, -1])
@pytest.mark.parametrize("number", [1, 11])
def test_one_value_that_is_not_finite_is_found(value, place, number):
    tensors = [np.zeros((3,), "float32")]
    tensors += [np.zeros((200, 211), "float32") for _ in range(number)]
    assert bool(xla.are_finite(list(map(tensor, tensors)), True))
    tensors[-1].reshape(-1)[place] = value
    for in_slabs in (True, False):
        assert not bool(xla.are_finite(list(map(tensor, tensors)), in_slabs))


def tensor(value):
    return keras.ops.convert_to_tensor(value)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("loop", LOOPS)
def test_some_variables_only_in_any_order(monkeypatch, loop):
    results = []
    for kernel, a_loop in (("reference", LOOPS[0]), ("fused", loop)):
        monkeypatch.setenv(SETTING, kernel)
        optimizer, variables = make(shapes=((4,), (5,), (6,), (7,)))
        # A stateless step takes the order that the optimizer was built with.
        chosen = variables if loop == "stateless" else variables[::-1]
        step = make_step(a_loop, optimizer, chosen)
        rng = np.random.default_rng(2)
        for number in range(6):
            gradients = [
                np.asarray(rng.normal(size=v.shape), "float32") for v in chosen
            ]
            gradients[1 if number < 3 else 2] = None
            step(gradients)
        results.append(
            (state_of(optimizer, variables), optimizer.clip_statistics())
        )
    (expected, expected_counts), (actual, counts) = results
    assert counts == expected_counts
    assert set(counts.counted.values()) != {0}
    assert_equal_up_to_rounding(actual, expected, 6)


def test_a_kernel_that_the_backend_lacks_is_refused(monkeypatch):
    monkeypatch.setenv(SETTING, "eager")
    with pytest.raises(ValueError, match=r"must be one of .*KERNEL='eager'"):
        keras_adamax.AdamaxClipped()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX always has XLA")
def test_without_xla_the_reference_takes_over(monkeypatch):
    from keras_adamax.updates import tensorflow as kernel

    monkeypatch.setenv(SETTING, "reference")
    options = {"skip_nonfinite": True}
    expected, expected_counts = run("graph", 12, **options)
    monkeypatch.setenv(SETTING, "fused")
    monkeypatch.setattr(kernel, "_has_xla", lambda: False)
    actual, counts = run("graph", 12, **options)
    assert counts == expected_counts
    assert_same(expected, actual)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.function")
def test_a_schedule_that_xla_cannot_compile():
    import tensorflow as tf

    class OnTheHost(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return tf.numpy_function(
                lambda s: np.float32(1.5 + s), [step], tf.float32
            )

        def get_config(self):
            return {}

    optimizer, variables = make(clip_multiplier=OnTheHost(), shapes=((4,),))
    step = make_step("graph", optimizer, variables)
    for _ in range(3):
        step([np.ones(4, "float32")])
    # From 1e-4 by 1.5, 2.5 and 3.5.
    norm = keras.ops.convert_to_numpy(optimizer._norms[0])
    np.testing.assert_allclose(
        norm, (1e-4 * 2.5 + 1e-4) * 3.5 + 1e-4, rtol=1e-5
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.function")
@pytest.mark.parametrize("kernel", ("auto", "fused"))
def test_the_compiled_function_is_traced_once(monkeypatch, kernel):
    monkeypatch.setenv(SETTING, kernel)
    optimizer, variables = make()
    for loop in ("eager", "graph", "graph"):
        step = make_step(loop, optimizer, variables)
        for _ in range(3):
            step([np.ones(v.shape, "float32") for v in variables])
    assert len(optimizer._kept_by_kernel["functions"]) == 1


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.function")
@pytest.mark.parametrize("kernel", ("auto", "fused"))
def test_many_optimizers_are_not_blamed_for_tracing(
    monkeypatch, caplog, kernel
):
    monkeypatch.setenv(SETTING, kernel)
    for size in range(1, 13):
        optimizer, variables = make(shapes=((size,),), skip_nonfinite=True)
        make_step("eager", optimizer, variables)([np.ones(size, "float32")])
    assert "retracing" not in caplog.text


@pytest.mark.skipif(BACKEND != "jax", reason="of XLA's report to JAX")
@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_a_step_needs_no_memory_of_the_size_of_the_weights(skip_nonfinite):
    import jax

    optimizer, variables = make(
        shapes=((1024, 1024),), skip_nonfinite=skip_nonfinite
    )
    arguments = (
        [v.value for v in variables],
        [v.value for v in optimizer.variables],
    )
    gradients = [jax.numpy.ones((1024, 1024))]
    compiled = (
        jax.jit(
            lambda values, state, g: optimizer.stateless_apply(
                state, g, values
            ),
            donate_argnums=(0, 1),
        )
        .lower(*arguments, gradients)
        .compile()
    )
    memory = compiled.memory_analysis()
    # A fourth of a byte an element to count, and an int8 as well to look for
    # what is not finite. A copy of the norm would be four bytes.
    assert memory.temp_size_in_bytes < 0.6 * 2**20
    assert memory.alias_size_in_bytes > 12 * 2**20
