"""Fills the tables of docs/generation.md, and draws its picture, from what benchmarks of generation measured."""

import json
import sys
from pathlib import Path

from lowbit.report.cache_figures import draw
from lowbit.report.cache_tables import tables
from lowbit.report.kernel_figures import save
from lowbit.report.layout_table import float_layouts
from lowbit.report.table import fill_tables

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "generation.md"
RECORD = ROOT / "docs" / "results" / "kv_cache_135m_h100.json"
LAYOUTS = ROOT / "docs" / "results" / "float_layouts_h100.json"
PICTURE = ROOT / "docs" / "images" / "kv_cache.png"


def filled_page() -> str:
    """Returns the page with its tables brought up to date."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    picture = {"cache.picture": "![tokens/s over sequences, and change in nats over position](images/kv_cache.png)"}
    layouts = {"float.layouts": float_layouts(json.loads(LAYOUTS.read_text(encoding="utf-8")), "markdown")}
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables(record, "markdown") | layouts | picture)


def main() -> None:
    """Rewrites the page and its picture where the tables are out of date."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        save(draw(json.loads(RECORD.read_text(encoding="utf-8"))), PICTURE)
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
