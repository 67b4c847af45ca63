"""Whether the names in records are those of a model, reloaded perhaps."""

import re
from collections.abc import Sequence
from typing import Any

from keras_adamax.callbacks import _optimizers

# The name and the shape of each trainable variable, in order.
Architecture = Sequence[tuple[str, tuple[int, ...]]]


def architecture_of(model: Any) -> Architecture:
    """The trainable variables of a model."""
    variables = model.trainable_variables
    names = _optimizers.unique_names([v.path for v in variables])
    shapes = [tuple(v.shape) for v in variables]
    return list(zip(names, shapes, strict=True))


def have_one_shape(first: Architecture, second: Architecture) -> bool:
    """Whether the variables have the same shapes, in order."""
    return bool(first) and [s for _, s in first] == [s for _, s in second]


def are_of_one_model(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether names can be those of one model, some of them frozen perhaps.

    A model that is loaded from a file may have lost the first part of each.
    """
    one, other = set(map(_ending, first)), set(map(_ending, second))
    return one <= other or other <= one or _are_numbered_anew(first, second)


def renaming(recorded: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """From the names of a reloaded model to those that it was recorded with."""
    if not _are_numbered_anew(recorded, names) and (
        len(recorded) != len(names)
        or any(
            not (
                old == new
                or f"/{old}".endswith(f"/{new}")
                or f"/{new}".endswith(f"/{old}")
            )
            for old, new in zip(recorded, names, strict=True)
        )
    ):
        return {}
    return {n: o for o, n in zip(recorded, names, strict=True) if o != n}


def some(names: Sequence[str], limit: int = 3) -> str:
    """A few of the names, for a message."""
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text}, ... ({len(names)})"


def _ending(name: str) -> str:
    return "/".join(name.split("/")[-2:])


def _are_numbered_anew(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether only the numbers differ that Keras gives to a second `Dense`."""
    one, other = (
        [re.sub(r"_\d+(?=/|$)", "", _ending(name)) for name in names]
        for names in (first, second)
    )
    return one == other
