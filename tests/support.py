"""Ways to take a step, and what to compare afterwards."""

import re

import keras
import numpy as np
import pytest

from tests.gradients import numpy, to_backend
from tests.oracle import AdamaxClippedOracle

BACKEND = keras.backend.backend()

SHAPES = ((3, 2), (), (3, 0))

# The ways of `fit`, as arguments of `compile`. On JAX no compilation is the
# same as running eagerly. torch.compile takes long, so it has a test of its
# own; and `steps_per_execution` Keras does not support on torch.
FIT_MODES = {
    "tensorflow": {
        "graph": {"jit_compile": False},
        "jit": {"jit_compile": True},
        "eager": {"run_eagerly": True},
        "steps_per_execution": {
            "jit_compile": False,
            "steps_per_execution": 3,
        },
    },
    "jax": {
        "jit": {"jit_compile": True},
        "eager": {"jit_compile": False},
        "steps_per_execution": {"jit_compile": True, "steps_per_execution": 3},
    },
    "torch": {
        "plain": {"jit_compile": False},
        "eager": {"run_eagerly": True},
    },
}[BACKEND]
COMPILED_FIT = {
    "tensorflow": ("graph", "jit"),
    "jax": ("jit",),
    "torch": ("plain",),
}[BACKEND]
DEFAULT_FIT = COMPILED_FIT[0]

# The ways of a custom loop, see `make_step`.
LOOPS = {
    "tensorflow": ("eager", "graph", "jit"),
    "jax": ("eager", "stateless"),
    "torch": ("no_grad", "recorded"),
}[BACKEND]
COMPILED_LOOP = LOOPS[-1]


def repeated(*values):
    """Further values for a test: what they repeat a quick test covers once."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# Quick tests take the ways that users take.
EVERY_LOOP = [COMPILED_LOOP, *repeated(*LOOPS[:-1])]
EVERY_FIT_MODE = [
    DEFAULT_FIT,
    *repeated(*(mode for mode in FIT_MODES if mode != DEFAULT_FIT)),
]


def id_of(value):
    """The id of a parametrized test: the same in each of several processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def gradients_of(rng, shapes, steps, dtype="float32"):
    """Random gradients that float16 and bfloat16 hold exactly.

    Sizes range over 2^-6 to 2^6, with zeros and with sudden jumps.

    Returns:
        A list with an entry a step, each a list with an array a shape.
    """

    def draw(shape):
        significand = rng.integers(128, 256, shape) / 128
        exponent = rng.integers(-3, 2, shape)
        exponent = exponent + rng.choice([-3, 0, 4], shape, p=[0.2, 0.6, 0.2])
        sign = rng.choice([-1.0, 0.0, 1.0], shape, p=[0.45, 0.1, 0.45])
        return np.asarray(sign * significand * 2.0**exponent, dtype)

    return [[draw(shape) for shape in shapes] for _ in range(steps)]


def sparse_gradients_of(rng, rows, width, steps, dtype="float32"):
    """Pairs (indices, values) with repeated indices, n == rows among them."""
    result = []
    for step in range(steps):
        count = rows if step % 2 == 0 else 2 * rows - 3
        indices = rng.integers(0, rows, count).astype("int32")
        indices[-1] = indices[0]
        values = gradients_of(rng, [(count, width)], 1, dtype)[0][0]
        result.append((indices, values))
    return result


def values_of(rng, shapes):
    return [np.asarray(rng.normal(size=s), "float32") for s in shapes]


def make_variables(values, **kwargs):
    return [
        keras.Variable(value, name=f"weight_{i}", **kwargs)
        for i, value in enumerate(values)
    ]


def make_step(loop, optimizer, variables):
    """A function that takes one step on arrays, pairs and `None`.

    Args:
        loop: One of `LOOPS`. TensorFlow: "eager", "graph", "jit"; JAX: "eager"
            and "stateless" (jitted, with donated buffers); torch: "no_grad"
            and "recorded" (autograd on).
        optimizer: Any optimizer. It is built here.
        variables: Its variables.

    Returns:
        The function. Where it is traced, its attribute `traces` is the number
        of traces.
    """
    variables = list(variables)
    if not optimizer.built:
        optimizer.build(variables)

    def prepare(gradients):
        return [
            to_backend(g, v) for g, v in zip(gradients, variables, strict=True)
        ]

    if loop in ("eager", "recorded"):

        def step(gradients):
            optimizer.apply(prepare(gradients), variables)

    elif loop == "no_grad":
        import torch

        def step(gradients):
            with torch.no_grad():
                optimizer.apply(prepare(gradients), variables)

    elif loop == "stateless":
        import jax

        def stateless(state, gradients, values):
            step.traces += 1
            return optimizer.stateless_apply(state, gradients, values)

        jitted = jax.jit(stateless, donate_argnums=(0, 2))

        def step(gradients):
            values, state = jitted(
                [v.value for v in optimizer.variables],
                prepare(gradients),
                [v.value for v in variables],
            )
            targets = (*variables, *optimizer.variables)
            for v, value in zip(targets, (*values, *state), strict=True):
                v.assign(value)

    else:
        import tensorflow as tf

        @tf.function(jit_compile=loop == "jit")
        def traced(gradients):
            step.traces += 1
            optimizer.apply(gradients, variables)

        def step(gradients):
            traced(prepare(gradients))

    step.traces = 0
    return step


class GradientLayer(keras.layers.Layer):
    """See `GradientModel`."""

    def __init__(self, values, unused, constraints, dtype):
        super().__init__(name="layer", dtype=dtype)
        self.unused = set(unused)
        constraints = constraints or {}
        for i, value in enumerate(values):
            self.add_weight(
                shape=np.shape(value),
                initializer="zeros",
                constraint=constraints.get(i),
                name=f"weight_{i}",
            )
        self.built = True
        for variable, value in zip(self.weights, values, strict=True):
            variable.assign(value)

    def call(self, x):
        offset = 0
        total = 0
        for i, variable in enumerate(self.weights):
            size = int(np.prod(variable.shape))
            part = x[:, offset : offset + size]
            offset += size
            if i not in self.unused:
                flat = keras.ops.reshape(
                    keras.ops.convert_to_tensor(variable), (1, size)
                )
                total = total + keras.ops.sum(part * flat, axis=1)
        return total


class GradientModel(keras.Model):
    """A model whose gradients are its input.

    The output for an example is the sum of weight times input over all
    weights. So the gradient of a weight is its part of the example, averaged
    over the batch: a batch of one gives any gradient exactly, NaN and Inf
    included, through all that `fit` does.

    Args:
        values: Initial values of the weights.
        unused: Positions of weights that the output does not depend on.
        constraints: Position to constraint.
        dtype: Name of a dtype policy.
    """

    def __init__(self, values, unused=(), constraints=None, dtype=None):
        super().__init__(dtype=dtype)
        # A layer of its own: on JAX `fit` does not cast a model's weights.
        self.layer = GradientLayer(values, unused, constraints, dtype)

    def call(self, x):
        return self.layer(x)


def output_as_loss(y_true, y_pred):
    del y_true
    return y_pred


def fit(model, gradients, batch_size=1, **kwargs):
    """Trains a compiled `GradientModel` on gradients, one a batch of one."""
    x = np.stack([np.concatenate([np.ravel(g) for g in s]) for s in gradients])
    y = np.zeros(len(x), x.dtype)
    kwargs = {"shuffle": False, "verbose": 0} | kwargs
    return model.fit(x, y, batch_size=batch_size, **kwargs)


def start_fit(
    values,
    optimizer,
    mode=DEFAULT_FIT,
    unused=(),
    constraints=None,
    dtype=None,
    **kwargs,
):
    """A compiled `GradientModel`."""
    model = GradientModel(values, unused, constraints, dtype)
    arguments = {"loss": output_as_loss, "auto_scale_loss": False}
    model.compile(optimizer, **(arguments | FIT_MODES[mode] | kwargs))
    return model


def run_oracle(oracle, gradients):
    for step in gradients:
        oracle.step(step)
    return oracle


def oracle_of(values, **kwargs):
    """An oracle for what `AdamaxClipped(**kwargs)` does."""
    return AdamaxClippedOracle(values, **kwargs)


def assert_follows(oracle, optimizer, variables, averages=False):
    """Weights, moments and clip statistics are the oracle's.

    Args:
        oracle: The oracle, after the same steps.
        optimizer: An `AdamaxClipped`.
        variables: The variables that the oracle follows.
        averages: Whether the weights were replaced by their averages, as Keras
            does at the end of `fit` with `use_ema`.
    """
    assert_state_follows(oracle, optimizer, variables, averages)
    assert_counts(oracle, optimizer, variables)


def assert_state_follows(oracle, optimizer, variables, averages=False):
    """Weights and moments are the oracle's; see `assert_follows`."""
    weights = ("average",) if averages else ("w",)
    for i, variable in enumerate(variables):
        index = optimizer._get_variable_index(variable)
        for name, actual in (
            *((weight, variable) for weight in weights),
            ("m", optimizer._momentums[index]),
            ("u", optimizer._norms[index]),
        ):
            expected = getattr(oracle, name)[i]
            bound = getattr(oracle, name + "_error")[i]
            actual = numpy(actual)
            assert actual.shape == expected.shape
            error = np.abs(actual - expected)
            assert (error <= bound).all(), (
                f"{name} of weight {i}: {actual} instead of {expected}, "
                f"bound {bound}"
            )


def assert_counts(oracle, optimizer, variables):
    """The clip statistics are the oracle's, exactly."""
    # Designed inputs: no element may count either way.
    assert sum(oracle.ambiguous) == 0
    statistics = optimizer.clip_statistics()
    indices = [optimizer._get_variable_index(v) for v in variables]
    counted = list(statistics.counted.values())
    clipped = list(statistics.clipped.values())
    assert [counted[i] for i in indices] == oracle.counted
    assert [clipped[i] for i in indices] == oracle.clipped
    rates = list(optimizer.clip_rates().values())
    np.testing.assert_allclose(
        [rates[i] for i in indices], oracle.clip_rates(), rtol=0, atol=1e-6
    )
    if len(variables) == len(rates):
        np.testing.assert_allclose(
            optimizer.clip_rate(), oracle.clip_rate(), rtol=0, atol=1e-6
        )


def state_of(optimizer, variables=()):
    """All values of an optimizer and of its variables, to compare later."""
    return {
        f"{i}: {v.path}": np.array(keras.ops.convert_to_numpy(v))
        for i, v in enumerate((*optimizer.variables, *variables))
    }


def set_weights(optimizer, values):
    """Sets the state as a user does; one of three ways to do it."""
    optimizer.set_weights(values)


def assign_variables(optimizer, values):
    """Sets the state without the optimizer's knowledge."""
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable.assign(value)


def set_state_tree(optimizer, values):
    """Does what `keras.Model.set_state_tree` does with an optimizer."""
    model = keras.Sequential()
    model.optimizer = optimizer
    tree = {
        variable.path: value
        for variable, value in zip(optimizer.variables, values, strict=True)
    }
    model.set_state_tree({"optimizer_variables": tree})


def assert_same(before, after, but=()):
    """Two results of `state_of` are equal, bit for bit.

    Args:
        before: One.
        after: The other.
        but: Names; variables whose path ends in one of them must differ.
    """
    assert list(before) == list(after)
    for path, value in before.items():
        is_equal = np.array_equal(
            value.view("uint8") if value.ndim else value,
            after[path].view("uint8") if value.ndim else after[path],
        )
        if path.endswith(tuple(but)):
            assert not is_equal, f"{path} did not change"
        else:
            assert is_equal, f"{path}: {value} became {after[path]}"
