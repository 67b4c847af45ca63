"""The pages that people read, and the blocks of code in them."""

import dataclasses
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / ".github").rglob("*.md"),
    ]
)


@dataclasses.dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Attributes:
        language: What stands behind the first fence.
        code: The lines between them, without the indentation of the fence.
        mark: What the comment in the line above says: `<!-- mark: value -->`.
        value: The value of the mark.
        line: Number of the first line of code.
    """

    language: str
    code: str
    mark: str
    value: str
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page, in order; those of some languages alone."""
    found = []
    lines = page.read_text("utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.fullmatch(r"( *)```([a-z]*).*", lines[at])
        if fence:
            end = at + 1
            while lines[end] != fence[1] + "```":
                end += 1
            comment = re.fullmatch(
                r" *<!-- ([\w-]+)(?:: (.*))? -->", lines[at - 1]
            )
            mark, value = comment.groups() if comment else ("", "")
            code = textwrap.dedent("\n".join(lines[at + 1 : end])) + "\n"
            found.append(Block(fence[2], code, mark, value or "", at + 2))
            at = end
        at += 1
    return [b for b in found if not languages or b.language in languages]


def name_of(page: Path) -> str:
    """The page's path, for the names of tests."""
    return page.relative_to(ROOT).as_posix()
