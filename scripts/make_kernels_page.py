"""Fills the tables of docs/kernels.md, and draws its pictures, from what `benchmarks.cpu_kernels` measured."""

import json
import sys
from pathlib import Path

from lowbit.report.kernel_figures import draw, save
from lowbit.report.kernel_tables import tables, width_pairs
from lowbit.report.table import fill_tables

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "kernels.md"
RECORD = ROOT / "docs" / "results" / "cpu_kernels.json"
PAIRS = ROOT / "docs" / "results" / "width_pairs_cpu.json"
IMAGES = ROOT / "docs" / "images"


def filled_page() -> str:
    """Returns the page with its tables brought up to date."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    pairs = {"kernels.pairs": width_pairs(json.loads(PAIRS.read_text(encoding="utf-8")), "markdown")}
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables(record, "markdown") | pairs)


def main() -> None:
    """Rewrites the page and its pictures where the tables are out of date."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        for name, figure in draw(json.loads(RECORD.read_text(encoding="utf-8"))).items():
            save(figure, IMAGES / f"kernels_{name}.png")
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
