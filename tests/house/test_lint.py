"""Style, types and layers are tests like any other, so that `pytest` alone is the whole check."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_FILES = sorted((ROOT / "lowbit").rglob("*.py"))
LONGEST_FILE = 400


def run(*command: str) -> None:
    """Runs a tool from the environment of this Python, and shows what it said if it objects."""
    tool = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    assert tool, f"{command[0]} is not installed; use `make test`, or pip install -e '.[dev]'"
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"$ {' '.join(command)}\n{done.stdout}\n{done.stderr}"


def test_ruff_finds_nothing():
    run("ruff", "check", "--no-cache", ".")


def test_code_is_formatted():
    run("ruff", "format", "--check", "--no-cache", ".")


def test_types_hold():
    run("mypy")


def test_layers_hold():
    run("lint-imports", "--no-cache", "--no-logo")


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_about_one_thing(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}
    assert ast.get_docstring(ast.parse(text)), "say in the module's docstring what it is about"


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_jax(path):
    assert "jax._src" not in path.read_text(encoding="utf-8")


def test_test_files_have_names_of_their_own():
    """Without packages under tests/, two files of one name would hide each other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
