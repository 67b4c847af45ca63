"""One of several processes that train a model; run by `test_processes.py`.

    python -m tests.processes_script FOLDER WAY --rank 0 --port 12345
    python -m tests.processes_script FOLDER WAY

Without `--rank` one process sees the whole batches. On JAX there are four
devices in all. What comes of it is written to `FOLDER/RANK.npz` and `.json`.
"""

import argparse
import json
import os
import signal
from pathlib import Path

PROCESSES, DEVICES = 2, 4
WAYS = {"jax": ("data", "model", "split"), "torch": ("ddp",)}
BATCHES, BATCH_SIZE, EPOCHS = 6, 8, 3
# One row is NaN, and one batch is a thousand times as large: in the half of the
# second process.
NONFINITE_BATCH, SPOILT_BATCH = 1, 4

PARSER = argparse.ArgumentParser()
PARSER.add_argument("folder", type=Path)
PARSER.add_argument(
    "way", choices=[way for ways in WAYS.values() for way in ways]
)
PARSER.add_argument("--rank", type=int)
PARSER.add_argument("--port", type=int)
PARSER.add_argument("--epochs", type=int, default=EPOCHS)
PARSER.add_argument("--load", type=Path, help="a model to go on with")
PARSER.add_argument("--backup", type=Path, help="folder of AtomicBackup")
PARSER.add_argument("--kill-in-epoch", type=int)
PARSER.add_argument("--save-weights", action="store_true")
ARGUMENTS = PARSER.parse_args()
IS_ALONE = ARGUMENTS.rank is None
RANK = ARGUMENTS.rank or 0
HERE = DEVICES if IS_ALONE else DEVICES // PROCESSES

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={HERE}"

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_adamax  # noqa: E402


def join() -> None:
    """Makes the processes know one another, and the devices a distribution."""
    if keras.backend.backend() == "torch":
        if not IS_ALONE:
            from torch import distributed

            distributed.init_process_group(
                "gloo",
                init_method=f"tcp://127.0.0.1:{ARGUMENTS.port}",
                rank=RANK,
                world_size=PROCESSES,
            )
        return
    distribution = keras.distribution
    if not IS_ALONE:
        distribution.initialize(
            f"127.0.0.1:{ARGUMENTS.port}", PROCESSES, process_id=RANK
        )
    devices = distribution.list_devices()
    assert len(devices) == DEVICES
    if ARGUMENTS.way == "data":
        chosen = distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    else:
        # Split weights lie on the devices of both processes.
        shape = (1, 4) if ARGUMENTS.way == "split" else (2, 2)
        mesh = distribution.DeviceMesh(shape, ("batch", "model"), devices)
        layout = distribution.LayoutMap(mesh)
        layout["hidden/kernel"] = (None, "model")
        chosen = distribution.ModelParallel(
            layout_map=layout,
            batch_dim_name="batch",
            auto_shard_dataset=False,
        )
    distribution.set_distribution(chosen)


class Batches(keras.utils.PyDataset):
    """This process's part of each batch."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCHES, BATCH_SIZE, 8)).astype("float32")
        y = np.abs(x).sum(axis=-1, keepdims=True)
        x[SPOILT_BATCH, -2:] *= 1000
        x[NONFINITE_BATCH, -1] = np.nan
        # Split weights need the whole batch everywhere.
        parts = 1 if IS_ALONE or ARGUMENTS.way == "split" else PROCESSES
        size = BATCH_SIZE // parts
        part = slice((RANK % parts) * size, (RANK % parts + 1) * size)
        self.x, self.y = x[:, part], y[:, part]

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.x[index], self.y[index]


class Kill(keras.callbacks.Callback):
    """Kills the process in the middle of an epoch."""

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (ARGUMENTS.kill_in_epoch, 3):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


def make_model() -> keras.Model:
    """A model, the same in all processes."""
    if ARGUMENTS.load is not None:
        return keras.saving.load_model(ARGUMENTS.load)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "relu", name="hidden"),
            keras.layers.Dense(1, name="output"),
        ]
    )
    optimizer = keras_adamax.AdamaxClipped(
        0.01,
        clip_epsilon=2.0,
        spike_threshold=0.5,
        skip_nonfinite=True,
        track_gradient_norms=True,
    )
    model.compile(optimizer, loss="mse", jit_compile="auto")
    return model


def train_with_ddp(model, data, callbacks):
    """As Keras's guide to several GPUs with PyTorch does."""
    import torch

    parallel = model
    if not IS_ALONE:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
    variables = model.trainable_variables
    with keras_adamax.TrainingLoop(model, callbacks) as loop:
        for _ in loop.epochs(ARGUMENTS.epochs):
            for i in range(len(data)):
                x, y = map(torch.from_numpy, data[i])
                model.zero_grad()
                loss = torch.mean((parallel(x) - y) ** 2)
                loss.backward()
                gradients = [v.value.grad for v in variables]
                with torch.no_grad():
                    model.optimizer.apply(gradients, variables)
                loop.step()
    return {}


def local(variable):
    """The value, or the part of it that this process has."""
    value = variable.value
    if keras.backend.backend() == "torch" or value.is_fully_replicated:
        return keras.ops.convert_to_numpy(value)
    shards = sorted(value.addressable_shards, key=lambda s: s.device.id)
    return np.concatenate([np.asarray(s.data) for s in shards], axis=-1)


def main() -> None:
    """Trains, and writes what came of it."""
    join()
    folder = ARGUMENTS.folder
    model = make_model()
    optimizer = model.optimizer
    calls = []
    loggers = [
        keras_adamax.ClipRateLogger(
            update_freq=2,
            filename=folder / "records.csv",
            log_dir=folder / "events",
            on_record=lambda *record: calls.append(record),
        ),
        keras_adamax.WeightDeltaLogger(
            update_freq=2, filename=folder / "records.csv"
        ),
    ]
    callbacks: list[keras.callbacks.Callback] = list(loggers)
    if ARGUMENTS.backup is not None:
        callbacks.append(
            keras_adamax.AtomicBackup(ARGUMENTS.backup, delete_checkpoint=False)
        )
    if ARGUMENTS.kill_in_epoch is not None:
        callbacks.append(Kill())
    if ARGUMENTS.way == "ddp":
        history = train_with_ddp(model, Batches(), callbacks)
    else:
        history = model.fit(
            Batches(),
            epochs=ARGUMENTS.epochs,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        ).history
    name = "alone" if IS_ALONE else str(RANK)
    if ARGUMENTS.save_weights:
        model.save(folder / f"{name}.keras")
    np.savez(
        folder / f"{name}.npz",
        *[local(v) for v in model.trainable_variables],
        *[local(v) for v in optimizer.variables],
    )
    found = {
        "skipped": optimizer.skipped_steps(),
        "spikes": optimizer.spike_steps(),
        "clip_rate": optimizer.clip_rate(),
        "weights": len(model.trainable_variables),
        "history": history,
        "records": {
            type(logger).__name__: {
                name: column.tolist() for name, column in logger.records.items()
            }
            for logger in loggers
        },
        "calls": len(calls),
    }
    (folder / f"{name}.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
