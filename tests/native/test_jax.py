"""The compiled update of JAX: what it gives, where, and who steps in."""

import concurrent.futures

import keras
import numpy as np
import pytest

from keras_adamax.kernel_choice import SETTING
from tests.native import compiled
from tests.native.compiled import make, needs_compiler
from tests.support import LOOPS, make_variables
from tests.updates import runs
from tests.updates.runs import OPTIONS

if keras.backend.backend() != "jax":
    pytest.skip("this is a kernel of JAX", allow_module_level=True)

import jax
import jax.numpy as jnp

import keras_adamax
from keras_adamax.native import jax as native_jax
from keras_adamax.native import supported

pytestmark = needs_compiler

DTYPES = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gives_what_the_reference_gives(monkeypatch, options, loop):
    """Bit for bit in an eager step, where XLA fuses nothing."""
    compiled.assert_gives_what_the_reference_gives(
        monkeypatch, loop, is_exact=loop == "eager", **options
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_gives_it_in_every_dtype_for_200_steps(monkeypatch, dtype, given):
    compiled.assert_takes_gradients(monkeypatch, dtype, given)


@pytest.mark.parametrize("dtype", (*DTYPES, "float64"))
def test_gives_it_for_200_steps_where_xla_compiles(monkeypatch, dtype):
    """Up to the rounding of what XLA fuses."""
    results = []
    with jax.enable_x64(dtype == "float64"):
        for kernel in ("reference", "compiled"):
            monkeypatch.setenv(SETTING, kernel)
            results.append(
                runs.run(
                    "stateless",
                    200,
                    dtype,
                    ((37, 5), (9_000,), ()),
                    bias_correction=True,
                    exclude_from_clipping=["weight_2"],
                )
            )
    (expected, expected_counts), (actual, counts) = results
    assert counts == expected_counts
    runs.assert_equal_up_to_rounding(actual, expected, 200, dtype)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("loop", LOOPS)
def test_follows_the_oracle(monkeypatch, loop, dtype):
    monkeypatch.setenv(SETTING, "compiled")
    with jax.enable_x64(dtype == "float64"):
        assert native_jax.serves("compiled", [jnp.ones(3, dtype)])
        compiled.assert_follows_the_oracle(
            loop, dtype=dtype, bias_correction=True
        )


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (np.inf, np.nan)])
def test_nan_spreads_and_inf_is_clipped(monkeypatch, values):
    compiled.assert_nan_spreads_and_inf_is_clipped(monkeypatch, "eager", values)


class TestMemory:
    def analysis(self, monkeypatch, kernel, dtype, **options):
        monkeypatch.setenv(SETTING, kernel)
        variables = make_variables(
            [np.ones(shape, "float32") for shape in ((2048, 1024), (512,))],
            dtype=dtype,
        )
        optimizer = keras_adamax.AdamaxClipped(**options)
        optimizer.build(variables)

        def step(values, state, gradients):
            return optimizer.stateless_apply(state, gradients, values)

        values = [v.value for v in variables]
        compiled = (
            jax.jit(step, donate_argnums=(0, 1))
            .lower(values, [v.value for v in optimizer.variables], values)
            .compile()
        )
        return compiled.memory_analysis()

    @pytest.mark.parametrize("options", ({}, {"skip_nonfinite": True}))
    @pytest.mark.parametrize("kernel", ("compiled", "fused"))
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_updates_where_the_state_lies(
        self, monkeypatch, kernel, options, dtype
    ):
        """1 % of what Keras's Adamax has: weight, gradient and two states.

        In half precision our states are float32. Without the library, XLA
        keeps what it cast on the way there: about 6 bytes an element at most.
        """
        analysis = self.analysis(monkeypatch, kernel, dtype, **options)
        weight = 2048 * 1024 * jnp.dtype(dtype).itemsize
        size = 4 * 2048 * 1024
        is_cast = kernel == "fused" and dtype != "float32"
        limit = 1.6 * size if is_cast else 0.01 * 4 * weight
        assert analysis.temp_size_in_bytes < limit
        # Weight, gradient, two states in float32, and what is small.
        expected = 2 * (weight + size)
        arguments = analysis.argument_size_in_bytes
        assert expected < arguments < 1.001 * expected
        # Weights, momentums and norms are results in the arguments' memory.
        assert analysis.alias_size_in_bytes > weight + 2 * size
        fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        assert fresh < 0.001 * size


def test_a_variable_keeps_its_value_where_nothing_is_donated(monkeypatch):
    monkeypatch.setenv(SETTING, "compiled")
    optimizer, variable = make()
    before = [variable.value, *(v.value for v in optimizer.variables)]
    copies = [np.array(value) for value in before]
    optimizer.apply([jnp.ones((300, 200))], [variable])
    for value, copy in zip(before, copies, strict=True):
        np.testing.assert_array_equal(value, copy)
    np.testing.assert_array_less(variable.value, 1.0)


def stateless(optimizer):
    def step(values, state, gradients):
        return optimizer.stateless_apply(state, gradients, values)

    return step


def arguments(shape=(6, 4), **options):
    optimizer, variable = make(shape, **options)
    state = [v.value for v in optimizer.variables]
    return stateless(optimizer), [variable.value], state


@pytest.mark.parametrize(
    "options", [{}, {"spike_threshold": 0.2, "skip_nonfinite": True}]
)
def test_can_be_differentiated_as_the_reference_can(monkeypatch, options):
    results = []
    for kernel in ("reference", "compiled"):
        monkeypatch.setenv(SETTING, kernel)
        # Of a gradient that is clipped, or the same in all steps, no weight
        # depends.
        step, values, state = arguments(clip_epsilon=10.0, **options)

        def loss(gradient, step=step, values=values, state=state):
            new = values
            for number in range(3):
                new, state = step(new, state, [gradient + number])
            return jnp.sum(new[0] ** 2)

        gradient = jnp.linspace(-2.0, 2.0, 24).reshape(6, 4)
        results.append(jax.jit(jax.grad(loss))(gradient))
    assert np.any(results[0] != 0.0)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_can_be_mapped(monkeypatch):
    """As an ensemble is trained: other weights and gradients, one step."""
    monkeypatch.setenv(SETTING, "compiled")
    step, values, state = arguments()
    gradients = jnp.linspace(-2.0, 2.0, 72).reshape(3, 6, 4)
    mapped, _ = jax.vmap(step, in_axes=(None, None, [0]))(
        values, state, [gradients]
    )
    for i in range(3):
        new, _ = step(values, state, [gradients[i]])
        np.testing.assert_allclose(mapped[0][i], new[0], rtol=1e-6)


def test_steps_in_many_threads(monkeypatch):
    """Blocks of one step never go to another."""
    monkeypatch.setenv(SETTING, "compiled")
    step, values, state = arguments(shape=(700, 500))
    jitted = jax.jit(step)
    gradients = [jnp.full((700, 500), float(i)) for i in range(1, 9)]
    expected = [jitted(values, state, [g]) for g in gradients]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            actual = list(
                pool.map(lambda g: jitted(values, state, [g]), gradients)
            )
            for a, b in zip(
                jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
            ):
                np.testing.assert_array_equal(a, b)


def test_exclusions_are_read_in_every_step(monkeypatch):
    """A loaded state may change them, and no trace starts anew for it."""
    monkeypatch.setenv(SETTING, "compiled")
    optimizer, variable = make((6, 4), exclude_from_clipping=["weight_0"])
    names = [v.name for v in optimizer.variables]
    state = [v.value for v in optimizer.variables]
    jitted = jax.jit(stateless(optimizer))
    for excluded, norm in ((1.0, 1.0), (0.0, 1e-4)):
        state[names.index("clipping_exclusions")] = jnp.full((1,), excluded)
        _, new = jitted([variable.value], state, [jnp.ones((6, 4))])
        np.testing.assert_allclose(new[names.index("weight_0_norm")], norm)


def test_other_dtypes_are_left_to_xla():
    assert not native_jax.serves("auto", [jnp.ones(3, "float8_e4m3fn")])
    assert native_jax.serves("auto", [jnp.ones(3)])


def test_what_does_not_fit_is_refused():
    """XLA gets an error, and memory stays as it was."""
    assert native_jax.serves("compiled", [])
    call = jax.ffi.ffi_call(
        supported.UPDATE,
        [jax.ShapeDtypeStruct((3,), "float32")],
    )
    with pytest.raises(Exception, match="does not fit this handler"):
        jax.block_until_ready(call(jnp.ones(3), clips=np.int64(1)))


SCRIPT = """
import os
os.environ["KERAS_BACKEND"] = "jax"
import keras, numpy as np, keras_adamax
variable = keras.Variable(np.ones(3, "float32"), name="weight")
optimizer = keras_adamax.AdamaxClipped()
optimizer.build([variable])
optimizer.apply([np.ones(3, "float32")], [variable])
assert optimizer.clip_rate() == 1.0
from keras_adamax.native import jax as native_jax
print("compiled" if native_jax.serves("auto", []) else "fused")
"""


@pytest.mark.nightly
class TestCompilation(compiled.CompilationTests):
    arguments = ("-c", SCRIPT)
    served = "compiled"
    other = "fused"
    caches = (native_jax._failure,)
