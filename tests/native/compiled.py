"""What the tests of the compiled kernels have in common on all backends."""

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
from keras_adamax.kernel_choice import SETTING
from keras_adamax.native import build
from tests import support
from tests.oracle import AdamaxClippedOracle, heavy_tailed_gradients
from tests.updates import runs

ROOT = pathlib.Path(keras_adamax.__file__).parents[1]
# In several blocks, in one, without elements, a scalar; for several threads,
# and in several calls of XLA.
SHAPES = ((37, 5), (70_001,), (3, 0), (), (600, 500))
# Where XLA compiles a step as a whole, it rounds its scalars once more, or
# less, and a product and a sum once.
COMPILED_BY_XLA = ("jit", "stateless")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)),
    reason="a C++ compiler is needed",
)


def make(shape=(300, 200), **options):
    """An optimizer, and one weight of ones."""
    [variable] = support.make_variables([np.ones(shape, "float32")])
    optimizer = keras_adamax.AdamaxClipped(0.1, **options)
    optimizer.build([variable])
    return optimizer, variable


def run_both(monkeypatch, loop, steps=24, shapes=SHAPES, **options):
    """What `run` gives with the reference, and in `loop` with the library."""
    results = []
    eager = "eager" if loop in COMPILED_BY_XLA else loop
    for kernel, a_loop in (("reference", eager), ("compiled", loop)):
        monkeypatch.setenv(SETTING, kernel)
        results.append(runs.run(a_loop, steps, shapes=shapes, **options))
    return results


def assert_gives_what_the_reference_gives(
    monkeypatch, loop, is_exact, **options
):
    """State and statistics; `is_exact`: bit for bit."""
    (expected, expected_counts), (actual, counts) = run_both(
        monkeypatch, loop, **options
    )
    assert counts == expected_counts
    if is_exact:
        support.assert_same(expected, actual)
    assert list(actual) == list(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(
            actual[path], value, rtol=1e-4, atol=1e-5, err_msg=path
        )


def assert_nan_spreads_and_inf_is_clipped(monkeypatch, loop, values):
    """As with the reference, bit for bit."""
    (expected, expected_counts), (actual, counts) = run_both(
        monkeypatch, loop, 12, ((37, 5),), nonfinite=values
    )
    assert counts == expected_counts
    support.assert_same(expected, actual)


def assert_takes_gradients(
    monkeypatch, dtype, given, compile_step=lambda step: step
):
    """For 200 steps as the reference, bit for bit.

    Args:
        monkeypatch: To choose kernels.
        dtype: Of the weights.
        given: Of the gradients.
        compile_step: Gives the step that the library takes.
    """
    shapes = ((37, 5), (9_000,), ())
    rng = np.random.default_rng(1)
    series = [heavy_tailed_gradients(rng, shape, 200) for shape in shapes]
    # JAX has no float64.
    widest = "float32" if support.BACKEND == "jax" else "float64"
    results = []
    for kernel in ("reference", "compiled"):
        monkeypatch.setenv(SETTING, kernel)
        variables = support.make_variables(
            [np.ones(shape, "float32") for shape in shapes], dtype=dtype
        )
        optimizer = keras_adamax.AdamaxClipped(
            0.01, exclude_from_clipping=["weight_2"]
        )
        optimizer.build(variables)
        step = functools.partial(_apply, optimizer, variables)
        if kernel == "compiled":
            step = compile_step(step)
        for gradients in zip(*series, strict=True):
            wide = [keras.ops.convert_to_tensor(g, widest) for g in gradients]
            step([keras.ops.cast(g, given) for g in wide])
        results.append(support.state_of(optimizer, variables))
    support.assert_same(*results)


def _apply(optimizer, variables, gradients):
    optimizer.apply(gradients, variables)


def assert_follows_the_oracle(loop, steps=50, dtype="float32", **options):
    """Within the oracle's bounds on each rounding, on many elements."""
    rng = np.random.default_rng(2)
    start = np.asarray(rng.normal(size=(40, 2_500)), dtype)
    variables = support.make_variables([start], dtype=dtype)
    optimizer = keras_adamax.AdamaxClipped(0.01, **options)
    step = support.make_step(loop, optimizer, variables)
    oracle = AdamaxClippedOracle(
        [start],
        learning_rate=0.01,
        bias_correction_dtype="float32",
        dtypes=dtype,
        **options,
    )
    for gradient in heavy_tailed_gradients(rng, start.shape, steps):
        gradient = gradient.astype(dtype)
        step([gradient])
        oracle.step([gradient])
    support.assert_state_follows(oracle, optimizer, variables)
    [clipped] = optimizer.clip_statistics().clipped.values()
    assert abs(clipped - oracle.clipped[0]) <= oracle.uncertain[0]


def start(*arguments, **environment):
    """A process of Python."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    """What it printed, as output and as errors."""
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output.strip(), errors


class CompilationTests:
    """Of processes that compile the library, and of those that cannot.

    Attributes:
        arguments: Of a Python that takes a step on weights of any shape and
            prints what has updated them.
        served: What it prints if that was the library.
        other: What it prints if not.
        is_quiet: Whether nothing else is printed as an error.
        loop: The loop in which `make_step` uses the library.
        caches: The functions that remember the library, or its failure.
    """

    arguments: tuple[str, ...]
    served: str
    other: str
    is_quiet = True
    loop = "eager"
    caches = ()

    def run(self, **environment):
        return finish(start(*self.arguments, **environment))

    @pytest.mark.slow
    def test_by_two_processes_at_a_time(self, tmp_path):
        cache = {"XDG_CACHE_HOME": str(tmp_path)}
        both = [start(*self.arguments, **cache) for _ in range(2)]
        assert [finish(process)[0] for process in both] == [self.served] * 2
        # One library, and nothing else.
        [library] = (tmp_path / "keras_adamax").iterdir()
        written = library.stat().st_mtime_ns
        assert self.run(**cache)[0] == self.served
        assert library.stat().st_mtime_ns == written

    @pytest.mark.slow
    def test_where_nothing_can_be_written(self, tmp_path):
        (tmp_path / "keras_adamax").write_text("no folder")
        assert self.run(XDG_CACHE_HOME=str(tmp_path))[0] == self.served

    @pytest.mark.slow
    @pytest.mark.parametrize("compiler", ("false", "no-such-compiler"))
    def test_without_a_compiler(self, tmp_path, compiler):
        output, errors = self.run(CXX=compiler, XDG_CACHE_HOME=str(tmp_path))
        assert output == self.other
        # Nobody is nagged.
        assert "keras_adamax" not in errors
        assert not (self.is_quiet and errors)

    @pytest.mark.slow
    def test_a_damaged_library_is_compiled_again(self, tmp_path):
        cache = {"XDG_CACHE_HOME": str(tmp_path)}
        assert self.run(**cache)[0] == self.served
        [library] = (tmp_path / "keras_adamax").iterdir()
        whole = library.read_bytes()
        library.write_bytes(bytes(1000))
        assert self.run(**cache)[0] == self.served
        [library] = (tmp_path / "keras_adamax").iterdir()
        assert len(library.read_bytes()) == len(whole)

    def test_asked_for_without_a_compiler(self, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setattr(build, "load", build.load.__wrapped__)
        for cache in self.caches:
            cache.cache_clear()
        try:
            monkeypatch.setenv(SETTING, "compiled")
            optimizer, variable = make()
            step = support.make_step(self.loop, optimizer, [variable])
            with pytest.raises(RuntimeError, match="`CXX`.*no-such-compiler"):
                step([np.ones((300, 200))])
        finally:
            for cache in self.caches:
                cache.cache_clear()
