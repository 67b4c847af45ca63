"""A training step in a SavedModel runs where the library is not known."""

import keras
import numpy as np
import pytest

from keras_adamax import AdamaxClipped
from tests.gradients import numpy
from tests.native.compiled import finish, needs_compiler, start

if keras.backend.backend() != "tensorflow":
    pytest.skip("SavedModels are TensorFlow's", allow_module_level=True)

import tensorflow as tf

STEPS = 3
# Another process, which has TensorFlow alone.
LOAD = """
import sys
import numpy as np
import tensorflow as tf
for folder in sys.argv[1:]:
    module = tf.saved_model.load(folder)
    given = np.load(folder + "/gradients.npz")
    for dense, rows in zip(given["dense"], given["rows"]):
        results = module.step(dense, rows)
    np.savez(folder + "/results.npz", *[x.numpy() for x in results])
    if module.signatures:
        module.signatures["serving_default"](
            dense=tf.constant(dense), rows=tf.constant(rows)
        )
assert "keras_adamax" not in sys.modules
"""
CASES = {
    "traced": {},
    "not traced": {"trains_before": False},
    "without a signature": {"input_signature": False},
    "as a signature": {"signature": "function"},
    "traced as a signature": {"signature": "concrete", "kernel": "fused"},
    "kernel compiled": {"kernel": "compiled"},
    "kernel fused": {"kernel": "fused"},
    "kernel reference": {"kernel": "reference"},
    "jit": {"jit_compile": True},
    "jit, not traced": {"jit_compile": True, "trains_before": False},
    "jit, kernel compiled": {"jit_compile": True, "kernel": "compiled"},
    "exclusions": {"exclude_from_clipping": ["table"]},
    "schedule": {
        "beta_2": keras.optimizers.schedules.ExponentialDecay(0.99, 5, 0.5)
    },
    "everything": {
        "bias_correction": True,
        "use_ema": True,
        "gradient_accumulation_steps": 2,
        "global_clipnorm": 3.0,
        "weight_decay": 0.01,
    },
}


class Trainer(tf.Module):
    """Two variables, and a step by a dense and a sparse gradient."""

    def __init__(
        self, jit_compile=False, input_signature=True, **optimizer_arguments
    ):
        super().__init__()
        self.jit_compile = jit_compile
        self.weights = [
            keras.Variable(np.ones((3, 2), "float32"), name="kernel"),
            keras.Variable(np.ones((5, 2), "float32"), name="table"),
        ]
        self.values = [weight.value for weight in self.weights]
        self.optimizer = AdamaxClipped(
            0.1, skip_nonfinite=True, **optimizer_arguments
        )
        self.optimizer.build(self.weights)
        self.step = tf.function(
            self.take_step,
            input_signature=[
                tf.TensorSpec((3, 2), name="dense"),
                tf.TensorSpec((2, 2), name="rows"),
            ]
            if input_signature
            else None,
            jit_compile=jit_compile,
            autograph=False,
        )

    def take_step(self, dense, rows):
        table = tf.IndexedSlices(rows, tf.constant([1, 1]), (5, 2))
        if self.jit_compile:
            table = tf.convert_to_tensor(table)
        self.optimizer.apply([dense, table], self.weights)
        return [
            tf.identity(value)
            for value in (*self.values, self.optimizer.clip_counts.value)
        ]

    def as_signature(self):
        """As a signature must be: with names for the results."""
        return tf.function(
            lambda dense, rows: dict(
                zip("abc", self.take_step(dense, rows), strict=True)
            ),
            input_signature=self.step.input_signature,
            autograph=False,
        )


def gradients(seed):
    rng = np.random.default_rng(seed)
    return {
        "dense": rng.normal(size=(STEPS, 3, 2)).astype("float32"),
        "rows": rng.normal(size=(STEPS, 2, 2)).astype("float32"),
    }


def train(trainer, given):
    for dense, rows in zip(given["dense"], given["rows"], strict=True):
        results = trainer.step(tf.constant(dense), tf.constant(rows))
    return [numpy(result) for result in results]


def forms_of(trainer):
    kept = getattr(trainer.optimizer, "_kept_by_kernel", {})
    updates = kept.get("functions", {})
    return {form for form, *_ in updates}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of the case here, and in another process: all cases at once."""
    here, folders = {}, {}
    for name, case in CASES.items():
        arguments = dict(case)
        trains_before = arguments.pop("trains_before", True)
        kind = arguments.pop("signature", None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KERAS_ADAMAX_KERNEL", arguments.pop("kernel", "auto"))
            trainer = Trainer(**arguments)
        if trains_before:
            train(trainer, gradients(0))
        forms = forms_of(trainer)
        signature = trainer.as_signature() if kind else None
        if signature and kind == "concrete":
            signature = signature.get_concrete_function()
        folders[name] = str(tmp_path_factory.mktemp("saved_model"))
        tf.saved_model.save(trainer, folders[name], signatures=signature)
        np.savez(folders[name] + "/gradients.npz", **gradients(1))
        here[name] = train(trainer, gradients(1)), forms
    finish(start("-c", LOAD, *folders.values()))
    return {
        name: (*here[name], list(np.load(folder + "/results.npz").values()))
        for name, folder in folders.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_another_process_goes_on_with_it(results, name):
    here, _, there = results[name]
    for expected, result in zip(here, there, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    # They did move, and were counted.
    assert (there[0] != 1).all()
    assert there[2].sum() > 0


@needs_compiler
def test_training_here_is_by_the_library(results):
    """Otherwise nothing was replaced where a step was saved."""
    assert results["traced"][1] == {"operation"}
    assert results["jit"][1] == {"calls"}
