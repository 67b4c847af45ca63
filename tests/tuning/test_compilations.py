"""What XLA compiled for one trial serves the others (JAX)."""

import contextlib
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_adamax import kernels
from keras_adamax_tuning import cli, run_search
from tests.tuning import searched

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="JAX alone keeps what it has compiled",
)


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


def test_the_scores_are_those_of_what_was_compiled_anew(tmp_path, monkeypatch):
    scores = []
    for name, shares in (("shared", True), ("alone", False)):
        if not shares:
            monkeypatch.setattr(
                kernels.load(), "shared_compilations", contextlib.nullcontext
            )
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
