"""The record of `benchmarks.finetuning` as tables: what is learned beside codes that stay, and what it takes."""

from typing import Any

from lowbit.report.kernel_tables import Form
from lowbit.report.table import format_seconds, lay_out

FLOAT = "float"


def tables(record: dict[str, Any], form: Form) -> dict[str, str]:
    """Returns the tables of a record, by name."""
    return {"finetuning.machine": machine(record, form), "finetuning.rows": rows(record, form)}


def machine(record: dict[str, Any], form: Form) -> str:
    """Where the numbers are from."""
    settings, found = record["settings"], record["machine"]
    lines = [
        ["model", settings["model"]],
        ["grid", f"zero points, or as rows say, in groups of {settings['group']}; adapters of rank {settings['rank']}"],
        ["trained on", f"{settings['tokens']:,} tokens of {settings['data']}"],
        ["evaluated on", f"{settings['windows']} windows of {settings['length']} tokens of {settings['eval']}"],
        ["float model", f"{_nats_of_float(record):.4f} nats/token"],
        ["device", found["device"]],
        ["commit", (found["git_commit"] or "unknown")[:7]],
        ["date", found["date"][:10]],
        ["command", f"`{record['command']}`" if form == "markdown" else record["command"]],
    ]
    return lay_out(["", ""], [False, False], lines, form)


def rows(record: dict[str, Any], form: Form) -> str:
    """What each model predicts, what its file takes with all that is stored, and how many numbers learned."""
    headings = ["bits", "method", "nats/token", "over float", "bits/weight", "bytes", "factors", "trained", "time"]
    nats = _nats_of_float(record)
    found = [row for row in record["rows"] if row["label"] != FLOAT]
    lines = [
        [
            f"{row['bits']:g}",
            row["label"],
            f"{row['nats']:.4f}",
            f"{row['nats'] - nats:+.3f}",
            f"{row['bits_per_weight']:.3f}",
            f"{row['bytes']:,}",
            f"{row['adapter_bytes']:,}",
            f"{row['trained']:,}",
            format_seconds(row["seconds"]),
        ]
        for row in found
    ]
    return lay_out(headings, [True, False, *[True] * 7], lines, form)


def _nats_of_float(record: dict[str, Any]) -> float:
    return float(next(row["nats"] for row in record["rows"] if row["label"] == FLOAT))
