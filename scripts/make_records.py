"""Writes the table and the curves of each dated record in experiments/ from the files of its runs.

A record is a folder with a README.md and, if it is of runs, one folder a run (config.json, metrics.jsonl,
evaluations.jsonl and, where it came back, result.json, as `lowbit train` writes them). `<!-- table:runs -->` ...
`<!-- /table -->` in the README holds a row for each run; curves.png shows their training losses. The record of a sweep
has its sweep.json in place of runs, `<!-- table:points -->` in its README, and the figures of a sweep;
`make_study_record.py` begins that of a study.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowbit.report import theme
from lowbit.report.curves import draw_curves, read_metrics
from lowbit.report.sweep import read_sweep, sweep_table
from lowbit.report.sweep_figures import draw_sweep
from lowbit.report.table import fill_tables

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"


def records() -> list[Path]:
    """Returns the folders of the records, oldest first."""
    return sorted(readme.parent for readme in EXPERIMENTS.glob("*/README.md"))


def runs(record: Path) -> dict[str, dict[str, Any]]:
    """Returns what each run of a record says of itself, by name."""
    found = {}
    for config in sorted(record.glob("*/config.json")):
        folder = config.parent
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        result = folder / "result.json"
        found[folder.name] = {
            "config": json.loads(config.read_text()),
            "tokens": metrics[-1]["tokens"],
            "speeds": [row["tokens_per_s"] for row in metrics if row["tokens_per_s"]],
            "final": {row["text"]: row for row in evaluations if row["step"] == evaluations[-1]["step"]},
            "result": json.loads(result.read_text()) if result.exists() else {},
        }
    return found


def table(record: Path) -> str:
    """Returns the markdown table of a record's runs, worst first on the first text."""
    rows = runs(record)
    texts = list(next(iter(rows.values()))["final"])
    heads = [
        "run",
        "method",
        "bits",
        "batch",
        "learning rate",
        "scale start",
        "tokens",
        *texts,
        "bits/weight",
        "tokens/s",
    ]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] * 6 + ["---:"] * (len(heads) - 6)) + " |"]
    for name, run in sorted(rows.items(), key=lambda item: -item[1]["final"][texts[0]]["nll"]):
        quant, result = run["config"]["quant"], run["result"]
        is_float = quant["method"] == "float"
        bits = result.get("bits_per_weight_model") if is_float else result.get("bits_per_weight")
        cells = [
            name,
            quant["method"],
            "16" if is_float else f"{quant['bits']:g}",
            f"{run['config']['train']['batch_size']} x {run['config']['train']['sequence_length']:,}",
            f"{run['config']['optimizer']['learning_rate']:g}",
            "" if is_float else quant["scale_init"],
            f"{run['tokens']:,}",
            *(f"{run['final'][text]['nll']:.4f} ±{run['final'][text]['stderr']:.3f}" for text in texts),
            "" if bits is None else f"{bits:.3f}",
            f"{statistics.median(run['speeds']):,.0f}" if run["speeds"] else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filled_readmes() -> dict[Path, str]:
    """Returns the README of each record of runs or of a sweep, with its table brought up to date."""
    readmes = {record / "README.md": record for record in records() if runs(record) or (record / "sweep.json").exists()}
    return {
        readme: fill_tables(readme.read_text(encoding="utf-8"), tables(record)) for readme, record in readmes.items()
    }


def tables(record: Path) -> dict[str, str]:
    """Returns the tables that the README of a record may ask for."""
    if (record / "sweep.json").exists():
        return {"points": sweep_table(read_sweep(record / "sweep.json"), "markdown")}
    return {"runs": table(record)}


def figures(record: Path) -> dict[Path, Figure]:
    """Returns the figures of a record by the places where they belong."""
    if (record / "sweep.json").exists():
        return {record / f"{name}.png": f for name, f in draw_sweep(read_sweep(record / "sweep.json")).items()}
    metrics = {p.parent.name: read_metrics(p) for p in sorted(record.glob("*/metrics.jsonl"))}
    long = {name: series for name, series in metrics.items() if len(series["loss"].values) > 2}
    return {record / "curves.png": draw_curves(long)}


def draw_missing(record: Path) -> list[Path]:
    """Draws the figures of a record that are not there, and returns their paths."""
    drawn = figures(record)
    missing = [path for path in drawn if not path.exists()]
    with theme.style():
        for path in missing:
            drawn[path].savefig(path, dpi=130)
    return missing


def main() -> None:
    """Rewrites READMEs that are out of date, and draws the curves that are missing."""
    for readme, text in filled_readmes().items():
        if readme.read_text(encoding="utf-8") != text:
            readme.write_text(text, encoding="utf-8")
            print(f"wrote {readme.relative_to(ROOT)}", file=sys.stderr)
        for path in draw_missing(readme.parent):
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
