"""What a GGUF file costs against the packed file, parameter by parameter."""

import re
from collections.abc import Sequence

from lowbit.cli.tables import fields, table
from lowbit.export.gguf import LOW_BIT_TYPES, GgufModel, GgufRow
from lowbit.report.table import format_bytes

_LAYER = re.compile(r"^layers\.\d+\.")
_HEADINGS = ("parameter", "tensors", "grid", "type", "bits/weight", "packed", "bytes", "bytes packed", "weights")


def summary(model: GgufModel, file_bytes: int) -> str:
    """Returns a table with one line for all layers of a parameter that have one type, and the totals."""
    groups: dict[tuple[str, str | None, str], list[GgufRow]] = {}
    for row in model.rows:
        groups.setdefault((_LAYER.sub("layers.*.", row.name), row.grid, row.kind), []).append(row)
    lines = [_line(name, grid or "", kind, rows) for (name, grid, kind), rows in groups.items()]
    quantized = [row for row in model.rows if row.grid is not None]
    pairs = [("weights", _fidelity(model.rows))]
    if quantized:
        pairs.append(("quantized matrices", _cost(quantized)))
    pairs += [
        ("whole model", _cost(model.rows)),
        ("file", f"{format_bytes(file_bytes)} with tokenizer and metadata"),
    ]
    return f"{table(_HEADINGS, lines, left=1)}\n\n{fields(pairs)}"


def _fidelity(rows: Sequence[GgufRow]) -> str:
    """How far weights are from the packed ones, of those that kept their codes and of those that did not."""
    parts = []
    if rounded := [row for row in rows if row.error and row.kind in LOW_BIT_TYPES]:
        parts.append(
            f"codes equal; in {len(rounded)} of {len(rows)} tensors fp16 rounds the scales, by "
            f"{max(row.error for row in rounded):.1e} of a weight at most"
        )
    if floats := [row for row in rows if row.grid is not None and row.kind not in LOW_BIT_TYPES]:
        error = max(row.error for row in floats)
        parts.append(
            f"{len(floats)} of {len(rows)} tensors became floats, as no low-bit type holds them, "
            + (f"rounded by {error:.1e} of a weight at most" if error else "equal to the packed ones")
        )
    return "; ".join(parts) or "all equal to the packed ones"


def _line(name: str, grid: str, kind: str, rows: Sequence[GgufRow]) -> tuple[str, ...]:
    error = max(row.error for row in rows)
    return (
        name,
        str(len(rows)),
        grid,
        kind,
        f"{_bits(sum(row.nbytes for row in rows), rows):.3f}",
        f"{_bits(sum(row.packed_bytes for row in rows), rows):.3f}",
        f"{sum(row.nbytes for row in rows):,}",
        f"{sum(row.packed_bytes for row in rows):,}",
        "equal" if error == 0 else f"{error:.1e}",
    )


def _cost(rows: Sequence[GgufRow]) -> str:
    nbytes, packed = sum(row.nbytes for row in rows), sum(row.packed_bytes for row in rows)
    return (
        f"{_bits(nbytes, rows):.3f} bits/weight, {format_bytes(nbytes)}; "
        f"packed {_bits(packed, rows):.3f}, {format_bytes(packed)}: {nbytes - packed:+,} bytes"
    )


def _bits(nbytes: int, rows: Sequence[GgufRow]) -> float:
    return 8 * nbytes / sum(row.weights for row in rows)
