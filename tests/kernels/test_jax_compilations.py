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
    with kernels.load().shared_compilations() as given:
        assert given is None
        assert dict(os.environ) == before


@only_on_jax
class TestShared:
    def setting(self):
        import jax

        return jax.config.jax_compilation_cache_dir

    def test_ends_with_the_block(self):
        import jax

        least = jax.config.jax_persistent_cache_min_compile_time_secs
        with kernels.load().shared_compilations() as given:
            folder = Path(self.setting())
            assert given[DIRECTORY] == str(folder)
            assert folder.is_dir()
            # Of this user alone: what is loaded from it is run.
            assert folder.stat().st_mode & 0o077 == 0
        assert not folder.exists()
        assert self.setting() is None
        assert jax.config.jax_persistent_cache_min_compile_time_secs == least

    def test_another_process_shares_what_it_is_given(self):
        """As in one that has imported JAX before it was given it."""
        script = (
            "import ast, jax, jax.numpy as jnp, sys\n"
            "from keras_adamax import kernels\n"
            "given = ast.literal_eval(sys.argv[1])\n"
            "with kernels.load().shared_compilations(given) as same:\n"
            "    assert same == given\n"
            "    jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(4))\n"
            f"assert jax.config.{DIRECTORY} is None\n"
        )
        with kernels.load().shared_compilations() as given:
            folder = Path(self.setting())
            subprocess.run(
                [sys.executable, "-c", script, repr(given)],
                check=True,
                timeout=120,
                cwd=Path(__file__).parent.parent.parent,
            )
            # It is not that process's to remove.
            assert list(folder.glob("jit__lambda*-cache"))

    def test_the_users_own_folder_stays(self, tmp_path):
        import jax

        jax.config.update(DIRECTORY, str(tmp_path))
        try:
            with kernels.load().shared_compilations() as given:
                assert self.setting() == str(tmp_path)
                assert given[DIRECTORY] == str(tmp_path)
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
        with kernels.load().shared_compilations() as given:
            folder = Path(self.setting())
            settings = {name.upper(): str(v) for name, v in given.items()}
            for _ in range(2):
                done = subprocess.run(
                    [sys.executable, "-c", script],
                    env=os.environ | settings,
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
