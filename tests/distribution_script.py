"""Training on several virtual CPUs; run by `test_distribution.py`.

    python -m tests.distribution_script results.json

Devices can be made only before a backend starts, so this is a process of its
own. It runs every scenario for the backend and writes what came of it. The
scenarios and their gradients stand here because both sides need them.
"""

import dataclasses
import functools
import json
import os
import sys
import traceback
from typing import Any

REPLICAS = {"tensorflow": 2, "jax": 4}
if "KERAS_ADAMAX_REPLICAS" in os.environ:
    # As many on both: a multiple of 4 on JAX.
    REPLICAS = dict.fromkeys(REPLICAS, int(os.environ["KERAS_ADAMAX_REPLICAS"]))
SHAPES = ((3, 2), (4,), ())
ROWS, WIDTH, SLICES = 5, 2, 4
STEPS = 6


@dataclasses.dataclass
class Scenario:
    """What to train.

    Attributes:
        config: Arguments of the optimizer. A number for `beta_1` that is a
            tuple is a schedule: `(boundary, before, after)`.
        way: "loop" or "fit", of dense weights; "sparse loop" or "sparse fit",
            of an embedding's table and a vector.
        dtype: Of the weights in a loop; the policy in `fit`.
        loss_scale: Initial scale of a LossScaleOptimizer around, or `None`.
        bad: Step to (replica, value, weight): one element becomes this value.
            The step is made from a copy of the gradients, before them.
        large: Step to a size: all elements on all replicas are this. Made
            from a copy as well.
        changes: Step to hyperparameters, set before it.
        absent: Positions of weights without a gradient.
        not_decayed: Positions of weights without decay.
        compile: Arguments of `compile`.
        fails: Whether Keras itself cannot do it.
        splits: Whether the weight of shape (4,) is spread over the devices.
        backends: Where it is run.
    """

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    way: str = "loop"
    dtype: str = "float32"
    loss_scale: float | None = None
    bad: dict[int, tuple] = dataclasses.field(default_factory=dict)
    large: dict[int, float] = dataclasses.field(default_factory=dict)
    changes: dict[int, dict] = dataclasses.field(default_factory=dict)
    absent: tuple[int, ...] = ()
    not_decayed: tuple[int, ...] = ()
    compile: dict[str, Any] = dataclasses.field(default_factory=dict)
    fails: bool = False
    splits: bool = False
    backends: tuple[str, ...] = ("tensorflow", "jax")


# So that some elements are clipped, and some are not.
CONFIG = {"clip_epsilon": 0.5}
NAN, INF = float("nan"), float("inf")
CHANGES = {
    2: {"clip_multiplier": 3.0, "learning_rate": 0.25},
    3: {
        "beta_1": 0.5,
        "beta_2": 0.75,
        "epsilon": 0.25,
        "clip_epsilon": 0.5,
        "weight_decay": 0.125,
    },
}
EVERYTHING = {
    "weight_decay": 0.25,
    "learning_rate": 0.125,
    "use_ema": True,
    "ema_momentum": 0.5,
    "beta_1": (1, 0.5, 0.75),
    "bias_correction": True,
}
SKIP = {"skip_nonfinite": True}
GATE = {
    "spike_threshold": 0.2,
    "max_skipped_spikes": 2,
    "clip_epsilon": 4.0,
}
TF, JAX = ("tensorflow",), ("jax",)

SCENARIOS = {
    "loop": Scenario(),
    "fit": Scenario(way="fit"),
    "fit, not compiled": Scenario(
        way="fit", compile={"run_eagerly": True}, backends=TF
    ),
    "sparse loop": Scenario(way="sparse loop", backends=TF),
    "sparse fit": Scenario(way="sparse fit"),
    "gated loop": Scenario(GATE),
    "gated fit": Scenario(GATE, way="fit"),
    # Few elements exceed their bounds there.
    "gated sparse fit": Scenario(
        GATE | {"spike_threshold": 0.1}, way="sparse fit"
    ),
    "everything": Scenario(EVERYTHING, not_decayed=(1,)),
    "everything in fit": Scenario(EVERYTHING, way="fit"),
    "everything in sparse fit": Scenario(EVERYTHING, way="sparse fit"),
    "clipnorm in sparse fit": Scenario(
        {"clipnorm": 3.0}, way="sparse fit", backends=JAX
    ),
    "global_clipnorm in fit": Scenario(
        {"global_clipnorm": 3.0}, way="fit", backends=JAX
    ),
    "no clipping": Scenario({"clip_gradients": False}),
    "float16": Scenario({"weight_decay": 0.25}, dtype="float16"),
    "float16 in fit": Scenario(
        {"weight_decay": 0.25}, dtype="float16", way="fit"
    ),
    "mixed_bfloat16 in fit": Scenario(
        # JAX sums the gradients of a batch in bfloat16.
        dtype="mixed_bfloat16",
        way="fit",
        backends=TF,
    ),
    "absent gradient": Scenario(absent=(1,), backends=TF),
    "split weight": Scenario(splits=True, backends=JAX),
    "split weight, float16": Scenario(
        SKIP | EVERYTHING,
        dtype="float16",
        bad={2: (0, NAN, 1)},
        splits=True,
        backends=JAX,
    ),
    "split weight in fit": Scenario(way="fit", splits=True, backends=JAX),
    # Measuring.
    "gradient norms": Scenario({"track_gradient_norms": True}),
    "gradient norms in fit": Scenario(
        GATE | {"track_gradient_norms": True}, way="fit"
    ),
    "gradient norms in sparse loop": Scenario(
        {"track_gradient_norms": True}, way="sparse loop", backends=TF
    ),
    "gradient norms of a split weight, skip": Scenario(
        SKIP | {"track_gradient_norms": True},
        bad={2: (-1, NAN, 1)},
        splits=True,
        backends=JAX,
    ),
    # Skipping.
    "skip NaN of the first": Scenario(SKIP, bad={2: (0, NAN, 0)}),
    "skip NaN of the last": Scenario(SKIP | EVERYTHING, bad={2: (-1, NAN, 1)}),
    "skip Inf in fit": Scenario(
        SKIP | EVERYTHING, way="fit", bad={0: (0, INF, 0), 3: (-1, -INF, 2)}
    ),
    "skip NaN in sparse loop": Scenario(
        SKIP, way="sparse loop", bad={2: (-1, NAN, 0)}, backends=TF
    ),
    "skip NaN in sparse fit": Scenario(
        SKIP | EVERYTHING, way="sparse fit", bad={2: (-1, NAN, 0)}
    ),
    "skip what overflows in the sum": Scenario(SKIP, large={2: 3e38}),
    "skip what overflows in a sum of rows": Scenario(
        # Replicas have a row in common, and none has it twice.
        SKIP,
        way="sparse loop",
        large={2: 3e38},
        backends=TF,
    ),
    "skip what overflows in half precision": Scenario(
        SKIP, dtype="float16", large={2: 40000.0}, backends=TF
    ),
    "NaN spreads": Scenario(bad={2: (-1, NAN, 0)}),
    "Inf is clipped": Scenario(bad={2: (0, INF, 0)}),
    # Live changes.
    "target clip rate": Scenario({"target_clip_rate": 0.75}),
    "target clip rate in fit": Scenario({"target_clip_rate": 0.75}, way="fit"),
    "changes": Scenario({"weight_decay": 0.0}, changes=CHANGES),
    "changes in fit": Scenario(
        {"weight_decay": 0.0}, way="fit", changes=CHANGES
    ),
    "changes in sparse fit": Scenario(
        {"weight_decay": 0.0}, way="sparse fit", changes=CHANGES
    ),
    # Around it. Keras asks the first replica alone what is finite.
    "loss scale": Scenario(loss_scale=8.0),
    "loss scale in fit": Scenario(
        loss_scale=8.0, way="fit", dtype="mixed_float16"
    ),
    "loss scale withholds": Scenario(loss_scale=8.0, bad={2: (0, INF, 0)}),
    "loss scale overlooks": Scenario(
        SKIP, loss_scale=8.0, bad={2: (1, INF, 0)}, backends=TF
    ),
    # What Keras cannot do under MirroredStrategy.
    "accumulation": Scenario(
        {"gradient_accumulation_steps": 2}, way="fit", backends=JAX
    ),
    "accumulation, sparse": Scenario(
        {"gradient_accumulation_steps": 2}, way="sparse fit", backends=JAX
    ),
    "ema_overwrite_frequency": Scenario(
        {"use_ema": True, "ema_overwrite_frequency": 2},
        way="fit",
        backends=JAX,
    ),
    "steps_per_execution": Scenario(
        way="fit", compile={"steps_per_execution": 3}, backends=JAX
    ),
}
for name in ("accumulation", "ema_overwrite_frequency", "steps_per_execution"):
    SCENARIOS["Keras fails: " + name] = dataclasses.replace(
        SCENARIOS[name], fails=True, backends=TF
    )


def make_gradients(scenario, replicas):
    """Values, and a list (steps) of lists (replicas) of gradients a weight."""
    import numpy as np

    from tests import support

    # Seeds with which the gate leaves something out.
    rng = np.random.default_rng(12 if replicas == 8 else 7)
    is_sparse = scenario.way.startswith("sparse")
    shapes = [(ROWS, WIDTH), (3,)] if is_sparse else SHAPES
    values = support.values_of(rng, shapes)
    if scenario.dtype != "float32":
        values = [v.astype("float16").astype("float32") for v in values]

    def draw(replica):
        gradients = support.gradients_of(rng, shapes, 1)[0]
        if is_sparse:
            indices = rng.integers(0, ROWS, SLICES)
            indices[-1] = indices[0]
            rows = support.gradients_of(rng, [(SLICES, WIDTH)], 1)[0][0]
            gradients[0] = (indices.astype("int32"), rows)
        return [
            None if i in scenario.absent else g for i, g in enumerate(gradients)
        ]

    steps = []
    for step in range(STEPS):
        gradients = [draw(replica) for replica in range(replicas)]
        if step in scenario.bad:
            replica, value, weight = scenario.bad[step]
            spoilt = [list(g) for g in gradients]
            spoilt[replica][weight] = _spoil(spoilt[replica][weight], value)
            steps.append(spoilt)
        if step in scenario.large:
            size = np.float32(scenario.large[step])
            steps.append([_fill(g, size, r) for r, g in enumerate(gradients)])
        steps.append(gradients)
    return values, steps


def _spoil(gradient, value):
    if isinstance(gradient, tuple):
        return gradient[0], _spoil(gradient[1], value)
    gradient = gradient.copy()
    gradient[(-1,) * gradient.ndim] = value
    return gradient


def _fill(gradients, size, replica):
    import numpy as np

    def fill(gradient):
        if not isinstance(gradient, tuple):
            return np.zeros_like(gradient)
        # Rows 0 and 1 + replica: row 0 alone is in common.
        indices = np.array([0, 1 + replica], "int32")
        return indices, np.full((2, WIDTH), size)

    if isinstance(gradients[0], tuple):
        return [fill(g) for g in gradients]
    return [np.full_like(g, size) for g in gradients]


def make_optimizer(scenario, is_ours=True):
    import keras

    from keras_adamax import AdamaxClipped, TargetClipRate

    config: dict[str, Any] = dict(scenario.config)
    if is_ours:
        config = CONFIG | config
    if isinstance(config.get("beta_1"), tuple):
        boundary, before, after = config["beta_1"]
        config["beta_1"] = keras.optimizers.schedules.PiecewiseConstantDecay(
            [boundary], [before, after]
        )
    target = config.pop("target_clip_rate", None)
    if target is not None:
        config["clip_multiplier"] = TargetClipRate(target)
    cls = AdamaxClipped if is_ours else keras.optimizers.Adamax
    inner = outer = cls(**config)
    if scenario.loss_scale is not None:
        outer = keras.optimizers.LossScaleOptimizer(inner, scenario.loss_scale)
    return inner, outer


def make_model(scenario, values):
    import keras

    from tests import support

    if not scenario.way.startswith("sparse"):
        return support.GradientModel(values, dtype=scenario.dtype)

    class Table(keras.Model):
        """Gradients of rows and of a vector are its input."""

        def __init__(self):
            super().__init__(dtype=scenario.dtype)
            self.table = keras.layers.Embedding(ROWS, WIDTH)
            self.table.build()
            self.vector = support.GradientLayer(values[1:], (), {}, None)
            self.table.embeddings.assign(values[0])

        def call(self, inputs):
            indices, rows, vector = inputs
            return self.vector(vector) + keras.ops.sum(
                self.table(indices) * rows, axis=(1, 2)
            )

    return Table()


def make_data(scenario, steps):
    """One example a replica."""
    import numpy as np

    examples = [gradients for step in steps for gradients in step]
    y = np.zeros(len(examples), "float32")
    if not scenario.way.startswith("sparse"):
        x = [np.concatenate([np.ravel(g) for g in e]) for e in examples]
        return np.stack(x), y
    x = (
        np.stack([e[0][0] for e in examples]),
        np.stack([e[0][1] for e in examples]),
        np.stack([e[1] for e in examples]),
    )
    return x, y


def run_fit(scenario, values, steps, scope, is_ours):
    import keras

    from tests import support

    class Change(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer = self.model.optimizer
            optimizer = getattr(optimizer, "inner_optimizer", optimizer)
            for name, value in scenario.changes.get(batch + 1, {}).items():
                setattr(optimizer, name, value)

    with scope():
        model = make_model(scenario, values)
        inner, outer = make_optimizer(scenario, is_ours)
        model.compile(
            outer,
            support.output_as_loss,
            auto_scale_loss=False,
            **scenario.compile,
        )
    x, y = make_data(scenario, steps)
    model.fit(
        x,
        y,
        batch_size=len(steps[0]),
        shuffle=False,
        verbose=0,
        callbacks=[Change()] if scenario.changes else [],
    )
    return inner, model.trainable_variables


def run_mirrored_loop(scenario, values, steps, strategy, is_ours):
    import tensorflow as tf

    from tests import support

    with strategy.scope():
        variables = support.make_variables(values, dtype=scenario.dtype)
        inner, outer = make_optimizer(scenario, is_ours)
        inner.exclude_from_weight_decay(
            var_list=[variables[i] for i in scenario.not_decayed]
        )
        outer.build(variables)

    def make_tensor(gradient, variable):
        if gradient is None:
            return None
        if isinstance(gradient, tuple):
            indices, rows = gradient
            return tf.IndexedSlices(
                tf.constant(rows),
                tf.constant(indices),
                tf.constant([ROWS, WIDTH]),
            )
        return tf.constant(gradient, variable.dtype)

    @tf.function
    def step(gradients):
        strategy.run(lambda g: outer.apply(g, variables), args=(gradients,))

    for i, replicas in enumerate(steps):
        for name, value in scenario.changes.get(i, {}).items():
            setattr(inner, name, value)
        scale = 1.0
        if scenario.loss_scale is not None:
            scale = float(outer.dynamic_scale.numpy())
        tensors = [
            [
                make_tensor(g if g is None else _scaled(g, scale), v)
                for g, v in zip(gradients, variables, strict=True)
            ]
            for gradients in replicas
        ]

        def value_of(context, tensors=tensors):
            return tensors[context.replica_id_in_sync_group]

        step(strategy.experimental_distribute_values_from_function(value_of))
    return inner, variables


def _scaled(gradient, scale):
    import numpy as np

    if isinstance(gradient, tuple):
        return gradient[0], gradient[1] * np.float32(scale)
    return gradient * np.float32(scale)


def run_sharded_loop(scenario, values, steps, is_ours):
    """`stateless_apply` on gradients that are sums over a sharded batch."""
    import jax
    import keras
    import numpy as np

    from tests import support

    variables = support.make_variables(values, dtype=scenario.dtype)
    inner, outer = make_optimizer(scenario, is_ours)
    inner.exclude_from_weight_decay(
        var_list=[variables[i] for i in scenario.not_decayed]
    )
    outer.build(variables)
    distribution = keras.distribution.distribution()

    @jax.jit
    def step(state, batches, values):
        gradients = [b.sum(axis=0) for b in batches]
        return outer.stateless_apply(state, gradients, values)

    for i, replicas in enumerate(steps):
        for name, value in scenario.changes.get(i, {}).items():
            setattr(inner, name, value)
        scale = 1.0
        if scenario.loss_scale is not None:
            scale = float(np.asarray(outer.dynamic_scale.value))
        batches = []
        for k, variable in enumerate(variables):
            batch = np.stack([_scaled(g[k], scale) for g in replicas])
            layout = distribution.get_data_layout(batch.shape).backend_layout
            batches.append(jax.device_put(batch.astype(variable.dtype), layout))
        new_values, state = step(
            [v.value for v in outer.variables],
            batches,
            [v.value for v in variables],
        )
        for v, value in zip(
            (*variables, *outer.variables), (*new_values, *state), strict=True
        ):
            v.assign(value)
    return inner, variables


def report(optimizer, variables, replicas_of):
    """What the tests compare; values of all replicas."""
    from keras_adamax import AdamaxClipped

    result = {
        "weights": [
            [r.astype("float64").tolist() for r in replicas_of(v)]
            for v in variables
        ],
        "iterations": int(replicas_of(optimizer.iterations)[0]),
    }
    if isinstance(optimizer, AdamaxClipped):
        statistics = optimizer.clip_statistics()
        result |= {
            "clipped": list(statistics.clipped.values()),
            "counted": list(statistics.counted.values()),
            "clip_rates": list(optimizer.clip_rates().values()),
            "skipped_steps": optimizer.skipped_steps(),
            "spike_steps": optimizer.spike_steps(),
            "spikes": [
                [s.call, s.step, s.rate, *s.variables.values()]
                for s in optimizer.spikes()
            ],
            "gradient_norms": list(
                optimizer.gradient_statistics().gradient_norms().values()
            ),
            "nonfinite": list(optimizer.nonfinite_gradients().values()),
            # Every replica has the same state.
            "differing": [
                v.path
                for v in optimizer.variables
                if len({r.tobytes() for r in replicas_of(v)}) > 1
            ],
        }
    return result


@functools.cache
def mirrored_strategy():
    import tensorflow as tf

    # One for all: the collective operations of two get into each other's way.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{number}" for number in range(REPLICAS["tensorflow"])]
    )


def run_tensorflow(scenario, is_ours):
    import keras
    import tensorflow as tf

    strategy = mirrored_strategy()
    assert strategy.num_replicas_in_sync == REPLICAS["tensorflow"]
    values, steps = make_gradients(scenario, REPLICAS["tensorflow"])
    if scenario.way.endswith("fit"):
        result = run_fit(scenario, values, steps, strategy.scope, is_ours)
    else:
        result = run_mirrored_loop(scenario, values, steps, strategy, is_ours)

    def replicas_of(variable):
        if isinstance(variable, keras.Variable):
            variable = variable.value
        values = strategy.experimental_local_results(variable)
        return [tf.convert_to_tensor(v).numpy() for v in values]

    return report(*result, replicas_of)


def run_jax(scenario, is_ours):
    import contextlib

    import jax
    import keras
    import numpy as np

    assert len(jax.devices()) == REPLICAS["jax"]
    keras.distribution.set_distribution(
        split_weight() if scenario.splits else keras.distribution.DataParallel()
    )
    values, steps = make_gradients(scenario, REPLICAS["jax"])
    if scenario.way.endswith("fit"):
        result = run_fit(
            scenario, values, steps, contextlib.nullcontext, is_ours
        )
    else:
        result = run_sharded_loop(scenario, values, steps, is_ours)

    def replicas_of(variable):
        value = getattr(variable, "value", variable)
        if scenario.splits:
            # Put together, as any device would read it.
            return [np.asarray(value)] * REPLICAS["jax"]
        shards = [np.asarray(s.data) for s in value.addressable_shards]
        assert len(shards) == REPLICAS["jax"]
        return shards

    splits = {}
    if scenario.splits:
        splits = {"split": parts_of(*result), "split bfloat16": parts_of()}
    return report(*result, replicas_of) | splits


def split_weight():
    """Spreads the weight of shape (4,), its bfloat16 twin, and their state."""
    import keras

    mesh = keras.distribution.DeviceMesh(
        (REPLICAS["jax"] // 4, 4), ("batch", "model")
    )
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*weight_1$"] = ("model",)
    return keras.distribution.ModelParallel(layout_map=layouts)


def parts_of(optimizer=None, variables=None):
    """Shape of what a device has, of each weight, its momentum and its norm.

    By default of a bfloat16 weight, before any step.
    """
    import keras
    import numpy as np

    from keras_adamax import AdamaxClipped

    if optimizer is None:
        values = [np.ones(shape, "float32") for shape in SHAPES]
        variables = [
            keras.Variable(value, dtype="bfloat16", name=f"weight_{i}")
            for i, value in enumerate(values)
        ]
        optimizer = AdamaxClipped()
        optimizer.build(variables)
    return [
        [
            list(v.value.sharding.shard_shape(v.value.shape))
            for v in (variable, optimizer._momentums[i], optimizer._norms[i])
        ]
        for i, variable in enumerate(variables)
    ]


def main(path):
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * REPLICAS[backend],
        )
    run = {"tensorflow": run_tensorflow, "jax": run_jax}[backend]
    results = {}
    only = os.environ.get("SCENARIO")
    for name, scenario in SCENARIOS.items():
        if backend not in scenario.backends or (only and only != name):
            continue
        # Where ours fails the test asks whether Keras's own does, too.
        for is_ours in (True, False) if scenario.fails else (True,):
            key = name if is_ours else f"{name} (keras)"
            try:
                results[key] = run(scenario, is_ours)
            except Exception:
                results[key] = {"error": traceback.format_exc()}
            keras.utils.clear_session(free_memory=False)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main(sys.argv[1])
