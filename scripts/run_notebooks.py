"""Executes the notebooks in the environment of this Python.

`python scripts/run_notebooks.py` stores the outputs in the files; with `--check` it only sees to it that they run.
Names choose some of them.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
SECONDS_A_CELL = 120


def execute(path: Path) -> nbformat.NotebookNode:
    """Runs a notebook from its own folder and returns it with its outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised; the message holds the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS_A_CELL, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    for cell in notebook.cells:
        # When a cell ran is no part of what it shows, and would change the file each time.
        cell.metadata.pop("execution", None)
    return notebook


def main() -> None:
    """Runs every notebook, and stores the outputs unless asked only to check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run them, but leave the files as they are")
    parser.add_argument("names", nargs="*", metavar="NAME", help="without .ipynb (default: all)")
    options = parser.parse_args()
    for path in [NOTEBOOKS / f"{name}.ipynb" for name in options.names] or sorted(NOTEBOOKS.glob("*.ipynb")):
        start = time.monotonic()
        notebook = execute(path)
        if not options.check:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
