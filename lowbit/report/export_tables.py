"""Tables of what exports cost, what llama.cpp makes of them, and what the readers withstood."""

import json
from pathlib import Path
from typing import Any

from lowbit.report.table import lay_out


def gguf_types_table(path: Path) -> str:
    """Returns which type each width takes at each row length and group, from `scripts/measure_gguf_types.py`."""
    cells = [
        [
            f"{row['bits']:g}",
            row["grid"],
            str(row["row"]),
            "row" if row["group"] is None else str(row["group"]),
            row["type"],
            f"{row['bits_gguf']:.3f}",
            f"{row['bits_packed']:.3f}",
            "equal" if row["exact"] else "scale rounded",
        ]
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    headings = ["bits", "grid", "row", "scale for", "type", "bits/weight", "packed file", "weights"]
    return lay_out(headings, [True, False, True, True, False, True, True, False], cells, "markdown")


def llama_cpp_table(path: Path) -> str:
    """Returns what `scripts/check_llama_cpp.py` found of each file."""
    cells = [_llama_cpp_line(case) for case in json.loads(path.read_text(encoding="utf-8"))["cases"]]
    headings = [
        "file",
        "types",
        "weights equal",
        "scale rounded",
        "wrong",
        "8-bit effect",
        "left over",
        "explained",
        "ok",
    ]
    return lay_out(headings, [False, False, *[True] * 6, False], cells, "markdown")


def _llama_cpp_line(case: dict[str, Any]) -> list[str]:
    quantized = [kind for kind in case["types"] if kind not in ("F16", "F32")]
    return [
        case["case"],
        " ".join(quantized) or "F16",
        f"{case['weights_equal']:,}",
        f"{case['weights_with_rounded_scale']:,}",
        str(len(case["tensors_wrong"])),
        f"{case['logits_rms_of_8_bit_activations']:.1e}",
        f"{case['logits_rms']:.1e}",
        f"{case['logits_rms_bound']:.1e}",
        "yes" if case["ok"] else "NO",
    ]


def fuzz_table(path: Path) -> str:
    """Returns what `scripts/fuzz_reader.py` counted."""
    cells = []
    for target, found in json.loads(path.read_text(encoding="utf-8")).items():
        refused = sum(count for outcome, count in found["outcomes"].items() if outcome != "read")
        cells.append(
            [
                target,
                f"{found['cases']:,}",
                f"{refused:,}",
                f"{found['outcomes'].get('read', 0):,}",
                str(found["kinds_of_errors"]),
                str(found["crashes"]),
                f"{found['slowest_case_ms']:g} ms",
                f"{found['peak_growth_mb']:g} MB",
            ]
        )
    headings = ["target", "cases", "refused", "read", "kinds of errors", "crashes", "slowest", "memory grew"]
    return lay_out(headings, [False, *[True] * 7], cells, "markdown")
