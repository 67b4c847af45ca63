"""Names of variables that fit: short, unambiguous, never on one another."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


class Band(NamedTuple):
    """Rows `first` to `last` (inclusive) under one label."""

    label: str
    first: int
    last: int

    @property
    def center(self) -> float:
        return (self.first + self.last) / 2


def common_folder(paths: Sequence[str]) -> str:
    """The leading components that all paths share, with the last slash."""
    if len(paths) < 2:
        return ""
    shared = []
    for parts in zip(*(path.split("/")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}/" for part in shared)


def shorten(
    paths: Sequence[str], width: int, known: Sequence[str] = ()
) -> list[str]:
    """Cuts the middle out of long paths, and leaves what tells them apart.

    A shortened path `head...tail` is used only if no other path begins and
    ends so; where nothing of this width does that, the row's number is
    added.

    Args:
        paths: The paths.
        width: Longest label, in characters.
        known: Further paths from which a reader must tell them.
    """
    unique = list(dict.fromkeys(paths))
    others = list(dict.fromkeys([*paths, *known]))
    short: dict[str, str] = {}
    taken = {path for path in unique if len(path) <= width}
    for number, path in enumerate(unique):
        if len(path) <= width:
            short[path] = path
            continue
        for head, tail in _cuts(path, width):
            label = head + ELLIPSIS + tail
            if label not in taken and not any(
                other != path
                and other.startswith(head)
                and other.endswith(tail)
                for other in others
            ):
                break
        else:
            suffix = f" #{number}"
            label = path[: width // 3] + ELLIPSIS
            label += path[-(width - len(label) - len(suffix)) :] + suffix
        taken.add(label)
        short[path] = label
    return [short[path] for path in paths]


def _cuts(path: str, width: int) -> Iterator[tuple[str, str]]:
    """Pairs of head and tail, the best readable first.

    Best are whole components at both ends, as many as fit; then a whole head
    and a tail that begins with a whole word; then such a tail alone. Only
    where that is not enough, words are cut.
    """
    slashes = [at for at, letter in enumerate(path) if letter == "/"]
    heads = [path[: at + 1] for at in slashes]
    tails = [path[at:] for at in slashes]
    words = [
        path[at + 1 :] for at, letter in enumerate(path) if letter in "/_-."
    ]
    room = width - len(ELLIPSIS)
    for lefts, rights in ((heads, tails), (heads, words), ([""], words)):
        pairs = [(left, right) for left in lefts for right in rights]
        pairs = [pair for pair in pairs if len(pair[0] + pair[1]) <= room]
        yield from sorted(pairs, key=lambda pair: -len(pair[0] + pair[1]))
    for head in heads:
        if 3 * len(head) <= 2 * room:
            yield head, path[-(room - len(head)) :]
    for left in sorted(range(room), key=lambda size: abs(size - room // 3)):
        yield path[:left], path[-(room - left) :]


def label_rows(
    paths: Sequence[str],
    spacing: float,
    width: int,
    known: Sequence[str] = (),
) -> tuple[list[Band], str]:
    """Labels for rows that may be too low for a label each.

    Args:
        paths: The variable of each row.
        spacing: Distance that two labels must keep, in rows.
        width: Longest label, in characters.
        known: Further paths from which a reader must tell them.

    Returns:
        The bands to label, without the folder that all paths share, and
        what to call the axis.
    """
    folder = common_folder(paths)
    paths = [path.removeprefix(folder) for path in paths]
    known = [path.removeprefix(folder) for path in known]
    rows = [Band(path, row, row) for row, path in enumerate(paths)]
    if spacing <= 1:
        return _short(rows, width, known), "variable"
    folders = [path.split("/")[:-1] for path in paths]
    deepest = max(map(len, folders), default=0)
    for depth in range(deepest, 0, -1):
        bands = _bands(["/".join(folder[:depth]) for folder in folders])
        if len(bands) > 1 and _kept(bands, spacing) == bands:
            return _short(bands, width), "variables by layer"
    # No level fits: layers, or variables where they are not in any, with
    # as many labels as there is room for.
    bands = _bands(["/".join(folder) for folder in folders])
    what = "layers (some labelled)"
    if len(bands) == 1:
        bands, what = rows, "variables (some labelled)"
    return _kept(_short(bands, width), spacing), what


def _bands(names: Sequence[str]) -> list[Band]:
    bands: list[Band] = []
    for row, name in enumerate(names):
        if bands and bands[-1].label == name:
            bands[-1] = bands[-1]._replace(last=row)
        else:
            bands.append(Band(name, row, row))
    return bands


def _kept(bands: Sequence[Band], spacing: float) -> list[Band]:
    kept: list[Band] = []
    for band in bands:
        if not kept or band.center - kept[-1].center >= spacing:
            kept.append(band)
    return kept


def _short(
    bands: Sequence[Band], width: int, known: Sequence[str] = ()
) -> list[Band]:
    labels = shorten([band.label for band in bands], width, known)
    return [
        band._replace(label=label or "(no layer)")
        for band, label in zip(bands, labels, strict=True)
    ]
