"""What the site shows of files outside `docs/`.

MkDocs calls `on_files`. It adds pages for the changelog, for how to contribute
and for the notebooks, and the results of the benchmarks with their figures,
so that each of them exists once in the repository.
"""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
RESULTS = ROOT / "benchmarks" / "results"
NOTEBOOKS = ROOT / "examples" / "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies outside `docs/`."""
    for name, source in PAGES.items():
        files.append(
            File.generated(config, name, abs_src_path=str(ROOT / source))
        )
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in (".json", ".md", ".png"):
            name = f"results/{path.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, images = as_markdown(path)
        name = f"notebooks/{path.stem}"
        files.append(File.generated(config, f"{name}.md", content=text))
        for image, content in images.items():
            files.append(
                File.generated(config, f"notebooks/{image}", content=content)
            )
    return files


def as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page.

    Args:
        path: Of the notebook.

    Returns:
        The page, and its images: name to PNG.
    """
    import base64

    notebook = json.loads(path.read_text("utf-8"))
    parts: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            text, png = _of(output)
            if png:
                name = f"{path.stem}_{len(images)}.png"
                images[name] = base64.b64decode(png)
                parts.append(f"![Figure that the cell draws]({name})")
            elif text:
                parts.append(f"```text\n{text.rstrip()}\n```")
        # The file itself is where a reader can run it.
    parts.insert(
        1,
        f"This page is the notebook `examples/notebooks/{path.name}`, with "
        "what it printed.",
    )
    return "\n\n".join(parts) + "\n", images


def _of(output: dict[str, Any]) -> tuple[str, str | None]:
    """The text of an output, and its image."""
    if output["output_type"] == "stream":
        return "".join(output["text"]), None
    data = output.get("data", {})
    return "".join(data.get("text/plain", "")), data.get("image/png")
