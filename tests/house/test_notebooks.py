"""The notebooks run, and are stored with the pictures they make."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# A minute of training: as long as everything else of a file.
SLOW = ("distillation",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in NOTEBOOKS],
)
def test_notebook_runs(name):
    # A process of its own: the kernel must not inherit conftest's devices and backend of pictures. That its programs
    # are compiled fast and kept is no harm: this is about what runs.
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    flags = environment["XLA_FLAGS"].split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    command = [sys.executable, str(ROOT / "scripts" / "run_notebooks.py"), "--check", name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make notebook`"
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_there_is_a_notebook():
    assert NOTEBOOKS
