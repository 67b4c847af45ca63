"""Trains one small model a configuration, and goes on in another process.

`test_serialization.py` uses it as a module to train, and starts it as a
script to continue what another process has saved:

    python resume_script.py DIRECTORY keras:NAME weights:NAME h5:NAME ...

A configuration is trained for two epochs. At the end of the first the model is
saved in all formats, in the midst of `fit`, as `ModelCheckpoint` does. What
the continued runs end with is written to files.
"""

import contextlib
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

BATCHES = 6
BATCH_SIZE = 4
EXTENSIONS = {"keras": ".keras", "weights": ".weights.h5", "h5": ".h5"}
# What is saved as a whole-model `.h5` file too.
IN_H5 = ("plain", "schedules", "ema", "exclusions", "loss_scale")


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An epoch of inputs and heavy-tailed targets."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(BATCHES * BATCH_SIZE, 3)).astype("float32")
    y = generator.standard_cauchy(size=(BATCHES * BATCH_SIZE, 1))
    return x, y.astype("float32")


def data_with_nan() -> tuple[np.ndarray, np.ndarray]:
    x, y = data()
    x[1 * BATCH_SIZE] = np.nan
    x[4 * BATCH_SIZE] = np.inf
    return x, y


def data_of_tokens() -> tuple[np.ndarray, np.ndarray]:
    _, y = data()
    tokens = np.random.default_rng(1).integers(0, 9, size=(len(y), 5))
    return tokens.astype("int32"), y


def build_dense(dtype: str | None = None, dropout: float = 0) -> keras.Model:
    layers = [
        keras.Input((3,)),
        keras.layers.Dense(4, "tanh", name="hidden", dtype=dtype),
        keras.layers.Dense(1, name="output", dtype=dtype),
    ]
    if dropout:
        layers.insert(2, keras.layers.Dropout(dropout, seed=1))
    # The paths of a Sequential model change when it is loaded.
    return keras.Sequential(layers)


def build_embedding() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(12, 3, name="embedding"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1, name="output"),
        ]
    )


class Configuration:
    """One way to train.

    Args:
        optimizer: Makes the optimizer.
        model: Makes the model.
        data: Makes an epoch.
        policy: Keras's global dtype policy meanwhile.
        change: Changes the optimizer after the first epoch, before saving.
        build: Whether to build the optimizer before weights are loaded, which
            Keras's wrappers need. Ours keeps its state until it is built.
        similar_to: Name of a configuration that must end with other weights,
            or nothing would be said by their being the same after a restart.
    """

    def __init__(
        self,
        optimizer: Callable[[], Any],
        model: Callable[[], keras.Model] = build_dense,
        data: Callable[[], tuple[np.ndarray, np.ndarray]] = data,
        policy: str | None = None,
        change: Callable[[Any], None] | None = None,
        build: bool = False,
        similar_to: str = "plain",
    ):
        self.optimizer = optimizer
        self.model = model
        self.data = data
        self.policy = policy
        self.change = change
        self.build = build
        self.similar_to = similar_to

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """What a script sets before it makes or loads a model."""
        before = keras.config.dtype_policy()
        if self.policy is not None:
            keras.config.set_dtype_policy(self.policy)
        try:
            yield
        finally:
            keras.config.set_dtype_policy(before)

    def compiled_model(self) -> keras.Model:
        with self.scope():
            keras.utils.set_random_seed(0)
            model = self.model()
            # A string would do, but for Keras's reader of `.h5` files.
            loss = keras.losses.MeanSquaredError()
            model.compile(self.optimizer(), loss)
        return model


def configurations() -> dict[str, Configuration]:
    """Everything that training can be continued with, by name.

    What has no state of its own shares a configuration with others, because
    compiling a step takes long.
    """
    # Imported late: a process that has not done so is tested as well.
    from keras_adamax import (
        AdamaxClipped,
        JoinedSchedule,
        LinearRamp,
        TargetClipRate,
    )

    schedules = keras.optimizers.schedules

    def plain(**arguments: Any) -> Configuration:
        return Configuration(lambda: adamax(**arguments))

    def adamax(**arguments: Any) -> Any:
        # With a smaller clip_epsilon nearly all is clipped in so few steps,
        # and what else is set hardly shows.
        return AdamaxClipped(
            **{"learning_rate": 0.05, "clip_epsilon": 0.2, **arguments}
        )

    def not_decaying_biases() -> Any:
        optimizer = adamax(
            weight_decay=0.1,
            clipnorm=0.5,
            exclude_from_clipping=["^sequential.*/output", "hidden/bias$"],
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    def change(optimizer: Any) -> None:
        optimizer.learning_rate = 1 / 3
        optimizer.beta_1 = 0.8
        optimizer.beta_2 = 0.99
        optimizer.epsilon = 1e-3
        optimizer.clip_multiplier = 2
        optimizer.clip_epsilon = 0.5
        optimizer.weight_decay = 0.25

    return {
        "plain": Configuration(adamax, similar_to="schedules"),
        "schedules": plain(
            beta_1=schedules.PolynomialDecay(0.5, 8, 0.95),
            beta_2=schedules.ExponentialDecay(0.999, 5, 0.9),
            clip_multiplier=schedules.CosineDecay(3.0, 10),
            clip_epsilon=schedules.InverseTimeDecay(0.2, 2, 0.5),
            bias_correction=True,
        ),
        "joined_schedules": plain(
            learning_rate=JoinedSchedule(
                [LinearRamp(0.0, 0.1, 4), schedules.CosineDecay(0.1, 12)], [4]
            ),
            clip_multiplier=JoinedSchedule([3.0, LinearRamp(3, 1.2, 5)], [3]),
        ),
        "target_clip_rate": plain(clip_multiplier=TargetClipRate(0.5)),
        "accumulation_at_boundary": plain(
            gradient_accumulation_steps=3,
            learning_rate=schedules.ExponentialDecay(0.1, 4, 0.5),
            clipvalue=0.4,
        ),
        "accumulation_in_the_middle": plain(
            gradient_accumulation_steps=4,
            beta_1=schedules.PolynomialDecay(0.5, 8, 0.95),
            bias_correction=True,
        ),
        "ema": plain(
            use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=4
        ),
        "ema_overwrite": plain(
            use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=4
        ),
        "exclusions": Configuration(not_decaying_biases),
        "skip_nonfinite": Configuration(
            lambda: adamax(skip_nonfinite=True, bias_correction=True),
            data=data_with_nan,
        ),
        "float16": Configuration(
            lambda: adamax(global_clipnorm=0.5), lambda: build_dense("float16")
        ),
        "bfloat16": Configuration(
            lambda: adamax(use_ema=True, gradient_accumulation_steps=4),
            lambda: build_dense("bfloat16"),
        ),
        "mixed_float16": Configuration(
            adamax, policy="mixed_float16", build=True
        ),
        "mixed_bfloat16": Configuration(adamax, policy="mixed_bfloat16"),
        "loss_scale": Configuration(
            lambda: keras.optimizers.LossScaleOptimizer(
                adamax(bias_correction=True),
                initial_scale=8.0,
                dynamic_growth_steps=4,
            ),
            data=data_with_nan,
            build=True,
        ),
        "multi_optimizer": Configuration(
            lambda: keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(
                    adamax(clip_multiplier=1.5),
                    {
                        ".*output/.*": adamax(bias_correction=True),
                        ".*nowhere": adamax(),
                    },
                )
            ),
            build=True,
        ),
        "embedding": Configuration(adamax, build_embedding, data_of_tokens),
        "live_change": Configuration(
            lambda: adamax(weight_decay=0.5), change=change
        ),
        "dropout": Configuration(adamax, lambda: build_dense(dropout=0.5)),
    }


def path_of(directory: pathlib.Path, name: str, format: str) -> pathlib.Path:
    return directory / f"{name}{EXTENSIONS[format]}"


class SaveAfterFirstEpoch(keras.callbacks.Callback):
    def __init__(
        self,
        directory: pathlib.Path,
        name: str,
        change: Callable[[Any], None] | None,
    ):
        super().__init__()
        self._directory = directory
        self._name = name
        self._change = change

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        del logs
        if epoch > 0:
            return
        if self._change is not None:
            self._change(self.model.optimizer)
        self.model.save(path_of(self._directory, self._name, "keras"))
        self.model.save_weights(path_of(self._directory, self._name, "weights"))
        if self._name in IN_H5:
            self.model.save(path_of(self._directory, self._name, "h5"))


def train(
    configuration: Configuration, directory: pathlib.Path, name: str
) -> dict[str, np.ndarray]:
    """Two epochs without interruption, saving after the first."""
    model = configuration.compiled_model()
    callback = SaveAfterFirstEpoch(directory, name, configuration.change)
    _fit(model, configuration, 0, [callback])
    return result(model)


def resume(
    configuration: Configuration,
    directory: pathlib.Path,
    name: str,
    format: str,
) -> dict[str, np.ndarray]:
    """The second epoch."""
    path = path_of(directory, name, format)
    if format == "weights":
        model = configuration.compiled_model()
        for weight in model.weights:
            weight.assign(np.full(weight.shape, 7))
        if configuration.build:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
    else:
        with configuration.scope():
            model = keras.saving.load_model(path)
        if keras.backend.backend() == "torch":
            # A model of JAX says that it is to be compiled, and torch.compile
            # takes a minute for it.
            model.jit_compile = False
    _fit(model, configuration, 1, [])
    return result(model)


def _fit(
    model: keras.Model,
    configuration: Configuration,
    initial_epoch: int,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    model.fit(
        *configuration.data(),
        batch_size=BATCH_SIZE,
        epochs=2,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )


def result(model: keras.Model) -> dict[str, np.ndarray]:
    """What two runs must agree in."""

    def arrays(kind: str, variables: Any) -> dict[str, np.ndarray]:
        # NumPy's files know no bfloat16; float64 holds every number of it.
        return {
            f"{kind}/{i}": np.asarray(
                keras.ops.convert_to_numpy(variable), dtype="float64"
            )
            for i, variable in enumerate(variables)
        }

    return {
        **arrays("weight", model.weights),
        **arrays("optimizer", model.optimizer.variables),
        **{
            f"clip_rate/{i}/{j}": np.asarray(rate)
            for i, optimizer in enumerate(adamaxes(model.optimizer))
            for j, rate in enumerate(optimizer.clip_rates().values())
        },
    }


def adamaxes(optimizer: Any) -> list[Any]:
    """The `AdamaxClipped` in a wrapper, or alone."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return getattr(optimizer, "optimizers", [optimizer])


def error_without_import(directory: pathlib.Path, name: str) -> str:
    """What Keras says of a model when keras_adamax was not imported."""
    try:
        keras.saving.load_model(path_of(directory, name, "keras"))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(directory: str, *tasks: str) -> None:
    """Continues every task, and writes what it ends with.

    Args:
        directory: What `train` was given.
        tasks: What to continue, as `FORMAT:NAME`.
    """
    folder = pathlib.Path(directory)
    backend = keras.backend.backend()
    pairs = [task.split(":") for task in tasks]
    without_import = ""
    if pairs[0][0] == "keras":
        assert "keras_adamax" not in sys.modules
        without_import = error_without_import(folder, pairs[0][1])
    known = configurations()
    failures = {}
    for format, name in pairs:
        try:
            arrays = resume(known[name], folder, name, format)
        except Exception:
            failures[f"{format}:{name}"] = traceback.format_exc()
            continue
        np.savez(folder / f"{name}.{format}.{backend}.npz", **arrays)
    print(
        json.dumps(
            {
                "backend": backend,
                "error_without_import": without_import,
                "failures": failures,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
