"""What snapshots of totals have in common: later minus earlier."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

Snapshot = TypeVar("Snapshot")


def difference(
    now: Snapshot, earlier: Any, argument: str, expected: str
) -> Snapshot:
    """What was added to each total after `earlier`.

    Args:
        now: A dataclass, each of whose fields maps paths to totals.
        earlier: A snapshot of the same class.
        argument: What the caller names it, for messages.
        expected: What it must be, for messages.

    Raises:
        TypeError: If `earlier` is of another class.
        ValueError: If it is of other variables, or later than `now`.
    """
    if not isinstance(earlier, type(now)):
        raise TypeError(
            f"`{argument}` must be {expected}. "
            f"Received: {argument}={earlier!r}."
        )
    paths, others = (set(_totals(x)[0]) for x in (now, earlier))
    if paths != others:
        raise ValueError(
            f"`{argument}` must be a snapshot of the same variables. Received "
            f"a snapshot of {sorted(others)}, and the optimizer updates "
            f"{sorted(paths)}."
        )
    if not is_after(now, earlier):
        raise ValueError(
            f"`{argument}` must be a snapshot taken earlier. The totals of the "
            "optimizer are smaller than those received: its state was loaded "
            "or set in between. Take a new snapshot."
        )
    return type(now)(
        *(
            {path: total - before[path] for path, total in its.items()}
            for its, before in zip(_totals(now), _totals(earlier), strict=True)
        )
    )


def is_after(now: Any, earlier: Any) -> bool:
    """Whether no total is smaller than in `earlier`, of the same variables."""
    return all(
        total >= before[path]
        for its, before in zip(_totals(now), _totals(earlier), strict=True)
        for path, total in its.items()
    )


def _totals(snapshot: Any) -> list[Mapping[str, int]]:
    return [getattr(snapshot, field.name) for field in fields(snapshot)]
