"""The two commands that a newcomer types, short of running them."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Not a child of the make that may be running this test.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def bare(tmp_path):
    """A folder that has the Makefile and the lists of requirements, but no environment."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_help_lists_the_targets():
    words = make("help").stdout
    for target in ("quickstart", "test", "test-slow", "notebook", "docs", "clean"):
        assert f"make {target} " in words


@pytest.mark.parametrize(
    ("target", "expected"),
    [("test", "-m pytest"), ("quickstart", "-m experiments.quickstart")],
)
def test_a_bare_folder_gets_its_environment_first(bare, target, expected):
    plan = make("--dry-run", target, cwd=bare).stdout
    assert plan.index("-m venv .venv") < plan.index("pip install") < plan.index(expected)


def test_quickstart_installs_no_development_tools(bare):
    assert "[dev" not in make("--dry-run", "quickstart", cwd=bare).stdout


def test_an_old_python_is_refused_with_its_mend(bare):
    old = bare / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(f"PYTHON={old}", "test", cwd=bare)
    assert done.returncode != 0
    assert "is older than Python 3.11" in done.stderr
    assert "-> name a newer one: make PYTHON=/path/to/python3 test" in done.stderr
    done = make("PYTHON=", "quickstart", cwd=bare)
    assert "needs Python 3.11 or newer, and found none" in done.stderr
    assert not (bare / ".venv").exists()


def test_a_python_without_venv_is_refused_with_its_mend(bare):
    partial = bare / "python3"
    partial.write_text('#!/bin/sh\ncase "$2" in *venv*) exit 1;; esac\n')
    partial.chmod(0o755)
    done = make(f"PYTHON={partial}", "test", cwd=bare)
    assert done.returncode != 0
    assert "lacks the venv module" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")
