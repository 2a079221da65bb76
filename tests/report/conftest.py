"""A run folder as the quickstart leaves it, with invented numbers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

LOSSES = {
    ("float", 16): 3.30,
    ("rtn", 4): 3.52,
    ("rtn", 2): 6.82,
    ("rtn", 1): 9.70,
    ("qat", 4): 3.33,
    ("qat", 2): 3.72,
    ("qat", 1): 4.62,
}


def make_row(method: str, bits: float, nll: float) -> dict[str, Any]:
    return {
        "method": method,
        "bits": bits,
        "nll": nll,
        "perplexity": math.exp(nll),
        "bits_per_byte": nll / math.log(2) / 4,
        "bits_per_weight": bits + (0 if method == "float" else 0.06),
        "bits_per_weight_model": 0.8 * bits + 3.2,
        "bytes": int(500_000 * bits + 1_800_000),
        "seconds": 0.0 if method == "float" else 47.3,
        "verified": None if method == "float" else True,
        "sample": f"the coast of <{method}> & its people",
        "metrics": f"{method}-{bits}/metrics.jsonl" if method == "qat" else None,
    }


@pytest.fixture
def items() -> list[dict[str, Any]]:
    return [make_row(method, bits, nll) for (method, bits), nll in LOSSES.items()]


@pytest.fixture
def run_folder(tmp_path: Path, items: list[dict[str, Any]]) -> Path:
    (tmp_path / "results.json").write_text(json.dumps(items))
    facts = {
        "command": "python -m experiments.quickstart --seed=0 > log",
        "commit": "0123456789abcdef",
        "date": "2026-11-22T10:00:00+00:00",
        "seed": 0,
        "machine": {"cpu": "two cores", "jax": "0.10"},
    }
    (tmp_path / "run.json").write_text(json.dumps(facts))
    for item in items:
        if item["metrics"]:
            path = tmp_path / item["metrics"]
            path.parent.mkdir()
            lines = [{"step": s, "loss": item["nll"] + 1 / s, "lr": 1e-3} for s in range(1, 41)]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path
