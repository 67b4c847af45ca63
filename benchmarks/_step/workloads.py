"""What the optimizers are given: shapes of weights, and gradients for them.

The gradients of a workload are `SETS` sets of heavy-tailed numbers (Student's
t with 2 degrees of freedom, whose variance is infinite) that come one after
another, again and again.

Which share of them `AdamaxClipped` clips is set by two hyperparameters, since
no gradients can do it with the defaults for long: a clipped element raises
`log(u)` by `log(clip_multiplier)` and any other lowers it by `-log(beta_2)`
at most, so that with 1.2 and 0.999 no more than 0.55 % can be clipped in the
long run; and a rotation through 8 sets ends within what 1.2 allows. With a
`beta_2` of 0.5 the norm forgets within a rotation, and `clip_multiplier`
decides. None of it changes what a step has to do. The Adamax of the others is
given the same `beta_2`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SETS = 8
SCALE = 1e-3
BETA_2 = 0.5
# Percent of the elements clipped -> `clip_multiplier`, found by simulating.
CLIP_MULTIPLIERS = {0: 1e6, 1: 15.0, 50: 1.2}
# In between is the share clipped in a steady state, as a fraction.
CLIP_RATE_BOUNDS = {0: (0.0, 1e-4), 1: (0.005, 0.02), 50: (0.4, 0.6)}
# From `u = 0`, after which the share stays what it is.
STEPS_TO_SETTLE = 2 * SETS
# About 1 % of the elements are larger.
CLIP_VALUE = 10 * SCALE
CLIP_NORM = 1.0

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """Weights to update.

    Attributes:
        name: Short name.
        words: What it is.
        shapes: Shape of each weight.
        rows: Rows that each gradient has of the only weight; 0 if all.
    """

    name: str
    words: str
    shapes: tuple[Shape, ...]
    rows: int = 0

    @property
    def elements(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes)


def _one() -> tuple[Shape, ...]:
    return ((3240, 3240),)


def _many() -> tuple[Shape, ...]:
    layers = ((3, 3, 64, 64), (256, 256), (128, 512), (512, 192))
    return tuple(
        shape
        for _ in range(20)
        for kernel in layers
        for shape in (kernel, kernel[-1:])
    )


def _resnet50() -> tuple[Shape, ...]:
    """The trainable weights of `keras.applications.ResNet50`."""
    shapes: list[Shape] = []

    def convolution(size: int, inputs: int, outputs: int) -> None:
        shapes.append((size, size, inputs, outputs))
        # Its bias, then scale and shift of the normalization.
        shapes.extend([(outputs,)] * 3)

    convolution(7, 3, 64)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            if block == 0:
                convolution(1, inputs, 4 * width)
            convolution(1, inputs, width)
            convolution(3, width, width)
            convolution(1, width, 4 * width)
            inputs = 4 * width
    return (*shapes, (inputs, 1000), (1000,))


def _gpt() -> tuple[Shape, ...]:
    """A transformer of 6 layers, width 384, 8192 tokens, 256 positions."""
    width = 384
    norm: tuple[Shape, ...] = ((width,), (width,))
    layer: tuple[Shape, ...] = (
        *norm,
        *((width, 3 * width), (3 * width,)),
        *((width, width), (width,)),
        *norm,
        *((width, 4 * width), (4 * width,)),
        *((4 * width, width), (width,)),
    )
    return ((8192, width), (256, width), *(layer * 6), *norm)


_FULL: dict[str, tuple[str, Callable[[], tuple[Shape, ...]], int]] = {
    # The largest first: TensorFlow keeps the variables of Keras's Adamax, of
    # each case, until the process ends.
    "embedding": ("a table, 64 rows a step", lambda: ((10**6, 64),), 64),
    "one": ("one matrix", _one, 0),
    "many": ("80 kernels and 80 biases", _many, 0),
    "resnet50": ("the shapes of ResNet-50", _resnet50, 0),
    "gpt": ("the shapes of a small GPT", _gpt, 0),
}
NAMES = tuple(_FULL)
# Not by default: a CPU needs minutes for it, and much memory.
LARGE = "large"
_FULL[LARGE] = ("one matrix of 100 million", lambda: ((10_000, 10_000),), 0)


def make(name: str, quick: bool = False) -> Workload:
    """A workload by its name.

    Args:
        name: One of `NAMES`, or `LARGE`.
        quick: Whether only to see that everything runs, on few small weights.
    """
    words, shapes, rows = _FULL[name]
    if not quick:
        return Workload(name, words, shapes(), rows)
    if rows:
        return Workload(name, words, ((1000, 64),), rows)
    small = tuple(
        tuple(min(length, 64) for length in shape) for shape in shapes()[:2]
    )
    return Workload(name, words, small)


def heavy_tailed(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Student's t with 2 degrees of freedom, from its quantile function."""
    # `random` gives multiples of 2**-24; 0 would be infinity.
    p = rng.random(shape, dtype=np.float32) + np.float32(2**-25)
    # Rounded to 1 it would be infinity, too.
    np.minimum(p, np.float32(1 - 2**-24), out=p)
    spread = np.sqrt(2 * p * (1 - p))
    p *= 2
    p -= 1
    p /= spread
    p *= SCALE
    return p


def weights(workload: Workload) -> list[np.ndarray]:
    """Values to start from."""
    rng = np.random.default_rng(0)
    return [
        0.05 * rng.standard_normal(shape, dtype=np.float32)
        for shape in workload.shapes
    ]


def dense_gradients(
    workload: Workload, sets: int = SETS
) -> list[list[np.ndarray]]:
    """For each set, a gradient for each weight."""
    rng = np.random.default_rng(1)
    return [
        [heavy_tailed(rng, shape) for shape in workload.shapes]
        for _ in range(sets)
    ]


def sparse_gradients(
    workload: Workload, sets: int = SETS
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of the only weight: indices for each set, and values.

    There is one more set of values than of indices, so that a row does not
    meet the same value in each rotation. Indices may repeat.
    """
    rng = np.random.default_rng(1)
    ((num_rows, width),) = workload.shapes
    indices = [
        rng.integers(0, num_rows, workload.rows, dtype=np.int32)
        for _ in range(sets)
    ]
    values = [
        heavy_tailed(rng, (workload.rows, width)) for _ in range(sets + 1)
    ]
    return indices, values
