"""`inspect`: what a packed file holds, or a folder of tokens."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from lowbit import formats
from lowbit.cli.packed_file import bits_fields
from lowbit.cli.tables import fields, table
from lowbit.formats import PackedModel, Summary
from lowbit.report.table import format_bytes

LONGEST_VALUE = 400
"""Characters of a value of the metadata; ranges of activations are long lists."""

LEVELS_SHOWN = 16


def run(arguments: argparse.Namespace) -> int:
    """Prints tensors, grids, config, origin and bits per weight."""
    path = Path(arguments.packed).expanduser()
    if (path / "manifest.json").is_file():
        from lowbit.cli import token_folder  # which reads more than numpy can

        token_folder.show(path, checksums=arguments.checksums, as_json=arguments.json)
        return 0
    packed = formats.read(path, verify=arguments.checksums)
    summary = formats.summarize(packed, path.stat().st_size)
    if arguments.json:
        print(json.dumps(_record(path, packed, summary, arguments.checksums), indent=2, allow_nan=False))
        return 0
    rows = [
        [row.name, row.grid, "x".join(map(str, row.shape)), f"{row.bits:.3f}", f"{row.nbytes:,}"]
        for row in summary.rows
    ]
    print(table(["tensor", "grid", "shape", "bits/weight", "bytes"], rows, left=2))
    grids = [(name, _levels(levels)) for name, levels in _grids(packed).items()]
    _section("grids", grids)
    _section("config", [(key, json.dumps(value)) for key, value in packed.config.items()])
    _section("meta", _flat(packed.meta))
    _section("tokenizer", [(name, format_bytes(len(content))) for name, content in packed.tokenizer.items()])
    totals = bits_fields(summary)
    if arguments.checksums:
        totals.append(("checksums", "every tensor has the bytes that were written"))
    _section("bits", totals)
    return 0


def _section(name: str, pairs: list[tuple[str, str]]) -> None:
    print(f"\n{name}")
    print(fields([(f"  {key}", value) for key, value in pairs] or [("  none", "")]).rstrip())


def _grids(packed: PackedModel) -> dict[str, list[float]]:
    return {name: [float(level) for level in levels] for name, levels in packed.grids().items()}


def _levels(levels: list[float]) -> str:
    if len(levels) > LEVELS_SHOWN:
        return f"{len(levels)} levels from {levels[0]:g} to {levels[-1]:g}"
    return " ".join(f"{level:g}" for level in levels)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            text = json.dumps(value)
            shown = text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text):,} characters)"
            pairs.append((f"{prefix}{key}", shown))
    return pairs


def _record(path: Path, packed: PackedModel, summary: Summary, checked: bool) -> dict[str, Any]:
    assert summary.file_bytes is not None
    return {
        "path": str(path),
        "checksums_compared": checked,
        "file_bytes": summary.file_bytes,
        "weights": summary.weights,
        "bits_per_weight": {
            "quantized": summary.quantized_bits,
            "model": summary.model_bits,
            "file": 8 * summary.file_bytes / summary.weights,
        },
        "tensors": [dataclasses.asdict(row) for row in summary.rows],
        "grids": _grids(packed),
        "config": packed.config,
        "meta": packed.meta,
        "tokenizer": {name: len(content) for name, content in packed.tokenizer.items()},
    }
