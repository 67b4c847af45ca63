"""Checks a built site: every link leads somewhere, and nothing is elsewhere.

    mkdocs build --strict && python docs/check_site.py site

Links within the site must lead to a file and, with `#`, to an anchor in it.
Scripts, styles, fonts and images must be files of the site, so that it can be
read without the internet. Links that a reader follows to other sites are
listed, not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Their address is fetched with the page; that of an `a` when it is followed.
FETCHED = {("link", "href"), ("script", "src"), ("img", "src")}


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[tuple[str, bool]] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        """Notes what a tag links to, and what it can be linked to by."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.links.append((value, (tag, name) in FETCHED))


def check(site: Path) -> tuple[list[str], set[str], int]:
    """What is wrong, the links to other sites, and how many links there are."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    faults: list[str] = []
    elsewhere: set[str] = set()
    count = 0
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are from the root of a server
        for link, is_fetched in page.links:
            count += 1
            parts = urlsplit(link)
            name = f"{path.relative_to(site)}: {link}"
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                elsewhere.add(link)
                if is_fetched:
                    faults.append(f"{name} is fetched from another host")
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
                if target.is_dir():
                    target /= "index.html"
            if not target.is_file():
                faults.append(f"{name}: there is no such file")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
                and parts.fragment != "__codelineno"
            ):
                faults.append(f"{name}: there is no such anchor")
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8")
        for start in ("@import", "url(http", "url(//", 'url("http'):
            if start in text:
                faults.append(f"{style.relative_to(site)}: {start}")
    return faults, elsewhere, count


def main() -> int:
    """Checks the site in the folder that is named."""
    site = Path(sys.argv[1]).resolve()
    faults, elsewhere, count = check(site)
    print(f"{count} links. To other sites:")
    print("\n".join(f"    {link}" for link in sorted(elsewhere)))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults or not count else 0


if __name__ == "__main__":
    sys.exit(main())
