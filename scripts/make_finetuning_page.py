"""Fills the tables of docs/finetuning.md from what `benchmarks.finetuning` wrote."""

import json
import sys
from pathlib import Path

from lowbit.report.finetuning_tables import tables
from lowbit.report.table import fill_tables

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "finetuning.md"
RECORD = ROOT / "docs" / "results" / "finetuning_quickstart_cpu.json"


def filled_page() -> str:
    """Returns the page with its tables brought up to date."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables(record, "markdown"))


def main() -> None:
    """Rewrites the page where its tables are out of date."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
