"""The commands of every page are well formed, and their options exist."""

import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, blocks, name_of

SHELL = [page for page in PAGES if blocks(page, "sh")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]
# Programs of others, with arguments that are theirs.
OTHERS = {
    "bash",
    "cd",
    "createdb",
    "export",
    "mkdocs",
    "optuna-dashboard",
    "pyright",
    "ruff",
    "torchrun",
    "set",
    "tensorboard",
    "twine",
    ".",
}


def commands(page):
    """Each command of a page, as words; environment variables left out."""
    texts = [block.code for block in blocks(page, "sh")]
    # Inline code counts where it starts like a command.
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    texts += re.findall(r"`((?:python|keras-adamax-tune) [^`\n]+)`", prose)
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words and words[0] == "srun":
                    words = words[1:]
                if words:
                    yield words


@pytest.mark.parametrize("page", SHELL, ids=name_of)
def test_shell_is_well_formed(page):
    for block in blocks(page, "sh"):
        done = subprocess.run(
            ["bash", "-n"], input=block.code, capture_output=True, text=True
        )
        assert done.returncode == 0, (block.line, done.stderr)


def options_in(words):
    return {word.partition("=")[0] for word in words if word[:2] == "--"}


def check_install(words):
    for word in words:
        for extras in re.findall(r"\[(.+)\]", word):
            assert set(extras.split(",")) <= set(EXTRAS), word


def check_script(script, words):
    path = ROOT / script
    assert path.is_file(), script
    sources = [
        path,
        *path.parent.glob("_*/**/*.py"),
        *path.parent.glob("_*.py"),
    ]
    known = " ".join(source.read_text("utf-8") for source in sources)
    for option in options_in(words):
        assert f'"{option}"' in known, (script, option)


@pytest.fixture(scope="module")
def search_help():
    """What `keras-adamax-tune --help` prints, and that of `report`."""
    return {
        " ".join(["keras-adamax-tune", *arguments]): subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from keras_adamax_tuning.cli import main; "
                "sys.exit(main())",
                *arguments,
                "--help",
            ],
            check=True,
            capture_output=True,
            text=True,
            env={
                "COLUMNS": "80",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tuning'}",
            },
        ).stdout.replace("usage: -c", "usage: keras-adamax-tune")
        for arguments in ([], ["report"])
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_can_be_run(page, search_help):
    for words in commands(page):
        program, *rest = words
        if program == "keras-adamax-tune":
            use = f"{program} report" if rest[:1] == ["report"] else program
            known = set(re.findall(r"--[a-z-]+", search_help[use]))
            assert options_in(rest) <= known, words
        elif program != "python":
            assert program in OTHERS, words
        elif rest[:1] == ["-m"]:
            assert rest[1] in {
                "build",
                "keras_adamax.plots",
                "pip",
                "pytest",
                "venv",
            }, words
            if rest[1] == "pip":
                check_install(rest[2:])
            for word in rest[2:]:
                if word.startswith("tests/"):
                    assert (ROOT / word).exists(), words
        else:
            check_script(rest[0], rest[1:])


def test_commands_are_found():
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 40
    assert {"python", "keras-adamax-tune"} < {words[0] for words in found}


def test_the_page_on_the_command_line_shows_the_help(search_help):
    page = ROOT / "docs" / "api" / "command.md"
    shown = {b.value: b.code for b in blocks(page, "text") if b.mark == "help"}
    if sys.version_info[:2] == (3, 11):  # others break lines in other places
        assert shown == search_help
    assert set(shown) == set(search_help)


def test_kubernetes_manifest():
    (manifest,) = blocks(ROOT / "docs" / "guides" / "cluster.md", "yaml")
    documents = list(yaml.safe_load_all(manifest.code))
    assert {document["kind"] for document in documents} >= {"Job"}
    assert all(document["metadata"]["name"] for document in documents)


def test_slurm_script():
    page = ROOT / "docs" / "guides" / "cluster.md"
    assert any("#SBATCH" in block.code for block in blocks(page, "sh"))
