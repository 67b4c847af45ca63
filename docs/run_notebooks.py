"""Runs the notebooks of `examples/notebooks`, each in an empty folder.

    python docs/run_notebooks.py          # fails where a cell fails
    python docs/run_notebooks.py --save   # and keeps what the cells print

What goes to standard error, such as the messages of a framework at its start,
is not kept. It needs the extra `docs`, and what the notebooks need.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def run(path: Path) -> Any:
    """The notebook with the outputs of a run.

    Raises:
        nbclient.exceptions.CellExecutionError: Where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": folder}}
        ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if o.get("name") != "stderr"
            ]
    return notebook


def main() -> None:
    """Runs all notebooks."""
    parser = argparse.ArgumentParser(description="Run the notebooks.")
    parser.add_argument("--save", action="store_true", help="keep the outputs")
    arguments = parser.parse_args()
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = run(path)
        if arguments.save:
            nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells ran")


if __name__ == "__main__":
    main()
