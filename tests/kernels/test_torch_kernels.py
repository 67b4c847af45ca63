"""torch's kernels: the reference's results, from whatever serves."""

import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_adamax
from tests.oracle import AdamaxClippedOracle, heavy_tailed_gradients
from tests.support import assert_same, state_of

if keras.backend.backend() != "torch":
    pytest.skip("these are the kernels of torch", allow_module_level=True)

import torch

from keras_adamax.kernels import (
    SETTING,
    _compiled_library,
    _torch_compiled,
    _torch_device,
    _torch_eager,
)
from keras_adamax.kernels import torch as kernel_module

# Small and joined, in one piece, in several, without elements, a scalar.
SHAPES = ((37, 5), (150_001,), (), (3, 0), (9_000,), (128, 1))
DTYPES = ("float32", "float64", "float16", "bfloat16")
OPTIONS = {
    "defaults": {},
    "corrected": {"bias_correction": True},
    "unclipped": {"clip_gradients": False},
    "uncounted": {"track_clip_rate": False},
    "excluded": {"exclude_from_clipping": ["weight_1", "weight_4"]},
    "no epsilon": {"epsilon": 0.0},
    "scheduled": {
        "beta_1": keras.optimizers.schedules.ExponentialDecay(0.9, 10, 0.9),
        "clip_multiplier": keras.optimizers.schedules.ExponentialDecay(
            2.0, 10, 0.9
        ),
        "bias_correction": True,
    },
    "decayed, averaged": {
        "weight_decay": 0.01,
        "use_ema": True,
        "ema_overwrite_frequency": 7,
        "clipnorm": 100.0,
    },
    "accumulated": {"gradient_accumulation_steps": 3},
    "skipping": {"skip_nonfinite": True},
    "scaled": {"loss_scale_factor": 4.0, "global_clipnorm": 1000.0},
}
KERNELS = ("compiled", "eager", "device")
ROOT = pathlib.Path(keras_adamax.__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, _compiled_library.COMPILERS)),
    reason="a C++ compiler is needed",
)


def use(monkeypatch, kernel):
    """The kernel for all optimizers made from now on."""
    if kernel == "device":
        # As on a GPU, without compilation.
        monkeypatch.setattr(kernel_module, "_is_host", lambda device: False)
        monkeypatch.setattr(_torch_device, "_SMALL", 2**16)
        monkeypatch.setattr(_torch_device, "_PIECE", 2**16)
        kernel = "eager"
    monkeypatch.setenv(SETTING, kernel)


def make(shapes, dtype, **options):
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.normal(size=shape), dtype=dtype, name=f"weight_{i}")
        for i, shape in enumerate(shapes)
    ]
    optimizer = keras_adamax.AdamaxClipped(learning_rate=0.01, **options)
    optimizer.build(variables)
    return optimizer, variables


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
    optimizer, variables = make(shapes, dtype, **options)
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
    optimizer, [variable] = make([(40, 250)], dtype, bias_correction=True)
    oracle = AdamaxClippedOracle(
        [variable.value.detach().numpy()],
        learning_rate=0.01,
        bias_correction=True,
        bias_correction_dtype="float32",
        dtypes=dtype,
    )
    series = heavy_tailed_gradients(np.random.default_rng(2), (40, 250), 200)
    for gradient in series.astype(dtype):
        optimizer.apply([torch.tensor(gradient)], [variable])
        oracle.step([gradient])
    for name, actual in (
        ("w", variable),
        ("m", optimizer._momentums[0]),
        ("u", optimizer._norms[0]),
    ):
        error = abs(
            actual.value.detach().double().numpy() - getattr(oracle, name)[0]
        )
        assert (error <= getattr(oracle, name + "_error")[0]).all(), name
    [clipped] = optimizer.clip_statistics().clipped.values()
    assert abs(clipped - oracle.clipped[0]) <= oracle.uncertain[0]


class TestOtherTensors:
    """What a kernel does not take as it is."""

    def compare(self, monkeypatch, kernel, change, dtype="float32"):
        results = []
        for name in ("reference", kernel):
            with monkeypatch.context() as patch:
                use(patch, name)
                optimizer, variables = make([(6, 4)], dtype)
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
        optimizer, variables = make([(3,)], "float32")
        before = state_of(optimizer, variables)
        new, _ = optimizer.stateless_apply(
            [v.value for v in optimizer.variables],
            [torch.ones(3)],
            [v.value for v in variables],
        )
        assert_same(before, state_of(optimizer, variables))
        assert not torch.equal(new[0], variables[0].value)


@pytest.mark.parametrize("kernel", KERNELS)
def test_changes_in_place_and_says_so(monkeypatch, kernel):
    use(monkeypatch, kernel)
    optimizer, [variable] = make([(5,)], "float32")
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


def test_loaded_exclusions_count(monkeypatch):
    """They are read again when they change."""
    use(monkeypatch, "compiled")
    optimizer, variables = make(
        [(5,), (3,)], "float32", exclude_from_clipping=["weight_1"]
    )
    gradients = [torch.ones(5), torch.ones(3)]
    optimizer.apply(gradients, variables)
    optimizer._exclusions.assign([1.0, 0.0])
    optimizer.apply(gradients, variables)
    assert list(optimizer.clip_statistics().counted.values()) == [5, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_rule_of_devices_compiles_once(monkeypatch):
    """On the CPU here: torch makes its kernels from the same function."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("inductor")
    torch._dynamo.reset()
    rule = torch.compile(_torch_device._rule, dynamic=True, backend=counter)
    scalars = torch.tensor([0.01, 0.9, 0.999, 1e-8, 1.2, 1e-4, 1.0])
    rng = torch.Generator().manual_seed(0)
    compiled = set()
    for size in (1_000, 70_000, 12_345, 4_096):
        vectors = [torch.rand(size, generator=rng) for _ in range(4)]
        copies = [vector.clone() for vector in vectors]
        expected = _torch_device._rule(*copies, scalars, None, True, sums=True)
        actual = rule(*vectors, scalars, None, True, sums=True)
        assert torch.equal(actual, expected)
        for vector, copy in zip(vectors, copies, strict=True):
            torch.testing.assert_close(vector, copy, rtol=3e-7, atol=1e-7)
        compiled.add(counter.frame_count)
    assert len(compiled) == 1


@pytest.mark.parametrize("kernel", ("compiled", "eager"))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_steps_leave_the_graph(monkeypatch, kernel):
    use(monkeypatch, kernel)
    optimizer, variables = make([(5,), (3,)], "float32")
    expected, same = make([(5,), (3,)], "float32")

    def step(gradients):
        optimizer.apply([g * 2.0 for g in gradients], variables)

    compiled = torch.compile(step, backend="eager")
    for _ in range(3):
        gradients = [torch.ones(5), torch.ones(3)]
        compiled(gradients)
        expected.apply([g * 2.0 for g in gradients], same)
    assert_equal(state_of(expected, same), state_of(optimizer, variables))


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kernels.torch_script", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.strip(), errors


class TestCompilation:
    def test_by_two_processes_at_a_time(self, tmp_path):
        both = [start("step", XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
        assert [finish(process)[0] for process in both] == ["compiled"] * 2
        # One library, and nothing else.
        [library] = (tmp_path / "keras_adamax").iterdir()
        written = library.stat().st_mtime_ns
        assert finish(start("step", XDG_CACHE_HOME=str(tmp_path)))[0] == (
            "compiled"
        )
        assert library.stat().st_mtime_ns == written

    @pytest.mark.parametrize("compiler", ("false", "no-such-compiler"))
    def test_without_a_compiler(self, tmp_path, compiler):
        environment = {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
        # Nobody is nagged.
        assert finish(start("step", **environment)) == ("eager", "")

    def test_asked_for_without_a_compiler(self, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setattr(
            _compiled_library, "load", _compiled_library.load.__wrapped__
        )
        for function in (_torch_compiled._update, _torch_compiled._failure):
            function.cache_clear()
        try:
            use(monkeypatch, "compiled")
            optimizer, variables = make([(3,)], "float32")
            with pytest.raises(RuntimeError, match="`CXX`.*no-such-compiler"):
                optimizer.apply([torch.ones(3)], variables)
        finally:
            _torch_compiled._failure.cache_clear()

    def test_where_nothing_can_be_written(self, tmp_path):
        (tmp_path / "keras_adamax").write_text("no folder")
        assert finish(start("step", XDG_CACHE_HOME=str(tmp_path)))[0] == (
            "compiled"
        )

    def test_every_loop_is_vectorized(self, tmp_path):
        """Where it is not, the step takes three times as long."""
        compiler = _compiled_library._compiler()
        source = _compiled_library.SOURCES / "_torch_cpu.cpp"
        target, text = _compiled_library._target(compiler, source, ())
        if b"__clang__" in text:
            pytest.skip("GCC's way to say so")
        done = subprocess.run(
            [
                *compiler,
                *_compiled_library.OPTIONS,
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
        header = _compiled_library.SOURCES / "_cpu_update.h"
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
    def test_has_no_full_size_temporaries(self, kernel):
        grown = int(finish(start("memory", kernel))[0])
        # One array of the weight's size has 64 MiB; Keras's Adamax grows by
        # several of them.
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
    assert _torch_eager.PIECE <= 2**24
    assert _torch_device._SMALL <= 2**24
