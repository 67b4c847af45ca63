"""The optimizers that are compared.

`BASELINE` is what everything is divided by. "Ours" always updates with the
defaults of `AdamaxClipped`, but for what `workloads` says of the share of
clipped elements.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import keras

import keras_adamax
from _step.workloads import (
    BETA_2,
    CLIP_MULTIPLIERS,
    CLIP_NORM,
    CLIP_VALUE,
    Workload,
)
from keras_adamax import kernel_choice

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

    @property
    def is_optional(self) -> bool:
        """Whether a machine may lack what it needs."""
        return self.kernel in ("compiled", "eager")


@contextlib.contextmanager
def kernel_setting(kernel: str) -> Iterator[None]:
    """Optimizers made inside of it have this kernel."""
    with mock.patch.dict(os.environ, {kernel_choice.SETTING: kernel}):
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


def _torch_optim(name: str, words: str, **options) -> Arm:
    import torch

    return Arm(
        name,
        words,
        # It takes the variables, which are there later.
        lambda percent: (
            lambda weights: torch.optim.Adamax(
                weights, lr=1e-3, betas=(0.9, BETA_2), **options
            )
        ),
        kind="torch",
    )


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
        words = "torch.optim.Adamax"
        every += [
            _torch_optim("torch_adamax", words),
            _torch_optim(
                "torch_adamax_foreach", f"{words}, foreach", foreach=True
            ),
        ]
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
        _ours(
            "ours_gradient_norms",
            "ours, gradient norms",
            track_gradient_norms=True,
        ),
    ]
    if backend in ("tensorflow", "jax"):
        every.append(_ours("ours_fused", "ours, fused by XLA", kernel="fused"))
    if backend == "torch":
        every += [
            _ours("ours_compiled", "ours, compiled", kernel="compiled"),
            _ours("ours_eager", "ours, eager", kernel="eager"),
        ]
    return {arm.name: arm for arm in every}


def choose(
    workload: Workload,
    names: Sequence[str] | None,
    defaults: Sequence[str] | None = None,
) -> list[Arm]:
    """The arms to compare on a workload, the baseline always with them.

    Args:
        workload: What they update.
        names: What the command line names.
        defaults: Which otherwise; all if there are none.

    Raises:
        SystemExit: If a name is none of an arm here.
    """
    every = arms(keras.backend.backend())
    unknown = sorted(set(names or ()) - set(every))
    if unknown:
        raise SystemExit(
            f"`--arms` must be of {', '.join(every)} here. Received: "
            f"{', '.join(unknown)}."
        )
    wanted = {BASELINE, *(names or defaults or every)}
    return [
        arm
        for arm in every.values()
        if arm.name in wanted and (arm.takes_rows or not workload.rows)
    ]
