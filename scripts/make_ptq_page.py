"""Writes the tables and the pictures of docs/ptq.md from what benchmarks.ptq_smollm2 measured.

`<!-- table:ptq_NAME -->` holds the table of docs/results/ptq_NAME.json, docs/images/ptq_NAME.png its picture, and
`<!-- table:guide_NAME -->` what to take for what, by the figures of that file; `<!-- table:memory -->` is made of what
benchmarks.ptq_memory measured, `<!-- table:gptq_sink -->` of what benchmarks.gptq_sink did, and
`<!-- table:w8a8_smollm2 -->` of the records of `quantize`, docs/results/w8a8_smollm2_*.json. `make docs` calls this; a
test compares the page with the files.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lowbit.ptq import Options
from lowbit.report import theme
from lowbit.report.table import fill_tables, format_seconds, lay_out

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ptq.md"
RESULTS = ROOT / "docs" / "results"
INPUTS = "w8a8_smollm2_*.json"
TIMES = "gptq_time_smollm2_*.json"
MEMORY = RESULTS / "quantize_memory_cpu.json"
SINK = RESULTS / "gptq_sink_cpu.json"
IMAGES = ROOT / "docs" / "images"

DRAWN = (
    "rounding, min-max",
    "rounding, zero point",
    "GPTQ",
    "GPTQ, act order, attended tokens",
    "AWQ",
    "HQQ",
    "GPFQ",
    "residual vectors",
)
IN_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def records() -> dict[str, dict[str, Any]]:
    """Returns what was measured, by file name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("ptq_*.json"))}


def table(record: dict[str, Any]) -> str:
    """Returns a line a method and width: nats a text, what they are above float, accuracies, bits and seconds."""
    base, tasks = record["float"]["evaluations"], record["float"]["tasks"]
    first = next(iter(base))
    nats = [f"{found['nll']:.3f}" for found in base.values()]
    lines = [["float", "32", *nats, "", *(_percent(found) for found in tasks.values()), "", "–"]]
    for row in sorted(record["rows"], key=lambda row: (-row["bits"], row["evaluations"][first]["nll"])):
        found = row["evaluations"]
        lines.append(
            [
                row["label"],
                f"{row['bits']:g}",
                *(f"{found[text]['nll']:.3f}" for text in base),
                f"{_lost(record, row):+.3f}",
                *(_percent(row["tasks"][name]) for name in tasks),
                f"{row['bits_per_weight']:.2f}",
                format_seconds(row["seconds"]),
            ]
        )
    heads = ["method", "bits", *base, f"over float, {first}", *(f"{name}, %" for name in tasks), "bits/weight", "time"]
    return lay_out(heads, [False, *[True] * (len(heads) - 1)], lines, "markdown")


def memory_table(record: dict[str, Any]) -> str:
    """Returns a line a method: the highest resident memory beside its estimate and the size of the float32 model."""
    lines = [
        [
            row["method"],
            f"{row['bits']}",
            f"{record['weights'] / 1e9:.2f}",
            *(
                f"{size / 1e9:.2f}"
                for size in (row["peak_host_bytes"], row["estimated_bytes"], record["float32_bytes"])
            ),
        ]
        for row in record["rows"]
    ]
    heads = ["method", "bits", "weights, G", "peak, GB", "estimated, GB", "float32 model, GB"]
    return lay_out(heads, [False, *[True] * (len(heads) - 1)], lines, "markdown")


def sink_table(record: dict[str, Any]) -> str:
    """Returns a line a layer and kernel of attention: the relative errors over all tokens, and at the first ones."""
    lines = []
    for row in record["rows"]:
        kernel = row["kernel"].split("/")[1]
        if kernel in IN_ATTENTION:
            errors = [f"{100 * row[tokens][way]:.2f}" for tokens in ("all", "first") for way in row["all"]]
            lines.append([str(row["layer"] + 1), kernel, *errors])
    ways = ("rounding", "GPTQ", "attended")
    heads = ["layer", "kernel", *(f"{way}, {which} %" for which in ("all,", "first,") for way in ways)]
    return lay_out(heads, [True, False, *[True] * (len(heads) - 2)], lines, "markdown")


def inputs_table(found: list[dict[str, Any]]) -> str:
    """Returns a line a record of `quantize --activations`: nats on each text, what they are above float, seconds."""
    texts = [Path(name).stem for name in found[0]["before"]]
    lines = []
    for record in found:
        chosen = record["activations"]
        static = f", range {chosen['range']}" if chosen["name"] == "int8-static" else ""
        nats = []
        for before, after in zip(record["before"].values(), record["after"].values(), strict=True):
            nats += [f"{after['nll']:.3f}", f"{after['nll'] - before['nll']:+.4f}"]
        settings = f"{chosen['name']}{static}", f"{record['options']['alpha']:g}"
        origin = record["git_commit"][:7], record["device"]
        lines.append([*settings, *nats, format_seconds(record["seconds"]), *origin])
    heads = ["inputs", "alpha", *(head for text in texts for head in (text, "over float")), "time", "commit", "device"]
    return lay_out(heads, [False, *[True] * (len(heads) - 3), False, False], lines, "markdown")


def times_table(found: list[dict[str, Any]]) -> str:
    """Returns a line a record of `quantize`: where it ran, on how much calibration, how long from start to end."""
    lines = [
        [
            record["device"],
            f"{record['calibration']['sequences']} x {record['calibration']['length']}",
            f"{record['bits_per_weight']:.2f}",
            format_seconds(record["seconds"]),
            f"{record['peak_host_bytes'] / 1e9:.1f}",
            record["git_commit"][:7],
        ]
        for record in found
    ]
    heads = ["device", "calibration", "bits/weight", "from start to end", "peak host memory, GB", "commit"]
    return lay_out(heads, [False, *[True] * 4, False], lines, "markdown")


def guide(record: dict[str, Any]) -> str:
    """Returns what to take for what: the best row of each kind, as measured."""
    rows = [row for row in record["rows"] if row["activations"] is None]
    kinds = {
        "quick: seconds, no data, 4 bits": [row for row in rows if row["bits"] == 4 and not row["needs_data"]],
        "exact: the least lost at 4 bits": [row for row in rows if row["bits"] == 4],
        "exact: the least lost at 3 bits": [row for row in rows if row["bits"] == 3],
        "tiny: the least lost at 2 bits": [row for row in rows if row["bits"] == 2],
        "mixed: 16-bit weights for outlying inputs": [row for row in rows if row["method"] == "int8_outliers"],
        "mixed: 8-bit inputs and weights": [row for row in record["rows"] if row["activations"] is not None],
    }
    lines = []
    for kind, those in kinds.items():
        if not those:
            continue
        best = min(those, key=lambda row: _lost(record, row))
        lost, bits = f"{_lost(record, best):+.3f}", f"{best['bits_per_weight']:.2f}"
        lines.append([kind, _flags(best), lost, bits, format_seconds(best["seconds"])])
    heads = ["you want", "take", "nats over float", "bits/weight", "time"]
    return lay_out(heads, [False, False, True, True, True], lines, "markdown")


def _flags(row: dict[str, Any]) -> str:
    """What `quantize` is told to do as a row did."""
    flags = f"--method {row['method']} --grid {row['grid']} --granularity {row['granularity']} --range {row['range']}"
    if row["grid"] in ("free", "vectors"):  # no choice
        flags = f"--method {row['method']} --granularity {row['granularity']}"
    usual = dataclasses.asdict(Options())
    changed = {name.replace("_", "-"): value for name, value in row["options"].items() if value != usual[name]}
    own = "".join(f" --{name}{_value(value)}" for name, value in changed.items())
    inputs = "" if row["activations"] is None else f" --activations {row['activations']['name']}"
    return f"`{flags}{own}{inputs} --bits {row['bits']:g}`"


def _value(value: Any) -> str:
    """What follows the name of a flag."""
    if value is True:
        return ""
    return f" {value}" if isinstance(value, str) else f" {value:g}"


def _lost(record: dict[str, Any], row: dict[str, Any]) -> float:
    """Nats per token above the float model, on the first text."""
    base = record["float"]["evaluations"]
    text = next(iter(base))
    return float(row["evaluations"][text]["nll"] - base[text]["nll"])


def _percent(metrics: dict[str, Any]) -> str:
    return f"{100 * metrics['acc']['value']:.1f}"


def draw(record: dict[str, Any]) -> Figure:
    """Draws what each method loses against what it stores."""
    text = next(iter(record["float"]["evaluations"]))
    with theme.style():
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        panel = figure.subplots()
        for colour, label in zip(theme.SERIES, DRAWN, strict=False):
            rows = [(row["bits_per_weight"], row) for row in record["rows"] if row["label"] == label]
            rows.sort(key=lambda pair: pair[0])
            if not rows:
                continue
            lost = [_lost(record, row) for _, row in rows]
            panel.plot([bits for bits, _ in rows], lost, color=colour.light, marker="o", label=label)
        panel.set_yscale("log")
        panel.set_xlabel("bits per weight of the layers' matrices, scales included")
        panel.set_ylabel(f"nats per token above float ({text})")
        panel.legend(frameon=False, loc="lower left")  # where no line can come: few bits lose much
    return figure


def filled_page() -> str:
    """Returns docs/ptq.md with its tables brought up to date."""
    tables = {name: table(record) for name, record in records().items()}
    tables["memory"] = memory_table(json.loads(MEMORY.read_text(encoding="utf-8")))
    tables["gptq_sink"] = sink_table(json.loads(SINK.read_text(encoding="utf-8")))
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(INPUTS))]
    tables["w8a8_smollm2"] = inputs_table(measured)
    tables["gptq_times"] = times_table(
        [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(TIMES))]
    )
    tables |= {f"guide_{name.removeprefix('ptq_')}": guide(record) for name, record in records().items()}
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables)


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
