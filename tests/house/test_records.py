"""Every record in experiments/ shows the numbers of its own files."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_script():
    spec = importlib.util.spec_from_file_location("make_records", ROOT / "scripts" / "make_records.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_the_records_are_current():
    script = load_script()
    filled = script.filled_readmes()
    assert filled
    for readme, text in filled.items():
        assert readme.read_text(encoding="utf-8") == text, f"{readme} is out of date: run `make docs`"
        drawn = script.figures(readme.parent)
        assert drawn
        assert all(path.exists() for path in drawn)


def test_every_dated_folder_is_a_record():
    dated = {folder.name for folder in (ROOT / "experiments").glob("20*") if folder.is_dir()}
    assert dated == {record.name for record in load_script().records()}
