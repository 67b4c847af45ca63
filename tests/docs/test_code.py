"""The code of every page runs, on the backend under test.

The Python blocks of a page run one after another in an empty folder, as one
program. The comment above a block says what is special:

- `<!-- backend: jax -->`: this block is for one backend alone.
- `<!-- file: models.py -->`: this block is a file that later blocks import.
- `<!-- output -->`: what the block before printed last, numbers aside; with
  `<!-- output: exact -->` as it stands here.
"""

import contextlib
import io
import json
import logging
import re
import sys

import keras
import pytest

from tests.docs.pages import PAGES, ROOT, blocks, name_of

# JAX 0.12 says so of Keras 3.15, where labels are 64-bit integers.
pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
WITH_CODE = [page for page in PAGES if blocks(page, "python")]
SEARCHES = ROOT / "docs" / "guides" / "search.md"
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """What a page writes and sets is gone with it."""
    level = logging.getLogger("keras_adamax").level
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # Event files of the page on trackers, and figures, need no display.
    monkeypatch.setenv("MPLBACKEND", "agg")
    yield
    sys.modules.pop("models", None)
    logging.getLogger("keras_adamax").setLevel(level)


def without_numbers(text):
    text = re.sub(r"-?\d[\d,]*(\.\d*)?(e[+-]?\d+)?", "#", text)
    return re.sub(r"\s+(?=\])|(?<=\[)\s+", "", " ".join(text.split()))


def check_printed(printed, block):
    expected = block.code.splitlines()
    last = printed.splitlines()[-len(expected) :]
    if block.value == "exact":
        assert last == expected
    else:
        assert [*map(without_numbers, last)] == [
            *map(without_numbers, expected)
        ]


def run(code, namespace, name):
    """Runs code as a program of its own would, and returns what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), namespace)
    return out.getvalue()


def faster(code):
    """A search of one trial shows as well that the code is right."""
    code = re.sub(r"(?m)^    (max_trials|epochs)=\d+,$", r"    \1=1,", code)
    return re.sub(r"max_trials=[2-9]\d+", "max_trials=1, epochs=1", code)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page == SEARCHES else ())
        for page in WITH_CODE
    ],
    ids=name_of,
)
def test_page(page, tmp_path):
    namespace = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page, "python", "text"):
        if block.language == "text":
            if block.mark == "output":
                check_printed(printed, block)
        elif block.mark == "file":
            (tmp_path / block.value).write_text(block.code)
        elif block.mark != "backend" or block.value == keras.backend.backend():
            # Errors name the line of the page.
            code = "\n" * (block.line - 1) + faster(block.code)
            printed = run(code, namespace, str(page))


def test_pages_have_code():
    names = {name_of(page) for page in WITH_CODE}
    assert {"README.md", "docs/start.md", "docs/guides/search.md"} <= names
    assert len(names) > 10
    outputs = [b for p in PAGES for b in blocks(p) if b.mark == "output"]
    assert len(outputs) > 10
    # Marks are spelled right.
    marks = {b.mark for p in PAGES for b in blocks(p)} - {""}
    assert marks <= {
        "backend",
        "file",
        "help",
        "output",
        "quickstart-command",
        "test-command",
    }
    values = {b.value for p in PAGES for b in blocks(p) if b.mark == "backend"}
    assert values == {"tensorflow", "jax", "torch"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    notebook = json.loads(path.read_text("utf-8"))
    namespace = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            # `%matplotlib inline` is for IPython, which runs them in CI.
            lines = [x for x in cell["source"] if not x.startswith("%")]
            run(faster("".join(lines)), namespace, path.name)


def test_notebooks_are_small_and_clean():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert path.stat().st_size < 100_000
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            assert all(
                o.get("name") != "stderr" for o in cell.get("outputs", [])
            )
        # `python docs/run_notebooks.py --save` was the last to write it.
        assert '"outputs": [\n' in path.read_text("utf-8")


def test_first_steps_are_those_of_the_page():
    script = (ROOT / "examples" / "first_steps.py").read_text("utf-8")
    shown = blocks(ROOT / "docs" / "start.md", "python")[0].code
    assert script.endswith("\n" + shown)
    assert len(shown.splitlines()) <= 32
