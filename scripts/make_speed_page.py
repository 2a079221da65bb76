"""Fills the tables of docs/speed.md from what `benchmarks.train_throughput` measured.

Results are docs/results/train_throughput_*.json, and profiles (taken apart, as they slow a GPU down)
docs/results/train_profile_*.json; a page without any says so, and with which command to measure.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from lowbit.report.table import fill_tables, lay_out

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "speed.md"
RESULTS = ROOT / "docs" / "results"
PATTERN, PROFILES = "train_throughput*.json", "train_profile*.json"
NOTHING = "Nothing has been measured yet."
MESH_AXES = ("data", "fsdp", "tensor")


def records(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Returns the results in a folder, by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]


def tables(folder: Path) -> dict[str, str]:
    """Returns every table that the page may ask for, by name."""
    found, profiles = records(folder, PATTERN), records(folder, PROFILES)
    return {
        "speed.one_device": one_device(found),
        "speed.meshes": meshes(found),
        "speed.memory": memory(found),
        "speed.profile": profile(profiles),
        "speed.origin": origin([*found, *profiles]),
    }


def one_device(found: list[dict[str, Any]]) -> str:
    """Speed of each variant on one device, in the order of the run."""
    headings = ["device", "shape", "variant", "batch", "tokens/s", "of float", "TFLOP/s", "of peak", "spread"]
    lines = []
    for record, case in measured(found, devices=1):
        step = case["step_seconds"]
        relative = case["speed_over_float"]
        spread = (max(step) - min(step)) / statistics.median(step)
        lines.append(
            [
                *(record["device"], record["shape"], case["variant"]),
                f"{case['batch_size']} x {case['sequence_length']:,}",
                f"{case['tokens_per_s']:,.0f}",
                "–" if relative is None else f"{relative:.3f}",
                f"{case['model_tflops_per_device']:.1f}",
                f"{case['share_of_peak']:.1%}",
                f"{spread:.1%}",
            ]
        )
    for record in found:
        for case in record["cases"]:
            if "error" in case:
                lines.append([record["device"], record["shape"], case["variant"], "", "out of memory", *[""] * 4])
    return laid_out(headings, lines, words=4)


def meshes(found: list[dict[str, Any]]) -> str:
    """Speed on several devices against one."""
    headings = ["device", "shape", "variant", "mesh", "batch", "tokens/s", "of one device", "of peak"]
    lines = []
    for record, case in measured(found):
        if mesh_size(case) == 1:
            continue
        relative = case["speed_over_one_device"]
        lines.append(
            [
                *(record["device"], record["shape"], case["variant"]),
                ", ".join(f"{axis} {case['mesh'][axis]}" for axis in MESH_AXES if case["mesh"][axis] > 1),
                f"{case['batch_size']} x {case['sequence_length']:,}",
                f"{case['tokens_per_s']:,.0f}",
                "–" if relative is None else f"{relative:.2f}",
                f"{case['share_of_peak']:.1%}",
            ]
        )
    return laid_out(headings, lines, words=5)


def memory(found: list[dict[str, Any]]) -> str:
    """Memory as counted by `estimate`, as compiled, and as the device saw it."""
    headings = [
        "device",
        "shape",
        "variant",
        "mesh",
        "batch",
        "counted",
        "compiled",
        "peak of device",
        "counted / peak",
    ]
    lines = []
    for record, case in measured(found):
        sizes = case["memory"]
        peak = sizes["peak"] if sizes["peak_is_own"] else None
        if "counted" not in sizes:  # measured before memory was counted
            continue
        counted, compiled = sizes["counted"]["peak"], sizes["compiled"]["total"]
        lines.append(
            [
                *(record["device"], record["shape"], case["variant"]),
                "x".join(str(case["mesh"][axis]) for axis in MESH_AXES),
                f"{case['batch_size']} x {case['sequence_length']:,}",
                gigabytes(counted),
                gigabytes(compiled),
                "–" if peak is None else gigabytes(peak),
                f"{counted / (compiled if peak is None else peak):.2f}",
            ]
        )
    return laid_out(headings, lines, words=5)


def profile(found: list[dict[str, Any]]) -> str:
    """Share of the device's busy time by kind of operation."""
    profiled = [(record, case) for record, case in measured(found) if "profile" in case]
    if not profiled:
        return "No profile has been taken yet."
    kinds = list(profiled[0][1]["profile"])
    lines = []
    for record, case in profiled:
        seconds = case["profile"]
        busy = sum(seconds.values())
        step = statistics.median(case["step_seconds"])
        shares = [f"{seconds[kind] / busy:.1%}" for kind in kinds]
        per_device = busy / mesh_size(case)
        names = [record["shape"], case["variant"], "x".join(str(case["mesh"][axis]) for axis in MESH_AXES)]
        lines.append([*names, f"{1e3 * step:.1f} ms", f"{per_device / step:.0%}", *shares])
    return laid_out(["shape", "variant", "mesh", "step", "busy", *kinds], lines, words=3)


def origin(found: list[dict[str, Any]]) -> str:
    """Where each file of results is from."""
    headings = ["shape", "device", "matmul peak", "commit", "jax", "seed", "date", "command"]
    lines = [
        [
            *(record["shape"], f"{record['device_count']} x {record['device']}"),
            f"{record['matmul_peak_flops'] / 1e12:.0f} TFLOP/s",
            (record["git_commit"] or "unknown")[:7],
            *(record["jax_version"], str(record["seed"]), record["date"][:10]),
            f"`{record['command']}`",
        ]
        for record in found
    ]
    return laid_out(headings, lines, words=len(headings))


def measured(found: list[dict[str, Any]], devices: int | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns (record, case) of each case that did not fail, of all or of those on so many devices."""
    pairs = [(record, case) for record in found for case in record["cases"] if "error" not in case]
    return [(record, case) for record, case in pairs if devices is None or mesh_size(case) == devices]


def mesh_size(case: dict[str, Any]) -> int:
    """Returns how many devices a case had."""
    data, fsdp, tensor = (case["mesh"][axis] for axis in MESH_AXES)
    return data * fsdp * tensor


def gigabytes(count: int) -> str:
    """Writes bytes as decimal gigabytes."""
    return f"{count / 1e9:,.2f} GB"


def laid_out(headings: list[str], lines: list[list[str]], words: int) -> str:
    """Returns a markdown table whose first `words` columns are words, or a line that there is nothing."""
    if not lines:
        return NOTHING
    return lay_out(headings, [index >= words for index in range(len(headings))], lines, "markdown")


def filled_page(folder: Path = RESULTS) -> str:
    """Returns docs/speed.md with its tables as the results have them now."""
    return fill_tables(PAGE.read_text(encoding="utf-8"), tables(folder))


def main() -> None:
    """Rewrites the page where it is out of date."""
    text = filled_page()
    if PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print("wrote docs/speed.md", file=sys.stderr)


if __name__ == "__main__":
    main()
