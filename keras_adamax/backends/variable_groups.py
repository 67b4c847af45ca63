"""Neighbouring variables that are worked on together."""

from collections.abc import Sequence


def groups(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Ranges of neighbours, each ended by the one that reaches `limit`.

    Args:
        sizes: Elements of each variable.
        limit: Elements.

    Returns:
        Where each range starts and ends.
    """
    ends = [0]
    total = 0
    for i, size in enumerate(sizes):
        total += size
        if total >= limit or i == len(sizes) - 1:
            ends.append(i + 1)
            total = 0
    return list(zip(ends[:-1], ends[1:], strict=True))
