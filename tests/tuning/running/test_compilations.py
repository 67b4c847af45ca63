"""What XLA compiled for one trial serves others, and other processes (JAX)."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_adamax_tuning import cli, run_search
from keras_adamax_tuning.running import compilations
from tests.tuning import searched

BACKEND = keras.backend.backend()
DIRECTORY = "jax_compilation_cache_dir"

only_on_jax = pytest.mark.skipif(
    BACKEND != "jax", reason="JAX alone keeps what it has compiled"
)


@only_on_jax
def test_trials_compile_once(tmp_path):
    """Three trials of one program add no more to the folder than one."""
    import jax

    compiled = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            folder = Path(jax.config.jax_compilation_cache_dir)
            compiled.append({p.name for p in folder.glob("jit_train*-cache")})

    jax.clear_caches()
    result = run_search(
        searched.build_model,
        searched.load_data(),
        space=searched.SPACE,
        sampler="random",
        seed=0,
        max_trials=3,
        epochs=1,
        output=tmp_path / "search",
        callbacks_factory=lambda trial, hp, folder: [Look()],
        verbose=False,
    )
    assert len(result.trials) == 3
    assert len(compiled) == 3
    # A program for the first batches and one for the rest, at most.
    assert compiled[0]
    assert compiled[1:] == [compiled[0], compiled[0]]


@only_on_jax
def test_the_workers_of_the_command_compile_together(tmp_path):
    """They have imported JAX before there is a folder for what it compiles."""
    arguments = [
        "tests.tuning.searched:build_model",
        "--data=tests.tuning.searched:load_data",
        "--space=tests.tuning.searched:SPACE",
        "--callbacks=tests.tuning.searched:notes_compilations",
        "--sampler=random",
        "--max-trials=2",
        "--epochs=1",
        "--workers=2",
        f"--output={tmp_path / 'out'}",
    ]
    assert cli.main(arguments) == 0
    trials = list((tmp_path / "out" / "trials").iterdir())
    assert len({(trial / "pid").read_text() for trial in trials}) == 2
    first, second = (
        (trial / "kept").read_text().splitlines() for trial in trials
    )
    assert first[0] == second[0] != "None"
    # A program for the first batches and one for the rest, at most.
    assert 1 <= len({*first[1:], *second[1:]}) <= 2
    # The parent removes it.
    assert not Path(first[0]).exists()


@only_on_jax
def test_the_scores_are_those_of_what_was_compiled_anew(tmp_path, monkeypatch):
    scores = []
    for name, shares in (("shared", True), ("alone", False)):
        if not shares:
            monkeypatch.setattr(compilations, "shared", contextlib.nullcontext)
        result = run_search(
            searched.build_model,
            searched.load_data(),
            space=searched.SPACE,
            sampler="random",
            seed=0,
            max_trials=3,
            epochs=1,
            output=tmp_path / name,
            verbose=False,
        )
        scores.append([trial.score for trial in result.trials])
    assert scores[0] == scores[1]
    assert np.isfinite(scores[0]).all()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "jax", reason="of the other backends")
def test_other_backends_are_left_alone():
    before = dict(os.environ)
    with compilations.shared() as given:
        assert given is None
        assert dict(os.environ) == before


@pytest.mark.slow
@only_on_jax
class TestShared:
    def setting(self):
        import jax

        return jax.config.jax_compilation_cache_dir

    def test_ends_with_the_block(self):
        import jax

        least = jax.config.jax_persistent_cache_min_compile_time_secs
        with compilations.shared() as given:
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
            "from keras_adamax_tuning.running import compilations\n"
            "given = ast.literal_eval(sys.argv[1])\n"
            "with compilations.shared(given) as same:\n"
            "    assert same == given\n"
            "    jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(4))\n"
            f"assert jax.config.{DIRECTORY} is None\n"
        )
        with compilations.shared() as given:
            folder = Path(self.setting())
            subprocess.run(
                [sys.executable, "-c", script, repr(given)],
                check=True,
                timeout=400,
                cwd=Path(__file__).parents[3],
            )
            # It is not that process's to remove.
            assert list(folder.glob("jit__lambda*-cache"))

    def test_the_users_own_folder_stays(self, tmp_path):
        import jax

        jax.config.update(DIRECTORY, str(tmp_path))
        try:
            with compilations.shared() as given:
                assert self.setting() == str(tmp_path)
                assert given[DIRECTORY] == str(tmp_path)
        finally:
            jax.config.update(DIRECTORY, None)

    def test_an_error_goes_on(self):
        with pytest.raises(KeyError), compilations.shared():
            raise KeyError
        assert self.setting() is None

    def test_a_damaged_entry_costs_a_compilation(self):
        """As a worker leaves it that is killed while it writes."""
        script = (
            "import jax, jax.numpy as jnp, pathlib\n"
            "print(jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(4)).sum())\n"
        )
        with compilations.shared() as given:
            folder = Path(self.setting())
            settings = {name.upper(): str(v) for name, v in given.items()}
            for _ in range(2):
                done = subprocess.run(
                    [sys.executable, "-c", script],
                    env=os.environ | settings,
                    capture_output=True,
                    text=True,
                    timeout=400,
                )
                assert done.returncode == 0, done.stderr
                assert "Traceback" not in done.stderr
                entries = list(folder.glob("*-cache"))
                assert entries
                for entry in entries:
                    entry.write_bytes(entry.read_bytes()[:20])
