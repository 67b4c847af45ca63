"""Why a variable did not change, as far as that can be known."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import _optimizers
from keras_adamax.statistics import ClipStatistics

NO_GRADIENT = (
    "no gradient reached it: the loss does not depend on it, or its gradient "
    "is None"
)
ZERO_GRADIENT = "its gradient is zero or absent"
# Of an optimizer whose state we do not know. Lion's steps are of one size.
ZERO_OR_CANCELLED = (
    f"{ZERO_GRADIENT}, or its steps were too small or cancelled out"
)
TOO_SMALL = (
    "each step is smaller than the rounding of its dtype, or its gradient has "
    "become zero"
)
FROZEN = (
    "its layer was frozen (trainable=False) after `compile`; compile again if "
    "it shall stay so"
)
RATE_ZERO = "the learning rate is 0"


def reasons(
    optimizers: Sequence[Any],
    variables: Sequence[Any],
    names: Sequence[str],
    all_unchanged: bool,
    start: Sequence[ClipStatistics],
) -> list[str]:
    """One reason for each variable that did not change.

    Args:
        optimizers: The model's optimizers, their state up to date.
        variables: The variables that did not change.
        names: Their names.
        all_unchanged: Whether no other trainable variable changed either.
        start: A snapshot of each `AdamaxClipped` when `fit` began.
    """
    ours = _optimizers.ours(optimizers)
    leaves = _optimizers.all_leaves(optimizers)
    if leaves and all(_learning_rate(leaf) == 0 for leaf in leaves):
        return [RATE_ZERO] * len(names)
    counted = _counted_since(ours, start)
    norms = _largest_norms(ours)
    result = []
    for variable, name in zip(variables, names, strict=True):
        if not variable.trainable:
            result.append(FROZEN)
        elif name in counted and counted[name] == 0:
            result.append(NO_GRADIENT)
        elif name in norms:
            result.append(ZERO_GRADIENT if norms[name] == 0 else TOO_SMALL)
        else:
            result.append(_of_other(leaves, all_unchanged))
    return result


def _of_other(optimizers: Sequence[Any], all_unchanged: bool) -> str:
    own = [o for o in optimizers if not _is_trusted(o)]
    if not all_unchanged or not own:
        return ZERO_OR_CANCELLED
    names = ", ".join(sorted({type(o).__name__ for o in own}))
    return (
        f"the optimizer's `update_step` did not assign anything ({names}): "
        "Keras ignores what it returns, and it must write the new value with "
        "`self.assign(variable, value)`"
    )


def _is_trusted(optimizer: Any) -> bool:
    """Whether the step is Keras's or ours, and not the user's own."""
    module = getattr(type(optimizer).update_step, "__module__", "")
    return module.split(".")[0] in ("keras", "keras_adamax")


def _learning_rate(optimizer: Any) -> float:
    return float(ops.convert_to_numpy(optimizer.learning_rate))


def _counted_since(
    optimizers: Sequence[AdamaxClipped], start: Sequence[ClipStatistics]
) -> dict[str, int]:
    """Elements that the clipping of each variable was given since `start`.

    Only of variables for which that says whether there was a gradient.
    """
    result = {}
    for i, optimizer in enumerate(optimizers):
        if not (optimizer.track_clip_rate and optimizer.clip_gradients):
            continue
        now = optimizer.clip_statistics().counted
        before = start[i].counted if i < len(start) else {}
        for name, count in now.items():
            patterns = optimizer.exclude_from_clipping or ()
            if not any(re.search(pattern, name) for pattern in patterns):
                result[name] = count - before.get(name, 0)
    return result


def _largest_norms(optimizers: Sequence[AdamaxClipped]) -> dict[str, float]:
    """The largest element of each variable's running maximum of gradients."""
    result = {}
    for optimizer in optimizers:
        names = list(optimizer.clip_statistics().counted)
        norms = [v for v in optimizer.variables if v.name.endswith("_norm")]
        if len(norms) == len(names):
            for name, norm in zip(names, norms, strict=True):
                largest = ops.max(ops.absolute(ops.convert_to_tensor(norm)))
                result[name] = float(np.asarray(ops.convert_to_numpy(largest)))
    return result
