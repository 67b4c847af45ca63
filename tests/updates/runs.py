"""Runs of a whole optimizer, to compare what its kernels give."""

import keras
import numpy as np

import keras_adamax
from tests.oracle import heavy_tailed_gradients
from tests.support import make_step, state_of

# In slabs with a rest and without, in one piece, without elements, a scalar.
SHAPES = ((37, 5), (70_001,), (128, 128), (), (3, 0))
EXPONENTIAL = keras.optimizers.schedules.ExponentialDecay
OPTIONS = {
    "defaults": {},
    "corrected": {"bias_correction": True},
    "unclipped": {"clip_gradients": False},
    "uncounted": {"track_clip_rate": False},
    "excluded": {"exclude_from_clipping": ["weight_0", "weight_2"]},
    "no epsilon": {"epsilon": 0.0},
    "no memory": {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.0},
    "scheduled": {
        "beta_1": EXPONENTIAL(0.9, 10, 0.9),
        "clip_multiplier": EXPONENTIAL(2.0, 10, 0.9),
        "bias_correction": True,
    },
    "decayed, averaged": {
        "weight_decay": 0.01,
        "use_ema": True,
        "clipnorm": 100.0,
    },
    "accumulated": {"gradient_accumulation_steps": 3},
    "skipping": {"skip_nonfinite": True},
    "gated": {"spike_threshold": 0.3, "clip_epsilon": 1.0},
    "scaled": {"loss_scale_factor": 4.0, "global_clipnorm": 1000.0},
}
PRECISION = {"float32": 2.0**-24, "float64": 2.0**-53}
# As coarse as the weight is; the state is float32.
WEIGHT_PRECISION = {**PRECISION, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def make(dtype="float32", shapes=SHAPES, **options):
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.normal(size=shape), dtype=dtype, name=f"weight_{i}")
        for i, shape in enumerate(shapes)
    ]
    optimizer = keras_adamax.AdamaxClipped(learning_rate=0.01, **options)
    optimizer.build(variables)
    return optimizer, variables


def run(loop, steps, dtype="float32", shapes=SHAPES, nonfinite=(), **options):
    """States after `steps` heavy-tailed gradients; the clipped totals."""
    optimizer, variables = make(dtype, shapes, **options)
    step = make_step(loop, optimizer, variables)
    rng = np.random.default_rng(1)
    series = [heavy_tailed_gradients(rng, shape, steps) for shape in shapes]
    for number, value in enumerate(nonfinite):
        series[0][steps // 2, number, 2] = value
    for gradients in zip(*series, strict=True):
        step(list(gradients))
    return state_of(optimizer, variables), optimizer.clip_statistics()


def assert_equal_up_to_rounding(actual, expected, steps, dtype="float32"):
    """A product and a sum in one rounding or two: no more may differ.

    Each step rounds `u` at most 3 times and `m` at most 6 times more, each
    time by its own size or less, and a weight moves by no more than the
    learning rate times 1 + 8 roundings.
    """
    assert list(actual) == list(expected)
    precision = PRECISION.get(dtype, PRECISION["float32"])
    norms = {
        path.rpartition("weight_")[2].split("_")[0].split(":")[0]: value
        for path, value in expected.items()
        if path.endswith("_norm")
    }
    for path, value in expected.items():
        value, other = (x[path].astype("float64") for x in (expected, actual))
        if path.endswith(("_norm", "_momentum")):
            number = path.rpartition("weight_")[2].split("_")[0]
            # The norm fades by no more than this, and bounds the momentum.
            size = norms[number].astype("float64") / 0.999**steps
            limit = 9 * steps * precision * size + 1e-300
            finite = np.isfinite(value) & np.isfinite(other)
            np.testing.assert_array_equal(
                value[~finite], other[~finite], err_msg=path
            )
            assert (np.abs(value - other) <= limit)[finite].all(), path
        elif "weight_" in path:
            coarse = WEIGHT_PRECISION[dtype]
            np.testing.assert_allclose(
                other,
                value,
                rtol=4 * coarse * (1 if coarse > 1e-6 else steps),
                atol=0.01 * steps * 30 * precision + 4 * coarse * 0.01,
                err_msg=path,
            )
        else:
            np.testing.assert_allclose(
                other, value, rtol=1e-6, atol=0, err_msg=path
            )
