"""The record of `bench gpu` as tables."""

from typing import Any

from lowbit.report.kernel_tables import Form, Row, by_tokens
from lowbit.report.table import lay_out


def tables(record: dict[str, Any], form: Form) -> dict[str, str]:
    """Returns the tables of a record of `lowbit.bench.gpu.measure_gpu`, by name."""
    return {
        "gpu.machine": machine(record, form),
        "gpu.one_token": one_token(record, form),
        "gpu.batches": batches(record, form),
        "gpu.decoding": decoding(record, form),
    }


def weights(row: Row) -> str:
    """What a product was with: `2 bits`, `2 bits, 128 a scale`, `bfloat16`, or a type of another engine."""
    if "kind" in row:
        return str(row["kind"])
    if row["engine"] == "xla":
        return "bfloat16"
    grouped = f", {row['group']} a scale" if row["group"] else ""
    rounded = ", 8-bit activations" if row["activations"] == "int8" else ""
    return f"{row['bits']:g} bits{grouped}{rounded}"


def copy_rate(record: dict[str, Any]) -> float:
    """Bytes/s of a copy, read and written."""
    return float(record["copy"]["bytes"] / record["copy"]["seconds"])


def against_bfloat16(record: dict[str, Any], row: Row) -> float:
    """How many times faster than XLA's bfloat16 product of the same sizes, in the same turns."""
    same = ("k", "n", "batch")
    found = (r for r in record["products"] if r["engine"] == "xla" and all(r[key] == row[key] for key in same))
    return float(next(found)["seconds"] / row["seconds"])


def reading(record: dict[str, Any], row: Row) -> float | None:
    """Seconds that a kernel took to read as many bytes and do no more, None for a row of another engine."""
    if "bytes" not in row:
        return None
    same = ("k", "n", "bytes")
    found = (r for r in record["products"] if r["engine"] == "reading" and all(r[key] == row[key] for key in same))
    return float(next(found)["seconds"])


def products(record: dict[str, Any]) -> list[Row]:
    """The rows of a record that are products."""
    return [row for row in record["products"] if row["engine"] != "reading"]


def machine(record: dict[str, Any], form: Form) -> str:
    """Where the numbers are from."""
    lines = [
        ["device", record["device"]],
        ["copying, TB/s", f"{copy_rate(record) / 1e12:.2f}"],
        ["a kernel that does next to nothing, µs", f"{1e6 * record['launch']['seconds']:.1f}"],
        ["jax", record["jax_version"]],
        ["commit", (record["git_commit"] or "unknown")[:7]],
        ["date", record["date"][:10]],
    ]
    if "cuda" in record:
        lines.append(["kernel in CUDA C++", "for few tokens" if record["cuda"] else "not there"])
    if "peer" in record:
        lines.append([record["peer"]["name"], f"version {record['peer']['version']}"])
    if "command" in record:
        lines.append(["command", f"`{record['command']}`" if form == "markdown" else record["command"]])
    return lay_out(["", ""], [False, False], lines, form)


def one_token(record: dict[str, Any], form: Form) -> str:
    """Products with one token: time, shares of copying and of a kernel that only reads, speed against bfloat16."""
    headings = ["outputs x inputs", "engine", "weights", "µs", "best", "MB", "of copying", "of reading", "to bfloat16"]
    lines = []
    for row in products(record):
        if row["batch"] != 1:
            continue
        of_copying = of_reading = size = "–"
        alone = reading(record, row)
        if alone is not None:
            size = f"{row['bytes'] / 1e6:.1f}"
            of_copying = f"{row['bytes'] / copy_rate(record) / row['seconds']:.0%}"
            of_reading = f"{alone / row['seconds']:.0%}"
        lines.append(
            [
                *(f"{row['n']} x {row['k']}", row["engine"], weights(row)),
                *(f"{1e6 * row['seconds']:.1f}", f"{1e6 * row['best']:.1f}", size, of_copying, of_reading),
                f"{against_bfloat16(record, row):.1f}x",
            ]
        )
    return lay_out(headings, [False] * 3 + [True] * 6, lines, form)


def batches(record: dict[str, Any], form: Form) -> str:
    """Microseconds of products with more tokens."""
    return by_tokens(products(record), weights, ".1f", form)


def decoding(record: dict[str, Any], form: Form) -> str:
    """Whole models: steps and tokens/s of decoding, and bytes of the weights."""
    if not record["decoding"]:
        return "No whole model was timed in this run."
    headings = ["model", "weights", "sequences", "ms/step", "tokens/s", "to bfloat16", "weights, MB"]
    floats = {(row["model"], row["batch"]): row["seconds"] for row in record["decoding"] if row["kind"] == "bfloat16"}
    lines = [
        [
            *(row["model"], row["kind"], str(row["batch"]), f"{1e3 * row['seconds']:.2f}"),
            f"{row['batch'] / row['seconds']:,.0f}",
            f"{floats[row['model'], row['batch']] / row['seconds']:.1f}x",
            f"{row['weight_bytes'] / 1e6:,.0f}",
        ]
        for row in record["decoding"]
    ]
    return lay_out(headings, [False, False] + [True] * 5, lines, form)


WAYS = {"whole": "all in one kernel", "apart": "a kernel for each product", "xla": "XLA"}
"""What computes a step, as `benchmarks.step_layers` calls it."""


def step_layers(record: dict[str, Any], form: Form) -> str:
    """A layer of a step of one sequence, and the step: time, share of copying, speed against bfloat16."""
    headings = ["model", "weights", "step", "µs a layer", "MB a layer", "of copying", "to bfloat16"]
    headings += ["layers", "µs a step", "to bfloat16"]
    rows = record["layers"]
    floats = {(row["shape"], row["context"]): row for row in rows if row["way"] == "xla"}
    lines = []
    for row in rows:
        plain = floats[row["shape"], row["context"]]
        copying = 1e6 * row["layer_bytes"] / record["copy_bytes_per_s"]
        lines.append(
            [
                *(row["shape"], "bfloat16" if row["way"] == "xla" else f"{row['bits']:g} bits", WAYS[row["way"]]),
                *(f"{row['layer_us']:.1f}", f"{row['layer_bytes'] / 1e6:.1f}", f"{copying / row['layer_us']:.0%}"),
                *(f"{plain['layer_us'] / row['layer_us']:.1f}x", str(row["layers"][1]), f"{row['step_us']:,.0f}"),
                f"{plain['step_us'] / row['step_us']:.1f}x",
            ]
        )
    return lay_out(headings, [False] * 3 + [True] * 7, lines, form)
