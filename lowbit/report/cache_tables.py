"""The record of `benchmarks.kv_cache` as tables: what bits of the key-value cache buy, and cost."""

import itertools
from typing import Any

from lowbit.report.kernel_tables import Form
from lowbit.report.table import lay_out


def tables(record: dict[str, Any], form: Form) -> dict[str, str]:
    """Returns the tables of a record that has losses, by name."""
    return {
        "cache.machine": machine(record, form),
        "cache.speed": speed(record, form),
        "cache.largest": largest(record, form),
        "cache.losses": losses(record, form),
    }


def machine(record: dict[str, Any], form: Form) -> str:
    """Where the numbers are from."""
    lines = [
        ["device", record["device"]],
        ["bytes that jax takes of it, GB", f"{record['device_bytes'] / 1e9:.1f}"],
        ["model", f"{record['shape']}, weights in {record['dtype']}"],
        ["jax", record["jax_version"]],
        ["commit", (record["git_commit"] or "unknown")[:7]],
        ["date", record["date"][:10]],
        ["command", f"`{record['command']}`" if form == "markdown" else record["command"]],
    ]
    return lay_out(["", ""], [False, False], lines, form)


def speed(record: dict[str, Any], form: Form) -> str:
    """Steps after contexts: a line a length, batch, kind of cache and way to attend; a setting that failed says how.

    The last column is bytes of cache and weights over the time of a step.
    """
    headings = ["context", "batch", "cache", "attention", "ms a step", "tokens/s", "cache, GB", "temporary, GB", "TB/s"]
    order = {name: place for place, name in enumerate(record["bytes_per_token"])}
    rows = sorted(record["speed"], key=lambda row: (row["length"], row["batch"], order[row["cache"]], row["attention"]))
    lines = []
    for row in rows:
        line = [f"{row['length']:,}", str(row["batch"]), row["cache"], row["attention"]]
        if "failed" in row:
            lines.append([*line, row["failed"], "", f"{row['cache_bytes'] / 1e9:.2f}", "", ""])
            continue
        rate = (row["cache_bytes"] + record["weight_bytes"]) / row["ms_per_step"] / 1e9
        lines.append(
            [
                *(*line, f"{row['ms_per_step']:.2f}", f"{row['tokens_per_s']:,.0f}"),
                *(f"{row['cache_bytes'] / 1e9:.2f}", f"{row['memory']['temporary'] / 1e9:.2f}", f"{rate:.2f}"),
            ]
        )
    return lay_out(headings, [True, True, False, False, *[True] * 5], lines, form)


def largest(record: dict[str, Any], form: Form) -> str:
    """The batches that fill the device, and how many times the first kind's: a line a length and kind of cache."""
    headings = [
        "context",
        "cache",
        "attention",
        "bytes a token",
        "predicted batch",
        "batch that ran",
        "against the first",
    ]
    first: dict[int, int] = {}
    lines = []
    for row in record["largest_batch"]:
        ran = row["predicted"] if row["ran"] is None else row["ran"]
        times = ran / first.setdefault(row["length"], ran)
        lines.append(
            [
                *(f"{row['length']:,}", row["cache"], row["attention"], f"{record['bytes_per_token'][row['cache']]:,}"),
                *(f"{row['predicted']:,}", "" if row["ran"] is None else f"{row['ran']:,}", f"{times:.2f}"),
            ]
        )
    return lay_out(headings, [True, False, False, *[True] * 4], lines, form)


def losses(record: dict[str, Any], form: Form) -> str:
    """Nats a token, and their change against the first kind, over all positions and between some."""
    found = record["losses"]
    between = [f"{a:,}-{b:,}" for a, b in itertools.pairwise(found["positions"])]
    headings = ["cache", "nats", "change", "standard error", *between]
    lines = [
        [
            *(name, f"{row['nats']:.4f}", f"{row['change']:+.4f}"),
            "" if row["change_stderr"] is None else f"{row['change_stderr']:.4f}",
            *(f"{change:+.4f}" for change in row["change_by_position"]),
        ]
        for name, row in found["caches"].items()
    ]
    return lay_out(headings, [False, *[True] * (3 + len(between))], lines, form)
