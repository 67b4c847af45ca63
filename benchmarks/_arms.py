"""The optimizers that are compared.

`BASELINE` is what everything is divided by. "Ours" always updates with the
defaults of `AdamaxClipped`, but for what `_workloads` says of the share of
clipped elements.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import keras
from _workloads import BETA_2, CLIP_MULTIPLIERS, CLIP_NORM, CLIP_VALUE

import keras_adamax
from keras_adamax import kernels

BASELINE = "keras_adamax"


@dataclass(frozen=True)
class Arm:
    """An optimizer, and how to make it.

    Attributes:
        name: Short name.
        words: What it is.
        make: Makes it for a percentage of elements that ours would clip.
        kind: "keras", "ours", "torch" or "optax".
        kernel: The kernel of ours, "" for the others.
        takes_rows: Whether it is compared on sparse gradients.
    """

    name: str
    words: str
    make: Callable[[int], Any]
    kind: str
    kernel: str = ""
    takes_rows: bool = False


@contextlib.contextmanager
def kernel_setting(kernel: str) -> Iterator[None]:
    """Optimizers made inside of it have this kernel."""
    with mock.patch.dict(os.environ, {kernels.SETTING: kernel}):
        yield


def _keras(name: str, words: str, takes_rows: bool = False, **options) -> Arm:
    return Arm(
        name,
        words,
        lambda percent: keras.optimizers.Adamax(beta_2=BETA_2, **options),
        kind="keras",
        takes_rows=takes_rows,
    )


def _ours(name: str, words: str, kernel: str = "auto", **options) -> Arm:
    def make(percent: int) -> keras_adamax.AdamaxClipped:
        with kernel_setting(kernel):
            return keras_adamax.AdamaxClipped(
                beta_2=BETA_2,
                clip_multiplier=CLIP_MULTIPLIERS[percent],
                **options,
            )

    return Arm(name, words, make, "ours", kernel, takes_rows=True)


def _torch_optim() -> list[Arm]:
    import torch

    def arm(name: str, words: str, **options) -> Arm:
        # It takes the variables, which are there later.
        return Arm(
            name,
            words,
            lambda percent: (
                lambda weights: torch.optim.Adamax(
                    weights, lr=1e-3, betas=(0.9, BETA_2), **options
                )
            ),
            kind="torch",
        )

    return [
        arm("torch_adamax", "torch.optim.Adamax"),
        arm(
            "torch_adamax_foreach", "torch.optim.Adamax, foreach", foreach=True
        ),
    ]


def _optax() -> Arm:
    import optax

    return Arm(
        "optax_clip_adamax",
        "optax.clip, optax.adamax",
        lambda percent: optax.chain(
            optax.clip(CLIP_VALUE), optax.adamax(1e-3, b2=BETA_2)
        ),
        kind="optax",
    )


def arms(backend: str) -> dict[str, Arm]:
    """All arms of a backend, by name, the baseline first."""
    every = [
        _keras(BASELINE, "keras Adamax", takes_rows=True),
        Arm(
            "keras_adam",
            "keras Adam",
            lambda percent: keras.optimizers.Adam(),
            kind="keras",
        ),
        _keras(
            "keras_clipvalue", "keras Adamax, clipvalue", clipvalue=CLIP_VALUE
        ),
        _keras(
            "keras_global_clipnorm",
            "keras Adamax, global_clipnorm",
            global_clipnorm=CLIP_NORM,
        ),
    ]
    if backend == "torch":
        every += _torch_optim()
    if backend == "jax" and importlib.util.find_spec("optax"):
        every.append(_optax())
    every += [
        _ours("reference", "ours, reference", kernel="reference"),
        _ours(
            "ours_no_statistics", "ours, no statistics", track_clip_rate=False
        ),
        _ours("ours", "ours"),
        _ours(
            "ours_skip_nonfinite", "ours, skip_nonfinite", skip_nonfinite=True
        ),
        _ours("ours_spike_gate", "ours, spike gate", spike_threshold=0.2),
    ]
    if backend in ("tensorflow", "jax"):
        every.append(_ours("ours_fused", "ours, fused by XLA", kernel="fused"))
    if backend == "torch":
        every += [
            _ours("ours_compiled", "ours, compiled", kernel="compiled"),
            _ours("ours_eager", "ours, eager", kernel="eager"),
        ]
    return {arm.name: arm for arm in every}
