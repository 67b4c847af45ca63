"""Which variables are updated without clipping, by patterns of their paths."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np


def check_patterns(name: str, patterns: Any) -> tuple[str, ...] | None:
    """Returns a sequence of regular expressions as a tuple; `None` as `None`.

    Raises:
        TypeError: If it is no sequence of strings; one string is none.
        ValueError: If a pattern is empty or no regular expression.
    """
    if patterns is None:
        return None
    constraint = (
        f"`{name}` must be None or a list of regular expressions (strings), "
        "matched with the paths of the variables."
    )
    if isinstance(patterns, (str, bytes)) or not isinstance(patterns, Sequence):
        raise TypeError(
            f"{constraint} Received: {name}={patterns!r} (of type "
            f"{type(patterns).__name__})."
        )
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{constraint} Received: {name}={list(patterns)!r}, in which "
                f"{pattern!r} is of type {type(pattern).__name__}."
            )
        if not pattern:
            raise ValueError(
                f"{constraint} Received an empty pattern, which would match "
                f"every variable: {name}={list(patterns)!r}. To clip nothing, "
                "use clip_gradients=False."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{constraint} Received: {name}={list(patterns)!r}, in which "
                f"{pattern!r} is no regular expression: {error}."
            ) from error
    return tuple(patterns)


def resolve(
    patterns: Sequence[str] | None, paths: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Matches patterns with variable paths.

    Returns:
        A boolean a path, and the patterns that matched nothing.
    """
    patterns = patterns or ()
    hits = np.array(
        [[bool(re.search(p, path)) for path in paths] for p in patterns],
        dtype=bool,
    ).reshape(len(patterns), len(paths))
    unmatched = [
        p for p, row in zip(patterns, hits, strict=True) if not row.any()
    ]
    return np.any(hits, axis=0), unmatched


class Exclusions:
    """The patterns of an optimizer, and those that match no variable.

    Args:
        patterns: Checked patterns, or `None`.

    Attributes:
        patterns: The same.
        unmatched: Patterns that match none of the optimizer's variables.
    """

    def __init__(self, patterns: tuple[str, ...] | None):
        self.patterns = patterns
        self.unmatched: tuple[str, ...] = ()

    def check(self, paths: Sequence[str]) -> None:
        """Raises an error where a pattern matches no variable.

        Args:
            paths: Of the optimizer's variables.

        Raises:
            ValueError: With the patterns.
        """
        if self.unmatched:
            raise ValueError(
                "Every pattern of `exclude_from_clipping` must match the path "
                "of a variable. Received: "
                f"{', '.join(map(repr, self.unmatched))}, which match(es) none "
                f"of {', '.join(paths)}."
            )
