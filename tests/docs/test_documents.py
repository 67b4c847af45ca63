"""What the documents say of numbers and of places is so."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_adamax import AdamaxClipped
from tests import gradients
from tests.docs.pages import PAGES, ROOT, name_of

READING = (ROOT / "docs" / "guides" / "reading.md").read_text("utf-8")
# `docs/make_figures.py` names the commands of those that are not its own.
FIGURES = {path.name for path in (ROOT / "docs" / "figures").iterdir()}
# `docs/hooks.py` puts these into the site.
ADDED = {
    "docs/changelog.md": "CHANGELOG.md",
    "docs/contributing.md": "CONTRIBUTING.md",
    "docs/security.md": "SECURITY.md",
}


def test_steps_that_a_constant_gradient_is_cut():
    (said,) = re.findall(
        r"With the defaults \(([\d.]+) and ([\de.-]+)\) these are (\d+) steps "
        r"for a constant gradient of 1, (\d+) for 0.1 and (\d+) for 0.01",
        READING,
    )
    optimizer = AdamaxClipped()
    assert [float(x) for x in said[:2]] == [
        optimizer.clip_multiplier,
        optimizer.clip_epsilon,
    ]
    variables = [keras.Variable([1.0], name=name) for name in "abc"]
    step = gradients.stepper(optimizer, variables)
    for _ in range(60):
        step([[1.0], [0.1], [0.01]])
    clipped = optimizer.clip_statistics().clipped
    assert [clipped[v.path] for v in variables] == [int(x) for x in said[2:]]


def source_of(target):
    """The file of the repository that the site shows at a place."""
    name = target.relative_to(ROOT).as_posix()
    name = ADDED.get(name, name)
    name = name.replace("docs/results/", "benchmarks/results/")
    name = re.sub(
        r"docs/notebooks/(\w+)\.md", r"examples/notebooks/\1.ipynb", name
    )
    return ROOT / name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """`mkdocs build --strict` looks at anchors, too, and at the API's pages."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)", text)
    links += re.findall(r"(?:src|href)=\"([^\"]+)", text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = source_of((page.parent / place).resolve()) if place else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            assert anchor in [anchor_of(title) for title in titles], link


def anchor_of(title):
    """As MkDocs and GitHub make it."""
    kept = re.sub(r"[^\w\- ]", "", title.strip().lower())
    return re.sub(r"[- ]+", "-", kept)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_figures_have_a_command(page):
    """Each image is drawn by a command, whose page is the one here."""
    for image in re.findall(
        r"!\[[^\]]*\]\(([^)#\s]+)", page.read_text("utf-8")
    ):
        name = Path(image).name
        assert name in FIGURES or "results/" in image, image


@pytest.mark.slow
def test_figures_are_drawn(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "docs" / "make_figures.py"),
            f"--output={tmp_path}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    drawn = {path.name for path in tmp_path.iterdir()}
    kept = {path.name for path in (ROOT / "docs" / "figures").glob("*.svg")}
    assert drawn == kept
    assert drawn < FIGURES
