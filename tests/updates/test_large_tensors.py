"""Variables of 2^31 elements and more: no kernel counts a wrong number.

None of them is ever in memory: shapes are traced, values are broadcast within
a compiled function, or the pages of an array are all the same.
"""

import math
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_adamax import AdamaxClipped, exact_totals
from keras_adamax.updates import xla
from tests.gradients import numpy
from tests.support import BACKEND

SHAPES = ((2**31,), (2**31 + 5,), (2**17, 2**15), (3, 2**31), (2**31, 1))
SIZES = (2**31 - 1, 2**31, 2**31 + 5, 2**32 + 3)


def number(digits):
    """The integers that digits, or integers, stand for."""
    values = numpy(digits).astype("float64")
    if values.ndim == 1:
        return [int(v) for v in values]
    return [int(low) + 2**20 * int(high) for low, high in values]


def compiled(function):
    """A function that XLA compiles as a whole."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


needs_xla = pytest.mark.skipif(BACKEND == "torch", reason="torch has no XLA")


@needs_xla
class TestXla:
    @pytest.mark.parametrize("size", SIZES[1:])
    def test_counts_every_third_element(self, size):
        """All are really looked at, in slabs, which stay in the caches."""

        def count(zero):
            i = ops.arange(2**14, dtype="int32") % 3 + zero
            pattern = ops.broadcast_to(
                ops.expand_dims(i, 0), (-(-size // 2**14), 2**14)
            )
            values = ops.reshape(pattern, (-1,))[:size]
            parts = [
                xla.parts(predicate, [values], True)
                for predicate in (lambda x: x >= 0, lambda x: x >= 1)
            ]
            return xla.totals(parts, size)

        whole, rest = divmod(size, 2**14)
        kept = np.arange(2**14) % 3 >= 1
        expected = whole * int(kept.sum()) + int(kept[:rest].sum())
        counted = compiled(count)(ops.zeros((), "int32"))
        assert number(counted) == [size, expected]

    @pytest.mark.parametrize("shape", [(3, 2**16, 2**14), (5, 2**30)])
    def test_counts_along_axes(self, shape):
        def count(one):
            ones = ops.broadcast_to(one, shape)
            parts = [xla.parts(lambda x: x > 0, [ones], False)]
            return xla.totals(parts, math.prod(shape))

        assert number(compiled(count)(ops.ones((), "uint8"))) == [
            math.prod(shape)
        ]

    def test_many_tensors_are_not_finite(self):
        """2^32 values: an int32 would hold 0."""

        def are_finite(value):
            tensors = [ops.broadcast_to(value, (2**25,))] * 128
            return [xla.are_finite(tensors, s) for s in (True, False)]

        check = compiled(are_finite)
        assert not any(map(bool, check(ops.convert_to_tensor(math.nan))))
        assert all(map(bool, check(ops.ones(()))))

    @pytest.mark.parametrize("excluding", [False, True])
    def test_next_counts(self, excluding):
        shapes = [(2**31, 3), (5,), (2**33 + 1,)]
        rows = exact_totals.rows_from_totals([(0, 0), (2**50, 2**51), (1, 7)])
        clipped = exact_totals.digits([2**32 + 9, 3, 2**31])
        exclusions = ops.convert_to_tensor([1.0, 0.0, -5.0])
        rows = xla.next_counts(
            ops.convert_to_tensor(rows),
            clipped,
            shapes,
            (0, 1, 2),
            exclusions if excluding else None,
        )
        first = 0 if excluding else 3 * 2**31
        assert exact_totals.totals_from_rows(numpy(rows)) == [
            (2**32 + 9, first),
            (2**50 + 3, 2**51 + 5),
            (2**31 + 1, 2**33 + 8),
        ]


class TestCount:
    """What the reference and sparse gradients count with."""

    @pytest.mark.parametrize(
        "times", [1, 0, 64, 2**20 + 1, 2**30, 2**31 + 3, 5 * 2**32 + 7]
    )
    def test_of_rows(self, times):
        mask = np.arange(50) % 3 != 1
        digits = exact_totals.count(ops.convert_to_tensor(mask), times)
        assert number(digits) == [int(mask.sum()) * times]

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (3, 4, 5)])
    def test_of_shapes(self, shape):
        mask = np.random.default_rng(0).random(shape) < 0.5
        digits = exact_totals.count(ops.convert_to_tensor(mask))
        assert number(digits) == [int(mask.sum())]

    @pytest.mark.parametrize("shape", [(), (9,), (2, 3), (2, 3, 4)])
    @pytest.mark.parametrize("largest", [1, 2**28, 2**30, 2**31 - 1])
    def test_sums_do_not_overflow(self, shape, largest):
        counts = ops.full(shape, largest, dtype="int32")
        parts = exact_totals.sums(counts, largest)
        assert all(tuple(part.shape) == (1,) for part in parts)
        total = sum(int(numpy(part)[0]) for part in parts)
        assert total == largest * math.prod(shape)
        digits = exact_totals.digits_of_sums(
            ops.expand_dims(ops.concatenate(parts), 0)
        )
        assert number(digits) == [total]

    @pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs are its own")
    def test_of_an_unknown_shape(self):
        import tensorflow as tf

        @tf.function(
            input_signature=[tf.TensorSpec((None,), tf.bool)], autograph=False
        )
        def count(mask):
            return exact_totals.count(mask, times=2**31 + 3)

        assert number(count(tf.constant([True, False, True]))) == [2**32 + 6]

    @pytest.mark.skipif(BACKEND == "jax", reason="JAX has no int64")
    def test_integers_of_the_backend(self):
        totals = [0, 2**31 - 1, 2**31, 2**32 + 5, 2**42 + 1]
        tensor = ops.cast(ops.convert_to_tensor(np.array(totals)), "int64")
        assert number(exact_totals.digits(tensor)) == totals

    def test_integers_of_python(self):
        totals = [0, 2**31 - 1, 2**31, 2**32 + 5, 2**42 + 1]
        assert number(exact_totals.digits(totals)) == totals
        assert number(exact_totals.digits(np.array(totals))) == totals


def test_rates_weigh_by_exact_sizes():
    rows = np.zeros((2, exact_totals.ROW_LENGTH), "float32")
    clipped, counted = [2**31 + 1, 3], [2**33 + 5, 9]
    for _ in range(3):
        rows = numpy(
            exact_totals.add_to_rows(
                ops.convert_to_tensor(rows), clipped, counted
            )
        ).astype("float32")
    optimizer = AdamaxClipped()
    optimizer.build([keras.Variable(np.zeros(1), name=n) for n in "ab"])
    assert optimizer.clip_statistics(rows).counted == {
        "a": 3 * (2**33 + 5),
        "b": 27,
    }
    optimizer.clip_counts.assign(rows)
    assert optimizer.clip_rate() == (2**31 + 4) / (2**33 + 14)
    assert optimizer.clip_rates()["a"] == (2**31 + 1) / (2**33 + 5)


@pytest.mark.skipif(BACKEND != "jax", reason="shapes are traced by JAX")
class TestJax:
    @pytest.mark.parametrize("kernel", ["auto", "fused", "reference"])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("on_one_cpu", [True, False])
    def test_a_step_is_traced(self, monkeypatch, kernel, shape, on_one_cpu):
        import jax
        import jax.numpy as jnp

        import keras_adamax.updates.jax as kernels

        monkeypatch.setenv("KERAS_ADAMAX_KERNEL", kernel)
        monkeypatch.setattr(kernels, "_is_on_one_cpu", lambda: on_one_cpu)

        def step():
            variables = [
                keras.Variable(initializer="zeros", shape=s, dtype="bfloat16")
                for s in (shape, (3,))
            ]
            optimizer = AdamaxClipped(skip_nonfinite=True)
            optimizer.build(variables)
            gradients = [jnp.ones(v.shape, v.dtype) for v in variables]
            optimizer.apply(gradients, variables)
            return [v.value for v in (*variables, *optimizer.variables)]

        results = jax.eval_shape(step)
        assert [r.shape for r in results[:2]] == [shape, (3,)]

    def test_the_library_counts(self):
        """Infinities of 4 GiB, in the memory of 2 MiB, by XLA's handler."""
        import jax
        import jax.numpy as jnp

        from keras_adamax.native import jax as native_jax
        from keras_adamax.native import supported
        from tests.updates.repeated import repeated

        assert native_jax.serves("compiled", [])
        size = 2**31 + 5
        array = repeated(math.inf, size, "float16")
        values = jax.dlpack.from_dlpack(array, copy=False)
        assert values.unsafe_buffer_pointer() == array.ctypes.data
        call = jax.ffi.ffi_call(
            supported.COUNT_NONFINITE,
            jax.ShapeDtypeStruct((2, exact_totals.DIGITS), "float32"),
        )
        assert number(call(values, jnp.ones(3))) == [size, 0]
        assert number(native_jax.count_nonfinite([values])) == [size]

    @pytest.mark.parametrize("dtype", ["int32", "float32"])
    def test_room_for_other_counts_is_refused(self, dtype):
        """A program of an older version would lack the memory."""
        import jax
        import jax.numpy as jnp

        from keras_adamax.native import jax as native_jax
        from keras_adamax.native import supported

        assert native_jax.serves("compiled", [])
        call = jax.ffi.ffi_call(
            supported.COUNT_NONFINITE, jax.ShapeDtypeStruct((1,), dtype)
        )
        with pytest.raises(Exception, match="does not fit this handler"):
            jax.block_until_ready(call(jnp.ones(3)))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs are its own")
class TestTensorFlow:
    @pytest.mark.parametrize("kernel", ["auto", "fused", "reference"])
    @pytest.mark.parametrize("shape", SHAPES[:3])
    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_a_step_is_traced(self, monkeypatch, kernel, shape, jit_compile):
        """With variables that have no memory."""
        import tensorflow as tf
        from tensorflow.python.ops import resource_variable_ops

        monkeypatch.setenv("KERAS_ADAMAX_KERNEL", kernel)
        optimizer = AdamaxClipped(skip_nonfinite=True)
        optimizer.build([keras.Variable(np.zeros(3, "float32"))])

        def uninitialized(dtype):
            return resource_variable_ops.UninitializedVariable(
                shape=shape, dtype=dtype, trainable=False
            )

        weight = uninitialized(tf.bfloat16)
        optimizer._momentums[0] = uninitialized(tf.float32)
        optimizer._norms[0] = uninitialized(tf.float32)
        optimizer._trainable_variables[0] = weight
        key = optimizer._var_key(weight)
        optimizer._trainable_variables_indices = {key: 0}

        @tf.function(jit_compile=jit_compile, autograph=False)
        def step(gradient):
            optimizer.apply([gradient], [weight])

        graph = step.get_concrete_function(tf.TensorSpec(shape, tf.bfloat16))
        assert "AssignVariableOp" in str(graph.graph.as_graph_def()) or (
            "KerasAdamaxUpdate" in str(graph.graph.as_graph_def())
        )

    def test_a_row_of_more_than_a_block(self, monkeypatch):
        import tensorflow as tf

        totals, weights = [], []
        for kernel in ("compiled", "reference"):
            monkeypatch.setenv("KERAS_ADAMAX_KERNEL", kernel)
            rng = np.random.default_rng(0)
            variable = keras.Variable(
                np.zeros((3, 70_001), "float32"), name="table"
            )
            optimizer = AdamaxClipped(clip_epsilon=0.5)
            optimizer.build([variable])
            for _ in range(3):
                gradient = tf.IndexedSlices(
                    tf.constant(rng.normal(size=(2, 70_001)), tf.float32),
                    tf.constant([2, 0]),
                )
                optimizer.apply([gradient], [variable])
            totals.append(optimizer.clip_statistics())
            weights.append(numpy(variable))
        assert totals[0] == totals[1]
        assert totals[0].counted["table"] == 6 * 70_001
        np.testing.assert_array_equal(*weights)


@pytest.mark.skipif(BACKEND != "torch", reason="calls torch's own kernels")
class TestTorch:
    @staticmethod
    def step(optimizer, weights, tensors):
        from keras_adamax.backends import torch_tensors
        from keras_adamax.backends.step import Step

        momentums, norms, gradients = tensors
        step = Step(
            kernel="compiled",
            indices=(0,),
            gradients=gradients,
            weights=weights,
            momentums=momentums,
            norms=norms,
            dtype="float32",
            learning_rate=optimizer.learning_rate,
            hyperparameters=optimizer._hyperparameters_of_step,
            has_schedules=False,
            clip_gradients=True,
            exclusions=None,
            clip_counts=optimizer.clip_counts,
            measures=False,
            kept={},
        )
        return step, torch_tensors.Tensors(
            [0], gradients, weights, momentums, norms
        )

    @pytest.mark.skipif(
        sys.platform != "linux", reason="maps pages as Linux does"
    )
    def test_the_library_counts(self):
        """2^31 + 5 updates, in the memory of 8 MiB."""
        import torch

        from keras_adamax.native import torch as native_torch
        from tests.updates.repeated import repeated

        size = 2**31 + 5
        # Bounds stay at 1, so that every element is clipped every time.
        optimizer = AdamaxClipped(
            learning_rate=0.0, beta_1=0.0, clip_multiplier=1, clip_epsilon=0.5
        )
        optimizer.clip_epsilon = 0
        optimizer.build([keras.Variable(np.zeros(1, "float32"), name="w")])
        weight, momentum, norm, gradient = (
            torch.from_numpy(repeated(value, size, "float32"))
            for value in (3.0, 0.0, 1.0, 2.0)
        )
        step, tensors = self.step(
            optimizer, [weight], ([momentum], [norm], [gradient])
        )
        for _ in range(2):
            native_torch.update(step, tensors)
        totals = optimizer.clip_statistics()
        assert totals.clipped == totals.counted == {"w": 2 * size}
        assert optimizer.clip_rate() == 1.0
        assert (momentum[-1], norm[-1], weight[-1]) == (1.0, 1.0, 3.0)

    @pytest.mark.parametrize("size", SIZES)
    def test_the_other_kernels_count(self, size):
        """They end in this: counts of torch's 64-bit integers."""
        import torch

        from keras_adamax.backends import torch_tensors

        optimizer = AdamaxClipped()
        optimizer.build([keras.Variable(np.zeros(1, "float32"), name="w")])
        step, _ = self.step(optimizer, [], ([], [], []))
        for _ in range(2):
            torch_tensors.add_counts(
                step, [0], torch.tensor([size - 1]), [size]
            )
        totals = optimizer.clip_statistics()
        assert totals.clipped == {"w": 2 * size - 2}
        assert totals.counted == {"w": 2 * size}

    def test_sums_of_booleans_are_64_bit(self):
        """On devices a tensor is reduced at once, compiled or not."""
        import torch

        from keras_adamax.updates import torch_device

        vectors = [torch.ones(3, device="meta") for _ in range(4)]
        [counts] = torch_device._rule(
            *vectors,
            torch.ones(7, device="meta"),
            None,
            True,
            False,
            sums=True,
        )
        assert counts.dtype == torch.int64
