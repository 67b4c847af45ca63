"""The machine that a benchmark runs on."""

import importlib.metadata
import os
import platform


def describe_machine() -> str:
    """Processor, cores, system and the versions that matter, in a line."""
    versions = []
    for package in ("keras", "tensorflow", "jax", "torch", "numpy"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def accelerator() -> str | None:
    """The device on which Keras computes here, `None` for the CPU."""
    # Not above: a script chooses Keras's backend before it is imported.
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if is_on_cuda() else None
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return devices[0].name if devices else None


def is_on_cuda() -> bool:
    """Whether Keras, on torch, computes on CUDA."""
    import keras

    return keras.ops.convert_to_tensor(0.0).device.type == "cuda"
