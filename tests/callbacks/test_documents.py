"""What the documents say of numbers and of places is so."""

import re
from pathlib import Path

import keras
import pytest

from keras_adamax import AdamaxClipped
from tests import gradients

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")],
)
READING = (ROOT / "docs" / "reading.md").read_text("utf-8")


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)", text)
    links += re.findall(r"(?:src|href)=\"([^\"]+)", text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = path.parent / place if place else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
            assert anchor in [anchor_of(title) for title in titles], link


def anchor_of(title):
    """As GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", title.strip().lower())
    return kept.replace(" ", "-")


def test_documents_are_found():
    assert {"README.md", "reading.md"} <= {path.name for path in DOCUMENTS}
