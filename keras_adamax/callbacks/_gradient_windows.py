"""What the gradients of optimizers were like between two records."""

import math
from collections.abc import Mapping, Sequence

from keras_adamax.gradient_statistics import (
    GradientStatistics,
    NonfiniteGradient,
)


def since(
    now: GradientStatistics, before: GradientStatistics
) -> GradientStatistics | None:
    """What was added after `before`; `None` where that is not known.

    Args:
        now: The totals of an optimizer.
        before: Earlier ones; of no variables, of one that was not built and
            had measured nothing.
    """
    if not before.steps:
        return now
    try:
        return now.since(before)
    except ValueError:
        # Its state was loaded in between. The clip rates say so.
        return None


def values(
    names: Sequence[Sequence[str]],
    all_elapsed: Sequence[GradientStatistics | None],
) -> dict[str, list[float]]:
    """Quantity to one value per variable; NaN where it is not known.

    Args:
        names: The variables of each optimizer.
        all_elapsed: What each has measured; nothing where it does not.
    """
    found: dict[str, list[float]] = {
        "gradient_norm": [],
        "clipped_share": [],
        "update_norm": [],
    }
    for its, elapsed in zip(names, all_elapsed, strict=True):
        known: Sequence[Mapping[str, float]] = [{}] * len(found)
        if elapsed is not None:
            known = (
                elapsed.gradient_norms(),
                elapsed.clipped_shares(),
                elapsed.update_norms(),
            )
        for column, by_path in zip(found.values(), known, strict=True):
            column += [by_path.get(path, math.nan) for path in its]
    return found


def norm(all_elapsed: Sequence[GradientStatistics | None]) -> float:
    """Of the gradients of several optimizers together."""
    norms = [
        math.nan if elapsed is None else elapsed.gradient_norm()
        for elapsed in all_elapsed
        if elapsed is None or elapsed.steps
    ]
    return math.hypot(*norms) if norms else math.nan


def nonfinite_elements(
    now: Mapping[str, NonfiniteGradient],
    before: Mapping[str, NonfiniteGradient],
) -> dict[str, int]:
    """Variable path to the NaNs and infinities of its gradients since then."""
    grown = {
        path: its.elements - (before[path].elements if path in before else 0)
        for path, its in now.items()
    }
    return {path: number for path, number in grown.items() if number > 0}
