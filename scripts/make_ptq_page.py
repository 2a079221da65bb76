"""Writes the tables and the pictures of docs/ptq.md from what benchmarks.ptq_smollm2 measured.

`<!-- table:ptq_NAME -->` holds the table of docs/results/ptq_NAME.json, docs/images/ptq_NAME.png its picture. `make
docs` calls this; a test compares the page with the files.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowbit.report import theme
from lowbit.report.table import fill_tables, format_seconds, lay_out

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ptq.md"
RESULTS = ROOT / "docs" / "results"
IMAGES = ROOT / "docs" / "images"

DRAWN = ("rounding, min-max", "GPTQ", "AWQ", "HQQ", "residual vectors")


def records() -> dict[str, dict[str, Any]]:
    """Returns what was measured, by file name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("ptq_*.json"))}


def table(record: dict[str, Any]) -> str:
    """Returns a line a method and width: nats a text, what they are above the float model, bits and seconds."""
    base = record["float"]["evaluations"]
    lines = [["float", "32", *(f"{found['nll']:.3f}" for found in base.values()), "", "", "–"]]
    first = next(iter(base))
    for row in sorted(record["rows"], key=lambda row: (-row["bits"], row["evaluations"][first]["nll"])):
        found = row["evaluations"]
        lines.append(
            [
                row["label"],
                f"{row['bits']:g}",
                *(f"{found[text]['nll']:.3f}" for text in base),
                f"{found[first]['nll'] - base[first]['nll']:+.3f}",
                f"{row['bits_per_weight']:.2f}",
                format_seconds(row["seconds"]),
            ]
        )
    heads = ["method", "bits", *base, f"over float, {first}", "bits/weight", "time"]
    return lay_out(heads, [False, *[True] * (len(heads) - 1)], lines, "markdown")


def draw(record: dict[str, Any]) -> Figure:
    """Draws what each method loses against what it stores."""
    base = record["float"]["evaluations"]
    text = next(iter(base))
    with theme.style():
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        panel = figure.subplots()
        for colour, label in zip(theme.SERIES, DRAWN, strict=False):
            rows = [(row["bits_per_weight"], row) for row in record["rows"] if row["label"] == label]
            rows.sort(key=lambda pair: pair[0])
            if not rows:
                continue
            lost = [row["evaluations"][text]["nll"] - base[text]["nll"] for _, row in rows]
            panel.plot([bits for bits, _ in rows], lost, color=colour.light, marker="o", label=label)
        panel.set_yscale("log")
        panel.set_xlabel("bits per weight of the layers' matrices, scales included")
        panel.set_ylabel(f"nats per token above float ({text})")
        panel.legend(frameon=False)
    return figure


def filled_page() -> str:
    """Returns docs/ptq.md with its tables brought up to date."""
    return fill_tables(PAGE.read_text(encoding="utf-8"), {name: table(record) for name, record in records().items()})


def main() -> None:
    """Rewrites the page if it is out of date, and draws the pictures."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
    for name, record in records().items():
        figure = draw(record)
        with theme.style():
            figure.savefig(IMAGES / f"{name}.png", dpi=130)


if __name__ == "__main__":
    main()
