"""torch's kernels: the reference's results, from whatever serves."""

import functools
import pathlib
import subprocess
import sys
import traceback

import keras
import numpy as np
import pytest

import keras_adamax
from tests.native import compiled
from tests.native.compiled import finish, needs_compiler, start
from tests.oracle import heavy_tailed_gradients
from tests.support import assert_same, state_of
from tests.updates import runs
from tests.updates.runs import make

if keras.backend.backend() != "torch":
    pytest.skip("these are the kernels of torch", allow_module_level=True)

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from keras_adamax.backends import torch as backend_module
from keras_adamax.backends import torch_tensors
from keras_adamax.kernel_choice import SETTING
from keras_adamax.native import build
from keras_adamax.native import torch as native_torch
from keras_adamax.updates import torch as kernel_module
from keras_adamax.updates import torch_device, torch_eager

# Small and joined, in one piece, in several, without elements, a scalar.
SHAPES = ((37, 5), (150_001,), (), (3, 0), (9_000,), (128, 1))
DTYPES = ("float32", "float64", "float16", "bfloat16")
OPTIONS = {
    **runs.OPTIONS,
    "excluded": {"exclude_from_clipping": ["weight_1", "weight_4"]},
    "decayed, averaged": {
        **runs.OPTIONS["decayed, averaged"],
        "ema_overwrite_frequency": 7,
    },
}
KERNELS = ("compiled", "eager", "device")

pytestmark = needs_compiler


def use(monkeypatch, kernel):
    """The kernel for all optimizers made from now on."""
    if kernel == "device":
        # As on a GPU, without compilation.
        for module in (kernel_module, backend_module):
            monkeypatch.setattr(module, "is_on_host", lambda device: False)
        monkeypatch.setattr(torch_device, "_SMALL", 2**16)
        monkeypatch.setattr(torch_device, "_PIECE", 2**16)
        kernel = "eager"
    monkeypatch.setenv(SETTING, kernel)


def gradients_of(shapes, dtype, steps):
    """Heavy-tailed ones, some of them not finite."""
    rng = np.random.default_rng(1)
    series = [heavy_tailed_gradients(rng, shape, steps) for shape in shapes]
    series[0][steps // 2, 1, 2] = np.inf
    series[1][steps // 2, 5:7] = -np.inf, np.nan
    torch_dtype = getattr(torch, dtype)
    return [
        [torch.tensor(g[step]).to(torch_dtype) for g in series]
        for step in range(steps)
    ]


def run(shapes, dtype, steps, **options):
    optimizer, variables = make(dtype, shapes, **options)
    for gradients in gradients_of(shapes, dtype, steps):
        optimizer.apply(gradients, variables)
    return state_of(optimizer, variables)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gives_what_the_reference_gives(monkeypatch, kernel, options):
    use(monkeypatch, "reference")
    expected = run(SHAPES, "float32", 24, **options)
    use(monkeypatch, kernel)
    assert_equal(expected, run(SHAPES, "float32", 24, **options))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gives_it_in_every_dtype_for_200_steps(monkeypatch, kernel, dtype):
    shapes = ((37, 5), (9_000,), ())
    use(monkeypatch, "reference")
    expected = run(shapes, dtype, 200, exclude_from_clipping=["weight_2"])
    use(monkeypatch, kernel)
    actual = run(shapes, dtype, 200, exclude_from_clipping=["weight_2"])
    assert_equal(expected, actual)


def assert_equal(expected, actual):
    """The same numbers: of a zero's sign nothing depends."""
    assert list(expected) == list(actual)
    for path, value in expected.items():
        # NumPy compares NaN in its own dtypes alone.
        np.testing.assert_array_equal(
            actual[path].astype("float64"),
            value.astype("float64"),
            err_msg=path,
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_follows_the_oracle(monkeypatch, kernel, dtype):
    use(monkeypatch, kernel)
    compiled.assert_follows_the_oracle(
        "recorded", 200, dtype, bias_correction=True
    )


class TestOtherTensors:
    """What a kernel does not take as it is."""

    def compare(self, monkeypatch, kernel, change, dtype="float32"):
        results = []
        for name in ("reference", kernel):
            with monkeypatch.context() as patch:
                use(patch, name)
                optimizer, variables = make(dtype, [(6, 4)])
                weight = variables[0].value
                for gradients in gradients_of([(6, 4), (8,)], dtype, 6):
                    optimizer.apply([change(gradients[0], weight)], variables)
                results.append(state_of(optimizer, variables))
        assert_equal(*results)

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("given", DTYPES)
    def test_gradients_of_another_dtype(
        self, monkeypatch, kernel, dtype, given
    ):
        self.compare(
            monkeypatch,
            kernel,
            lambda g, weight: g.to(getattr(torch, given)),
            dtype,
        )

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize(
        "change",
        [
            lambda g, weight: g.T.contiguous().T,
            lambda g, weight: g[:1, :1].expand(6, 4),
            lambda g, weight: (
                torch.view_as_complex(torch.stack([g, g], -1)).conj().imag
            ),
        ],
        ids=["transposed", "expanded", "negated"],
    )
    def test_gradients_in_another_order(self, monkeypatch, kernel, change):
        self.compare(monkeypatch, kernel, change)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_weights_in_another_order(self, monkeypatch, kernel):
        def change(g, weight):
            weight.data = weight.data.T.contiguous().T
            return g

        self.compare(monkeypatch, kernel, change)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_subclasses(self, monkeypatch, kernel):
        class Strange(torch.Tensor):
            pass

        self.compare(
            monkeypatch, kernel, lambda g, weight: g.as_subclass(Strange)
        )

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_scopes_without_state(self, monkeypatch, kernel):
        use(monkeypatch, kernel)
        optimizer, variables = make("float32", [(3,)])
        before = state_of(optimizer, variables)
        new, _ = optimizer.stateless_apply(
            [v.value for v in optimizer.variables],
            [torch.ones(3)],
            [v.value for v in variables],
        )
        assert_same(before, state_of(optimizer, variables))
        assert not torch.equal(new[0], variables[0].value)

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_skipped_in_scopes_without_state(self, monkeypatch, kernel):
        use(monkeypatch, kernel)
        optimizer, [variable] = make("float32", [(3,)], skip_nonfinite=True)
        state = [v.value for v in optimizer.variables]
        [value], new = optimizer.stateless_apply(
            state, [torch.full((3,), torch.nan)], [variable.value]
        )
        assert torch.equal(value, variable.value)
        changed = [
            v.name
            for v, before, after in zip(
                optimizer.variables, state, new, strict=True
            )
            if not torch.equal(before, after)
        ]
        assert changed == ["skipped_steps"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_alone(monkeypatch, kernel):
    """Of the variables that the optimizer was built with."""
    use(monkeypatch, kernel)
    optimizer, [variable] = make("float32", [(3,)], skip_nonfinite=True)
    before = variable.value.clone()
    optimizer.apply([torch.full((3,), torch.inf)])
    assert torch.equal(variable.value, before)
    optimizer.apply([torch.ones(3)])
    assert (variable.value < before).all()
    assert optimizer.skipped_steps() == 1
    assert int(optimizer.iterations) == 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_changes_in_place_and_says_so(monkeypatch, kernel):
    use(monkeypatch, kernel)
    optimizer, [variable] = make("float32", [(5,)])
    values = [
        v.value for v in (variable, *optimizer._momentums, *optimizer._norms)
    ]
    loss = (variable.value**2).sum()
    versions = [value._version for value in values]
    optimizer.apply([torch.ones(5)], [variable])
    assert variable.value is values[0]
    assert variable.value.requires_grad
    assert all(
        value._version > version
        for value, version in zip(values, versions, strict=True)
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
@pytest.mark.parametrize("stride", (1, 2))
def test_the_library_counts_gradients_in_another_order(stride):
    """One of them does not send all to the slow way."""
    generator = torch.Generator().manual_seed(0)
    norms = [torch.rand(size, generator=generator) for size in ((48, 3), (7,))]
    gradients = [
        2 * torch.rand((3, 48), generator=generator).T,
        2 * torch.rand(7, generator=generator),
    ]
    assert not gradients[0].is_contiguous()
    found = native_torch.count_above(
        gradients,
        norms,
        (stride, 1),
        torch.tensor(1.2),
        torch.tensor(0.1),
        "auto",
    )
    above = [
        (g > 1.2 * u + 0.1).reshape(-1)
        for g, u in zip(gradients, norms, strict=True)
    ]
    runs = above[0].reshape(-1, 16)[::stride]
    assert found is not None
    assert found.tolist() == [int(runs.sum()), int(above[1].sum())]


def test_loaded_exclusions_count(monkeypatch):
    """They are read again when they change."""
    use(monkeypatch, "compiled")
    optimizer, variables = make(
        "float32", [(5,), (3,)], exclude_from_clipping=["weight_1"]
    )
    gradients = [torch.ones(5), torch.ones(3)]
    optimizer.apply(gradients, variables)
    optimizer._clip_counts.exclusions.assign([1.0, 0.0])
    optimizer.apply(gradients, variables)
    assert list(optimizer.clip_statistics().counted.values()) == [5, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("measures", "kinds"),
    # Of several sums torch makes another kernel for up to 4,096 elements.
    [(False, 1), (True, 2)],
)
def test_the_rule_of_devices_compiles_for_all_sizes(measures, kinds):
    """On the CPU here: torch makes its kernels from the same function."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    rule = torch.compile(torch_device._rule, dynamic=True, backend=counter)
    scalars = torch.tensor([0.01, 0.9, 0.999, 1e-8, 1.2, 1e-4, 1.0])
    rng = torch.Generator().manual_seed(0)
    compiled = set()
    for size in (1_000, 70_000, 12_345, 4_096, 17):
        vectors = [torch.rand(size, generator=rng) for _ in range(4)]
        copies = [vector.clone() for vector in vectors]
        arguments = (scalars, None, True, measures)
        expected = torch_device._rule(*copies, *arguments, sums=True)
        actual = rule(*vectors, *arguments, sums=True)
        assert torch.equal(actual[0], expected[0])
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        for vector, copy in zip(vectors, copies, strict=True):
            torch.testing.assert_close(vector, copy, rtol=3e-7, atol=1e-7)
        compiled.add(counter.frame_count)
    assert len(compiled) <= kinds


class TestRuleOfDevices:
    """Which form of it runs; `torch.compile` itself is tried above."""

    def run(self, monkeypatch, kernel, compiled_rule):
        use(monkeypatch, "device")
        monkeypatch.setattr(torch_device, "_compiled_rule", compiled_rule)
        monkeypatch.setattr(
            torch_device,
            "_failure",
            functools.cache(torch_device._failure.__wrapped__),
        )
        monkeypatch.setenv(SETTING, kernel)
        return run(SHAPES, "bfloat16", 6)

    @pytest.mark.parametrize("kernel", ("auto", "compiled"))
    def test_is_the_compiled_one(self, monkeypatch, kernel):
        use(monkeypatch, "reference")
        expected = run(SHAPES, "bfloat16", 6)
        sizes = set()

        def rule(g, *args, **kwargs):
            sizes.add(g.numel())
            return torch_device._rule(g, *args, **kwargs)

        actual = self.run(monkeypatch, kernel, lambda: rule)
        assert_equal(expected, actual)
        # Of the trial, of the large variable as a whole, and of the others.
        assert sizes == {64, 150_001, 185 + 1 + 9_000 + 128}

    @pytest.mark.parametrize("fails_when", ("made", "called"))
    def test_without_a_compiler(self, monkeypatch, caplog, fails_when):
        use(monkeypatch, "reference")
        expected = run(SHAPES, "bfloat16", 6)
        tries = []

        def fail(*args, **kwargs):
            tries.append(args)
            raise ImportError("no Triton")

        compiled_rule = fail if fails_when == "made" else lambda: fail
        caplog.set_level("INFO", "keras_adamax")
        actual = self.run(monkeypatch, "auto", compiled_rule)
        assert_equal(expected, actual)
        # It is tried once, and nobody is nagged.
        assert len(tries) == 1
        [record] = caplog.records
        assert record.levelname == "INFO"
        assert "Updates on cpu are not compiled: no Triton" in caplog.text
        message = (
            "`KERAS_ADAMAX_KERNEL` must be 'auto', 'eager' or 'reference' "
            "where .* on the device 'cpu'. Received: "
            "KERAS_ADAMAX_KERNEL='compiled'. ImportError: no Triton"
        )
        with pytest.raises(RuntimeError, match=message):
            self.run(monkeypatch, "compiled", compiled_rule)


def test_a_kernel_that_the_backend_lacks_is_refused(monkeypatch):
    monkeypatch.setenv(SETTING, "fused")
    with pytest.raises(ValueError, match=r"must be one of .*KERNEL='fused'"):
        keras_adamax.AdamaxClipped()


@pytest.mark.parametrize("kernel", ("compiled", "eager"))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_steps_leave_the_graph(monkeypatch, kernel):
    use(monkeypatch, kernel)
    optimizer, variables = make("float32", [(5,), (3,)])
    expected, same = make("float32", [(5,), (3,)])

    def step(gradients):
        optimizer.apply([g * 2.0 for g in gradients], variables)

    compiled = torch.compile(step, backend="eager")
    for _ in range(3):
        gradients = [torch.ones(5), torch.ones(3)]
        compiled(gradients)
        expected.apply([g * 2.0 for g in gradients], same)
    assert_equal(state_of(expected, same), state_of(optimizer, variables))


SCRIPT = ("-m", "tests.updates.torch_script")


class TestCompilation(compiled.CompilationTests):
    arguments = (*SCRIPT, "step")
    served = "compiled"
    other = "eager"
    loop = "recorded"
    caches = (native_torch._update, native_torch._failure)

    def test_every_loop_is_vectorized(self, tmp_path):
        """Where it is not, the step takes three times as long."""
        compiler = build._compiler()
        source = build.SOURCES / "torch.cpp"
        target, text = build._target(compiler, source, ())
        if b"__clang__" in text:
            pytest.skip("GCC's way to say so")
        done = subprocess.run(
            [
                *compiler,
                *build.OPTIONS,
                *target,
                "-fopt-info-vec-optimized",
                str(source),
                "-o",
                str(tmp_path / "library.so"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        header = build.SOURCES / "update.h"
        lines = header.read_text().splitlines()
        pragma = next(
            i for i, line in enumerate(lines) if line.startswith("#pragma omp")
        )
        vectorized = [
            line
            for line in done.stderr.splitlines()
            if f".h:{pragma + 1}:" in line and "loop vectorized" in line
        ]
        # Six kinds, clipped and not.
        assert len(vectorized) >= 12


class TestMemory:
    @pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="ru_maxrss in kilobytes"
    )
    @pytest.mark.parametrize("kernel", ("compiled", "eager"))
    @pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
    def test_has_no_full_size_temporaries(self, kernel, dtype):
        grown = int(finish(start(*SCRIPT, "memory", kernel, dtype))[0])
        # One array of the weight's size has 64 MiB, or 32 in half precision;
        # Keras's Adamax grows by several of them.
        assert grown < 8 * 2**20


class TestPrivateInterfaces:
    """Canaries; see `tests/test_keras_hooks.py`."""

    def test_the_value_of_a_variable(self):
        variable = keras.Variable(np.ones(3, "float32"))
        assert variable._value is variable.value

    def test_the_version_of_a_tensor(self):
        tensor = torch.zeros(3)
        before = tensor._version
        tensor.add_(1)
        assert tensor._version == before + 1

    def test_scopes(self):
        from keras.src.backend.common.stateless_scope import in_stateless_scope

        assert not in_stateless_scope()
        with keras.StatelessScope():
            assert in_stateless_scope()

    def test_copies_of_lists(self):
        target = [torch.zeros(2, dtype=torch.float16), torch.zeros(1)]
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            target, [torch.ones(2), torch.ones(1)]
        )
        assert [t.tolist() for t in target] == [[1.0, 1.0], [1.0]]


def test_pieces_are_counted_exactly():
    """A float32 sum of ones is exact up to 2**24."""
    assert torch_eager.PIECE <= 2**24
    assert torch_device._SMALL <= 2**24


class TestWaiting:
    """What makes the host wait for a device shows on the CPU as well."""

    OPTIONS = {
        "defaults": {},
        "corrected": {"bias_correction": True},
        "excluded": {"exclude_from_clipping": ["weight_1", "weight_4"]},
        "skipping": {"skip_nonfinite": True},
        "skipping, excluded": {
            "skip_nonfinite": True,
            "exclude_from_clipping": ["weight_1", "weight_4"],
        },
        "gated": {"spike_threshold": 0.2},
        "gated, excluded": {
            "spike_threshold": 0.2,
            "skip_nonfinite": True,
            "exclude_from_clipping": ["weight_1", "weight_4"],
        },
    }

    @pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_no_step_but_the_first_waits(self, monkeypatch, options, dtype):
        use(monkeypatch, "device")
        torch_tensors.integers.cache_clear()
        optimizer, variables = make(dtype, SHAPES, **options)
        first, *others = gradients_of(SHAPES, dtype, 4)
        with Waits() as functions, functions.of_operations:
            optimizer.apply(first, variables)
            # Integers are copied; that this is noticed tests the test.
            assert "aten::lift_fresh in torch_tensors.py" in functions.found
            functions.found.clear()
            for gradients in others:
                optimizer.apply(gradients, variables)
        assert functions.found == []
        assert optimizer.skipped_steps() == int("skip_nonfinite" in options)

    def test_integers_are_kept_for_some_models_only(self):
        limit = torch_tensors.integers.cache_parameters()["maxsize"]
        cpu = torch.device("cpu")
        for i in range(limit + 1):
            kept = torch_tensors.integers((i, 2), cpu)
        assert kept is torch_tensors.integers((limit, 2), cpu)
        assert torch_tensors.integers.cache_info().currsize == limit
        assert torch_tensors.integers((), cpu).dtype == torch.int64


class Waits(TorchFunctionMode):
    """Lists what our code reads from tensors or copies to a device."""

    READS = ("tolist", "item", "numpy", "cpu", "__array__", "nonzero")

    def __init__(self):
        super().__init__()
        self.found = []
        self.of_operations = _WaitingOperations(self.found)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        # A number among its arguments is copied to a GPU.
        is_copy = func is torch.where and not all(
            isinstance(x, torch.Tensor) for x in args
        )
        if name in self.READS or is_copy:
            note(self.found, name)
        return func(*args, **(kwargs or {}))


class _WaitingOperations(TorchDispatchMode):
    NAMES = ("aten::_local_scalar_dense", "aten::lift_fresh")

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in self.NAMES:
            note(self.found, func.name())
        return func(*args, **(kwargs or {}))


def note(found, name):
    """Where it was ours: Keras's `iterations` makes a number a tensor."""
    package = pathlib.Path(keras_adamax.__file__).parent
    for frame, _ in traceback.walk_stack(None):
        file = pathlib.Path(frame.f_code.co_filename)
        if package in file.parents:
            found.append(f"{name} in {file.name}")
            return
        if "keras/src/optimizers" in file.as_posix():
            return
