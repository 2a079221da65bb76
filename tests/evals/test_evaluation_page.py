import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_evaluation_page.py"


def test_evaluation_page_is_current():
    spec = importlib.util.spec_from_file_location("make_evaluation_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.filled_page(), "run `make docs`"
