"""Fills the tables of docs/mixed_precision.md and draws its picture, from what `benchmarks.mixed_precision` wrote."""

import json
import sys
from pathlib import Path

from lowbit.report.kernel_figures import save
from lowbit.report.mixed_tables import tables
from lowbit.report.table import fill_tables
from lowbit.report.width_figure import draw_choices

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mixed_precision.md"
RECORD = ROOT / "docs" / "results" / "mixed_precision_quickstart_cpu.json"
PICTURE = ROOT / "docs" / "images" / "mixed_precision.png"


def filled_page() -> str:
    """Returns the page with its tables brought up to date."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    picture = {"mixed.picture": "![widths of each matrix of each layer, by measure](images/mixed_precision.png)"}
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables(record, "markdown") | picture)


def main() -> None:
    """Rewrites the page and its picture where the tables are out of date."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        save(draw_choices(json.loads(RECORD.read_text(encoding="utf-8"))), PICTURE)
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
