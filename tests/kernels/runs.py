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
    "scaled": {"loss_scale_factor": 4.0, "global_clipnorm": 1000.0},
}


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
