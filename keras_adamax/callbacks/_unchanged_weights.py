"""Why a variable did not change, as far as that can be known."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops

from keras_adamax.adamax_clipped import AdamaxClipped
from keras_adamax.callbacks import _optimizers
from keras_adamax.clip_statistics import ClipStatistics

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
# As the scales of float8 layers.
OVERWRITTEN = (
    "its gradient is its new value (overwrite_with_gradient), and was equal to "
    "it or absent"
)


def reasons(
    optimizers: Sequence[Any],
    variables: Sequence[Any],
    all_unchanged: bool,
    start: Mapping[int, ClipStatistics],
) -> list[str]:
    """One reason for each variable that did not change.

    Args:
        optimizers: Those that train the variables, their state up to date.
        variables: The variables that did not change.
        all_unchanged: Whether no other trainable variable changed either.
        start: By the `id` of each `AdamaxClipped`, a snapshot of it when
            `fit` began.
    """
    leaves = _optimizers.all_leaves(optimizers)
    is_rate_zero = leaves and all(_learning_rate(leaf) == 0 for leaf in leaves)
    counted = {
        id(leaf): _counted_since(leaf, start.get(id(leaf)))
        for leaf in _optimizers.ours(optimizers)
    }
    result = []
    for variable in variables:
        if getattr(variable, "overwrite_with_gradient", False):
            result.append(OVERWRITTEN)
        elif is_rate_zero:
            result.append(RATE_ZERO)
        elif not variable.trainable:
            result.append(FROZEN)
        else:
            result.append(
                _of_ours(leaves, variable, counted)
                or _of_other(leaves, all_unchanged)
            )
    return result


def _of_ours(
    leaves: Sequence[Any],
    variable: Any,
    counted: Mapping[int, Sequence[int | None]],
) -> str | None:
    """What the `AdamaxClipped` that was built with a variable tells of it."""
    for leaf in leaves:
        place = _optimizers.place_in(leaf, variable)
        if place is None or id(leaf) not in counted:
            continue
        if counted[id(leaf)][place] == 0:
            return NO_GRADIENT
        norm = leaf.infinity_norms[place]
        largest = ops.max(ops.absolute(ops.convert_to_tensor(norm)))
        is_zero = float(ops.convert_to_numpy(largest)) == 0
        return ZERO_GRADIENT if is_zero else TOO_SMALL
    return None


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
    optimizer: AdamaxClipped, start: ClipStatistics | None
) -> list[int | None]:
    """Elements of each variable that the clipping was given since `start`.

    `None` where that does not say whether there was a gradient.
    """
    if not optimizer.built:
        return []
    now = optimizer.clip_statistics().counted
    if not (optimizer.track_clip_rate and optimizer.clip_gradients):
        return [None] * len(now)
    before = {} if start is None else start.counted
    # As it was decided when the optimizer was built: names may have changed.
    (exclusions,) = _optimizers.state_of(optimizer, "clipping_exclusions")
    excluded = ops.convert_to_numpy(exclusions) > 0
    return [
        None if is_excluded else count - before.get(name, 0)
        for (name, count), is_excluded in zip(
            now.items(), excluded, strict=True
        )
    ]
