"""Writes the tables of README.md and docs/*.md from the JSON files in docs/results.

`<!-- table:quickstart -->` ... `<!-- /table -->` in a page holds the rows of docs/results/quickstart.json.
To publish a run, copy its results.json there and run `make docs`. `<!-- table:sweep_quickstart -->` holds the table of
the record of that sweep in experiments/, `<!-- table:synthesis_steps -->` and `<!-- table:synthesis_waves -->` what
`benchmarks.synthesis` measured.
"""

import json
import sys
from pathlib import Path
from typing import Any

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
    synthesis = json.loads((results / "synthesis_135m_h100.json").read_text(encoding="utf-8"))
    tables |= {"synthesis_steps": synthesis_steps(synthesis), "synthesis_waves": synthesis_waves(synthesis)}
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


def synthesis_steps(record: dict[str, Any]) -> str:
    """Returns the table of steps at a full cache, a line a way to attend, kind of cache and batch."""
    headings = ["attention", "cache", "texts", "ms a step", "tokens/s", "cache read, TB/s", "device", "commit"]
    lines = [
        [
            *(step["attention"], step["cache"], f"{step['batch']:,}", f"{step['ms_per_step']:.1f}"),
            *(f"{step['tokens_per_s']:,.0f}", f"{step['read_bytes_per_s'] / 1e12:.2f}"),
            *(record["device"], (record["git_commit"] or "unknown")[:7]),
        ]
        for step in record["steps"]
    ]
    return lay_out(headings, [False, False, *[True] * 4, False, False], lines, "markdown")


def synthesis_waves(record: dict[str, Any]) -> str:
    """Returns the table of whole batches of texts: what was written and kept, and how fast."""
    headings = ["batch", "texts", "dropped", "tokens written", "tokens kept", "written a second", "kept a second"]
    lines = [
        [
            *(str(number), f"{wave['texts']:,}", f"{sum(wave['dropped'].values()):,}"),
            *(f"{wave['made_tokens']:,}", f"{wave['kept_tokens']:,}"),
            *(f"{wave['made_tokens_per_s']:,.0f}", f"{wave['kept_tokens_per_s']:,.0f}"),
        ]
        for number, wave in enumerate(record["waves"]["waves"], 1)
    ]
    return lay_out(headings, [False, *[True] * 6], lines, "markdown")


def main() -> None:
    """Rewrites the pages whose tables are out of date."""
    for page, text in filled_pages().items():
        if page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
