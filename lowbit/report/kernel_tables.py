"""The record of `bench cpu` as tables."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from lowbit.report.table import lay_out

Form = Literal["markdown", "plain"]
Row = dict[str, Any]

BUSY = 0.5
"""Load of a machine, in programs that want to run, from which on threads wait for others than their own."""


def tables(record: dict[str, Any], form: Form) -> dict[str, str]:
    """Returns the tables of a record of `lowbit.bench.cpu.measure`, by name."""
    return {
        "kernels.machine": machine(record, form),
        "kernels.one_token": one_token(record, form),
        "kernels.batches": batches(record, form),
        "kernels.decoding": decoding(record, form),
    }


def width_pairs(record: dict[str, Any], form: Form) -> str:
    """Pairs of widths in turns, of `benchmarks.width_pairs`: how many times as long the first takes as the second."""
    headings = ["outputs x inputs", "bits", "µs", "ratio, first made first", "second made first"]
    lines = []
    for first, second in zip(record["rows"][::2], record["rows"][1::2], strict=True):
        bits = [f"{own:g}" for own in first["bits"]]
        times = " and ".join(f"{1e6 * first['seconds'][own]:.0f}" for own in bits)
        ratios = [f"{row['ratio']:.3f}" for row in (first, second)]
        lines.append([f"{first['n']} x {first['k']}", f"{' over '.join(bits)} bits", times, *ratios])
    return lay_out(headings, [False, False, True, True, True], lines, form)


def bandwidth(record: dict[str, Any], threads: int) -> float:
    """Bytes/s of the fastest reading alone on at most so many threads: no limit if a busy moment had a say in it."""
    readings = [r for r in record["products"] if r["engine"] == "reading" and r["threads"] <= threads]
    return max(float(r["bytes"] / r["best"]) for r in readings)


def weights(row: Row) -> str:
    """What a product was with: `2 bits`, `2 bits, 64 a scale`, or a type of another engine."""
    if row["engine"] == "numpy":
        return "float32"
    if "kind" in row:
        return str(row["kind"])
    grouped = f", {row['k'] // row['groups']} a scale" if row["groups"] > 1 else ""
    return f"{row['bits']:g} bits{grouped}"


def machine(record: dict[str, Any], form: Form) -> str:
    """Where the numbers are from."""
    threads = sorted({r["threads"] for r in record["products"] if r["engine"] == "reading"})
    reading = ", ".join(f"{bandwidth(record, count) / 1e9:.1f} on {count}" for count in threads)
    lines = [
        ["processor", f"{record['cpu']}, {record['cores']} cores"],
        ["kernels", record["kernels"]],
        ["reading from memory, GB/s (threads)", reading],
        ["load when it began", f"{record['load']:.1f}"],
        ["commit", (record["git_commit"] or "unknown")[:7]],
        ["date", record["date"][:10]],
    ]
    if record["load"] > BUSY:
        lines.append(["caution", "other programs ran beside it: times on all threads are not those of a free machine"])
    if "peer" in record:
        peer = record["peer"]
        lines.append([peer["name"], f"version {peer['version']}"])
    if "command" in record:
        lines.append(["command", f"`{record['command']}`" if form == "markdown" else record["command"]])
    return lay_out(["", ""], [False, False], lines, form)


def one_token(record: dict[str, Any], form: Form) -> str:
    """Products with one token: time, share of what reading alone reaches, and speed against numpy's float32."""
    headings = ["outputs x inputs", "engine", "weights", "threads", "µs", "best", "MB", "of reading", "to float32"]
    lines = []
    for row in record["products"]:
        if row["batch"] != 1 or row["engine"] == "reading":
            continue
        share = size = "–"
        if "bytes" in row:
            size = f"{row['bytes'] / 1e6:.1f}"
            share = f"{row['bytes'] / row['seconds'] / bandwidth(record, row['threads']):.0%}"
        lines.append(
            [
                *(f"{row['n']} x {row['k']}", row["engine"], weights(row), str(row["threads"])),
                *(f"{1e6 * row['seconds']:,.0f}", f"{1e6 * row['best']:,.0f}", size, share, _ratio(record, row)),
            ]
        )
    return lay_out(headings, [False] * 3 + [True] * 6, lines, form)


def batches(record: dict[str, Any], form: Form) -> str:
    """Microseconds of products with more tokens, on most threads."""
    most = max(record["plan"]["threads"])
    rows = [row for row in record["products"] if row["threads"] == most and row["engine"] != "reading"]
    return by_tokens(rows, weights, ",.0f", form)


def by_tokens(rows: Sequence[Row], words: Callable[[Row], str], number: str, form: Form) -> str:
    """Microseconds of products: a line for each shape, engine and weights (in `words`), a column for each batch.

    `number` is how one is formatted.
    """
    sizes = sorted({row["batch"] for row in rows})
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        key = f"{row['n']} x {row['k']}", row["engine"], words(row)
        found.setdefault(key, {})[row["batch"]] = row["seconds"]
    headings = ["outputs x inputs", "engine", "weights", *(f"{size} tokens" for size in sizes)]
    lines = [
        [*key, *(f"{1e6 * times[size]:{number}}" if size in times else "–" for size in sizes)]
        for key, times in found.items()
    ]
    return lay_out(headings, [False] * 3 + [True] * len(sizes), lines, form)


def decoding(record: dict[str, Any], form: Form) -> str:
    """Whole models: tokens/s of decoding and of a prompt, bytes of the file and of the process at its largest."""
    headings = ["model", "embedding", "engine", "weights", "tokens/s", "best", "prompt tokens/s", "file MB", "peak MB"]
    lines = []
    for row in record["decoding"]:
        kind = f"{row['kind']} bits" if row["engine"] == "lowbit" else row["kind"]
        peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}"
        lines.append(
            [
                *(row["model"], f"{row['embedding_bits']} bits", row["engine"], kind),
                *(f"{1 / row['token'][which]:.1f}" for which in ("seconds", "best")),
                f"{row['prompt'] / row['prompt_seconds']['seconds']:,.0f}",
                *(f"{row['file_bytes'] / 1e6:,.0f}", peak),
            ]
        )
    return lay_out(headings, [False] * 4 + [True] * 5, lines, form)


def _ratio(record: dict[str, Any], row: Row) -> str:
    """How many times faster than numpy's float32, which is measured on most threads only."""
    same = ("k", "n", "batch", "threads")
    for other in record["products"]:
        if other["engine"] == "numpy" and all(other[key] == row[key] for key in same):
            return f"{other['seconds'] / row['seconds']:.1f}x"
    return "–"
