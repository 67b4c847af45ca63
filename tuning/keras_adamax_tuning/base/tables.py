"""Tables for people, as text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """Rows as lines of aligned columns; `numbers` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numbers and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
