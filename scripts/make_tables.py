"""Writes the tables of README.md and docs/*.md from the JSON files in docs/results.

`<!-- table:quickstart -->` ... `<!-- /table -->` in a page holds the rows of docs/results/quickstart.json.
To publish a run, copy its results.json there and run `make docs`. `<!-- table:sweep_quickstart -->` holds the table of
the record of that sweep in experiments/.
"""

import json
import sys
from pathlib import Path

from lowbit.report.export_tables import fuzz_table, gguf_types_table, llama_cpp_table
from lowbit.report.results import read_rows
from lowbit.report.sweep import read_sweep, sweep_table
from lowbit.report.table import fill_tables, lay_out, results_table, table_names

ROOT = Path(__file__).resolve().parent.parent


def filled_pages() -> dict[Path, str]:
    """Returns each page that asks for tables, with its tables brought up to date."""
    tables = {"quickstart": results_table(read_rows(ROOT / "docs" / "results" / "quickstart.json"), "markdown")}
    for path in sorted((ROOT / "experiments").glob("*_sweep_*/sweep.json")):
        name = path.parent.name.partition("_")[2]
        tables[name] = sweep_table(read_sweep(path), "markdown")
    tables["sweep_gain"] = sweep_gain(sorted((ROOT / "docs" / "results" / "sweeps").glob("gain_*.json")))
    results = ROOT / "docs" / "results"
    tables["gguf_types"] = gguf_types_table(results / "gguf_types.json")
    tables["llama_cpp"] = llama_cpp_table(results / "llama_cpp.json")
    tables["fuzz"] = fuzz_table(results / "fuzz.json")
    # A page with a script of its own, make_NAME_page.py, has its tables from there.
    own = {
        script.stem.removeprefix("make_").removesuffix("_page")
        for script in Path(__file__).parent.glob("make_*_page.py")
    }
    pages = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.stem not in own)]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    return {page: fill_tables(text, tables) for page, text in texts.items() if table_names(text)}


def sweep_gain(records: list[Path]) -> str:
    """Returns the table of what `benchmarks.sweep_gain` measured, a line a device and way."""
    headings = ["device", "at once", "tokens a point", "first batch", "later batches", "points an hour"]
    lines = []
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        for way in record["ways"]:
            lines.append(
                [
                    record["device"],
                    str(way["points_at_once"]),
                    f"{record['tokens']:,}",
                    f"{way['seconds_first_batch']:.1f} s",
                    f"{way['seconds_later_batch']:.1f} s",
                    f"{way['points_per_hour_later']:,.0f}",
                ]
            )
    return lay_out(headings, [False, *[True] * 5], lines, "markdown")


def main() -> None:
    """Rewrites the pages whose tables are out of date."""
    for page, text in filled_pages().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
