"""What XLA compiled for one model serves others, and other processes."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_adamax import kernels

BACKEND = keras.backend.backend()
DIRECTORY = "jax_compilation_cache_dir"

only_on_jax = pytest.mark.skipif(
    BACKEND != "jax", reason="JAX alone keeps what it has compiled"
)


@pytest.mark.skipif(BACKEND == "jax", reason="of the other backends")
def test_other_backends_are_left_alone():
    before = dict(os.environ)
    with kernels.load().shared_compilations():
        assert dict(os.environ) == before


@only_on_jax
class TestShared:
    def setting(self):
        import jax

        return jax.config.jax_compilation_cache_dir

    def test_ends_with_the_block(self):
        import jax

        before = dict(os.environ)
        least = jax.config.jax_persistent_cache_min_compile_time_secs
        with kernels.load().shared_compilations():
            folder = Path(self.setting())
            assert folder.is_dir()
            # Of this user alone: what is loaded from it is run.
            assert folder.stat().st_mode & 0o077 == 0
            assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
        assert not folder.exists()
        assert self.setting() is None
        assert jax.config.jax_persistent_cache_min_compile_time_secs == least
        assert dict(os.environ) == before

    def test_the_users_own_folder_stays(self, tmp_path):
        import jax

        jax.config.update(DIRECTORY, str(tmp_path))
        try:
            with kernels.load().shared_compilations():
                assert self.setting() == str(tmp_path)
                assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
        finally:
            jax.config.update(DIRECTORY, None)

    def test_an_error_goes_on(self):
        with pytest.raises(KeyError), kernels.load().shared_compilations():
            raise KeyError
        assert self.setting() is None

    def test_a_damaged_entry_costs_a_compilation(self):
        """As a worker leaves it that is killed while it writes."""
        script = (
            "import jax, jax.numpy as jnp, pathlib\n"
            "print(jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(4)).sum())\n"
        )
        with kernels.load().shared_compilations():
            folder = Path(self.setting())
            for _ in range(2):
                done = subprocess.run(
                    [sys.executable, "-c", script],
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert done.returncode == 0, done.stderr
                assert "Traceback" not in done.stderr
                entries = list(folder.glob("*-cache"))
                assert entries
                for entry in entries:
                    entry.write_bytes(entry.read_bytes()[:20])
