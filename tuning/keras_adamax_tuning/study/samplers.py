"""Samplers and pruners by name, and the seeds that they work with."""

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

SAMPLERS = ("random", "tpe", "grid", "gp", "cmaes")
PRUNERS = ("median", "hyperband")

# What a sampler needs beyond this package's own dependencies: the module,
# and the distribution that brings it.
_REQUIREMENTS = {
    "gp": (("torch", "torch"), ("scipy", "scipy")),
    "cmaes": (("cmaes", "cmaes"),),
}


def check_sampler(
    sampler: str | optuna.samplers.BaseSampler,
) -> str | optuna.samplers.BaseSampler:
    """Returns `sampler`, if it is known and what it needs is installed."""
    names = ", ".join(repr(name) for name in SAMPLERS)
    if isinstance(sampler, optuna.samplers.BaseSampler):
        loops = (optuna.samplers.GridSampler, optuna.samplers.BruteForceSampler)
        if isinstance(sampler, loops):
            raise ValueError(
                "`sampler` must be one that does not stop Optuna's own loop. "
                f"Received: sampler={type(sampler).__name__}. Use "
                'sampler="grid", which takes its values from the space.'
            )
        return sampler
    if not isinstance(sampler, str):
        raise TypeError(
            f"`sampler` must be one of {names}, or an Optuna sampler. "
            f"Received: sampler={sampler!r} (of type {type(sampler).__name__})."
        )
    if sampler not in SAMPLERS:
        raise ValueError(
            f"`sampler` must be one of {names}, or an Optuna sampler. "
            f"Received: sampler={sampler!r}."
        )
    for module, distribution in _REQUIREMENTS.get(sampler, ()):
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"sampler={sampler!r} needs the package {distribution!r}, "
                "which is not installed. Install it with `pip install "
                f'{distribution}`, or choose sampler="tpe".'
            )
    return sampler


def make_sampler(
    name: str, seed: int, values: Mapping[str, Any] | None = None
) -> optuna.samplers.BaseSampler:
    """A fresh sampler, whose only source of randomness is `seed`.

    A sampler is made anew for each trial: what it knows of the past it reads
    from the study, so that nothing is lost when a process dies. That of a
    `"grid"` gives `values`.
    """
    with warnings.catch_warnings():
        # Said by Optuna of what it may change, and of no use to our users.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "tpe":
            # Children of a condition are learned together, too.
            return optuna.samplers.TPESampler(seed=seed, group=True)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed, warn_independent_sampling=False
            )
        sampler = optuna.samplers.RandomSampler(seed=seed)
        if values is None:
            return sampler
        return optuna.samplers.PartialFixedSampler(dict(values), sampler)


def make_pruner(
    pruner: str | optuna.pruners.BasePruner | None,
) -> optuna.pruners.BasePruner:
    """The pruner of that name, or the one given."""
    if isinstance(pruner, optuna.pruners.BasePruner):
        return pruner
    if pruner is None or pruner == "none":
        return optuna.pruners.NopPruner()
    if pruner == "median":
        return optuna.pruners.MedianPruner()
    if pruner == "hyperband":
        return optuna.pruners.HyperbandPruner()
    error = ValueError if isinstance(pruner, str) else TypeError
    names = ", ".join(repr(name) for name in PRUNERS)
    raise error(
        f"`pruner` must be one of {names}, None, or an Optuna pruner. "
        f"Received: pruner={pruner!r}."
    )


def derived_seed(seed: int, *path: int) -> int:
    """A seed for NumPy and Keras, of `seed` and of where it is used."""
    state: Any = np.random.SeedSequence(entropy=seed, spawn_key=path)
    return int(state.generate_state(1)[0])
