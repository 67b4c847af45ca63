"""What the project promises about itself: commands, version, arrows."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import keras_adamax

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "keras_adamax"
SOURCES = sorted(LIBRARY.rglob("*.py"))
ABOVE_UPDATES = [
    "keras_adamax.adamax_clipped",
    "keras_adamax.callbacks",
    "keras_adamax.optimizer",
    "keras_adamax.plots",
    "keras_adamax.state",
]
# Who must not import whom: file or folder of the library -> modules.
FORBIDDEN_IMPORTS = {
    "": ["keras_adamax_tuning", "tests", "benchmarks", "examples"],
    "callbacks": [
        "keras_adamax.native",
        "keras_adamax.optimizer",
        "keras_adamax.updates",
    ],
    "optimizer": [
        "keras_adamax.adamax_clipped",
        "keras_adamax.callbacks",
        "keras_adamax.native",
    ],
    "updates": [*ABOVE_UPDATES],
    "native": [*ABOVE_UPDATES, "keras_adamax.updates"],
    "backends": [
        *ABOVE_UPDATES,
        "keras_adamax.updates",
        "keras_adamax.native",
        "keras_adamax.spike_rule",
    ],
    "state": [
        "keras_adamax.adamax_clipped",
        "keras_adamax.callbacks",
        "keras_adamax.native",
        "keras_adamax.optimizer",
        "keras_adamax.updates",
    ],
    "update_rule.py": ["keras_adamax"],
    "schedules.py": ["keras_adamax.adamax_clipped"],
}
BACKENDS = {"tensorflow", "jax", "torch"}
KNOW_BACKENDS = ("backends", "native", "updates", "callbacks/_devices")
SEARCH = ROOT / "tuning" / "keras_adamax_tuning"
# What each room of the search, and each module beside them, may know. All may
# know `errors` and `base`.
SEARCH_ROOMS = {
    "errors": set(),
    "base": set(),
    "space": set(),
    "study": set(),
    "training": {"study"},
    "results": {"space", "study"},
    "running": {"space", "study", "training", "results"},
    "search": {"space", "study", "training", "results", "running"},
    "cli": {"space", "study", "training", "results", "running", "search"},
}


def name_of(source: Path) -> str:
    return source.relative_to(ROOT).as_posix()


def imported_modules(code: str, package: str) -> Iterator[str]:
    """Yields what code in a module of `package` imports, as dotted names.

    `from a import b` gives `a.b`, whether that is a module or not.
    """
    parents = package.split(".")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package itself, another one its parent.
            up = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*up, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of(source: Path) -> Iterator[str]:
    root = SEARCH.parent if SEARCH in source.parents else ROOT
    package = ".".join(source.relative_to(root).parent.parts)
    return imported_modules(source.read_text("utf-8"), package)


def is_within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["version"] == keras_adamax.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert keras_adamax.__version__ in changelog


def test_the_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == keras_adamax.__version__
    assert citation["license"] == "Apache-2.0"


def test_the_forms_for_issues_and_the_workflow_can_be_read():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms:
        content = yaml.safe_load(form.read_text("utf-8"))
        assert form.stem == "config" or {"name", "body"} <= set(content)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    steps = yaml.safe_load(workflow)["jobs"]["run"]["steps"]
    assert {"run": "bash .ci/run"} in steps


def test_a_search_declares_what_it_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = project["project"]["optional-dependencies"]["tuning"]
    # KerasTuner does not declare six.
    assert {"keras-tuner>=1.4.8,<1.5", "six"} < set(needed)


@pytest.mark.parametrize(
    "mark, ran",
    [
        ("quickstart-command", "python examples/quickstart.py"),
        ("test-command", "python -m pytest"),
    ],
)
def test_readme_has_its_commands(mark, ran):
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(rf"^<!-- {mark} -->\n```sh\n(.+)\n```$", readme, re.M)
    assert len(commands) == 1
    install, run = commands[0].split(" && ")
    assert install.startswith("python -m pip install -e ")
    assert run.startswith(ran)
    # "The first screen says what this is and holds the two commands."
    assert readme.index(mark) < readme.index("\n## ")


def test_messages_name_what_can_be_installed():
    """The package is in no registry: `pip install "name[extra]"` fails."""
    sources = [
        path
        for folder in ("keras_adamax", "tuning", "examples")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 50
    for path in sources:
        text = " ".join(path.read_text("utf-8").split())
        # A text may go on in the next line.
        text = re.sub(r"""[`"'] f?[`"']""", "", text)
        assert not re.search(r"install [`'\"]*keras-adamax", text), path


def test_the_guide_names_every_hyperparameter():
    guide = (ROOT / "docs" / "guides" / "clipping.md").read_text("utf-8")
    config = keras_adamax.AdamaxClipped().get_config()
    assert [name for name in config if f"`{name}`" not in guide] == []


def test_imports_are_understood():
    # The rules below are worth as much as this.
    code = (
        "import a.b\nfrom a import c\nfrom . import d\nfrom .. import e\n"
        "def f():\n    from ..g.h import i\n"
    )
    assert list(imported_modules(code, "top.rooms")) == [
        "a.b",
        "a.c",
        "top.rooms.d",
        "top.e",
        "top.g.h.i",
    ]


@pytest.mark.parametrize("place", FORBIDDEN_IMPORTS)
def test_arrows_go_one_way(place):
    found = [
        (name_of(source), module)
        for source in SOURCES
        if source == LIBRARY / place or LIBRARY / place in source.parents
        for module in imports_of(source)
        for forbidden in FORBIDDEN_IMPORTS[place]
        if is_within(module, forbidden)
    ]
    assert found == []


def test_arrows_of_the_search_go_one_way():
    found = []
    rooms = set()
    for source in sorted(SEARCH.rglob("*.py")):
        room = source.relative_to(SEARCH).with_suffix("").parts[0]
        if room == "__init__":
            continue
        rooms.add(room)
        known = SEARCH_ROOMS[room] | {room, "errors", "base"}
        for module in imports_of(source):
            package, *place = module.split(".")
            if package != "keras_adamax_tuning":
                continue
            if place[0] not in known:
                found.append((name_of(source), module))
    assert found == []
    assert rooms == set(SEARCH_ROOMS)


def test_who_knows_backends():
    found = [
        (name_of(source), module)
        for source in (*SOURCES, *sorted(SEARCH.rglob("*.py")))
        if source != SEARCH / "running" / "compilations.py"
        and not any(LIBRARY / room in source.parents for room in KNOW_BACKENDS)
        for module in imports_of(source)
        if module.split(".")[0] in BACKENDS
    ]
    assert found == []


@pytest.mark.slow
def test_the_import_loads_our_own_modules_only():
    code = (
        "import sys, keras; before = set(sys.modules); import keras_adamax; "
        "print({name.split('.')[0] for name in set(sys.modules) - before}"
        " - sys.stdlib_module_names)"
    )
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert output.splitlines()[-1] == "{'keras_adamax'}"


def test_callbacks_know_public_names_only():
    found = []
    for source in SOURCES:
        if LIBRARY / "callbacks" not in source.parents:
            continue
        for module in imports_of(source):
            last = module.rpartition(".")[2]
            if is_within(module, "keras_adamax.adamax_clipped") and (
                last.startswith("_")
            ):
                found.append((name_of(source), module))
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and "optimizer" in ast.unparse(node.value)
            ):
                found.append((name_of(source), ast.unparse(node)))
    assert found == []


# Which calls can run code that somebody has put into a file, and where they
# are: a command and the workers that it has started speak through pipes.
RUN_CODE = {
    "eval",
    "exec",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "yaml.load",
}
RUNNING_CODE = {
    "tuning/keras_adamax_tuning/base/user_errors.py": {"pickle.loads"},
    "tuning/keras_adamax_tuning/running/worker_processes.py": {"pickle.loads"},
}
SWITCHED_OFF = {"allow_pickle": False, "safe_mode": True}


def test_what_is_loaded_runs_no_code():
    found: dict[str, set[str]] = {}
    for source in (*SOURCES, *sorted(SEARCH.rglob("*.py"))):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            its = found.setdefault(name_of(source), set())
            if called in RUN_CODE or "unsafe_deserialization" in called:
                its.add(called)
            for argument in node.keywords:
                value = ast.unparse(argument.value)
                safe = SWITCHED_OFF.get(argument.arg or "")
                if safe is not None and value != str(safe):
                    its.add(f"{argument.arg}={value}")
    assert {name: its for name, its in found.items() if its} == RUNNING_CODE


def test_no_file_is_too_long_to_be_taken_over():
    sources = (*SOURCES, *sorted(SEARCH.rglob("*.py")))
    lines = {name_of(s): s.read_text("utf-8").count("\n") for s in sources}
    assert {name: n for name, n in lines.items() if n >= 450} == {}
