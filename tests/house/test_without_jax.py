"""A packed model runs where there is no jax: proved in an interpreter that cannot import it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"numpy", "safetensors", "lowbit"}


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / "lowbit" / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("package", ["formats", "gguf", "kernels"])
def test_imports_need_numpy_and_safetensors_alone(package):
    """Every module is imported while all other installed packages are refused."""
    modules = modules_of(package)
    assert modules
    script = f"""
        import importlib, sys

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                top = name.partition(".")[0]
                if top in sys.stdlib_module_names or top in {ALLOWED!r}:
                    return None
                # Importlib may look for accelerators and plugins: what is missing is what it must do without.
                raise ModuleNotFoundError(f"refused {{name}}", name=name)

        sys.meta_path.insert(0, Refuse())
        for module in {modules!r}:
            importlib.import_module(module)
        assert not {{"jax", "flax", "transformers", "matplotlib"}} & sys.modules.keys()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["lowbit", "lowbit.errors", "lowbit.llama", "lowbit.report.page"])
def test_these_do_not_load_jax(module):
    script = f"import sys, {module}; sys.exit(bool({{'jax', 'flax'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
