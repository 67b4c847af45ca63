"""Says on what a benchmark ran."""

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
