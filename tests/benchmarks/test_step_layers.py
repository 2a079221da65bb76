"""The benchmark of layers of a step, in a small form, and its table."""

import json
from pathlib import Path

import pytest

from benchmarks.step_layers import main
from lowbit.bench import gpu_products
from lowbit.report.gpu_tables import step_layers


def test_a_layer_is_what_more_layers_take_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_products, "TOTAL_BYTES", 1 << 20)
    output = tmp_path / "record.json"
    main(
        [
            "--shapes",
            "tiny",
            "--bits",
            "2",
            "16",
            "--kernels",
            "xla",
            "--repeats",
            "1",
            "--tokens",
            "2",
            "-o",
            str(output),
        ]
    )
    record = json.loads(output.read_text())
    assert record["copy_bytes_per_s"] > 0
    assert [(row["bits"], row["way"]) for row in record["layers"]] == [(2, "whole"), (2, "apart"), (16, "xla")]
    packed, _, floats = record["layers"]
    # A layer of the tiny model: norms, and 64 x (64 + 2 x 32 + 64 + 3 x 96) weights in 2 bits with scales, or 16.
    weights = 64 * (64 + 2 * 32 + 64 + 3 * 96)
    assert floats["layer_bytes"] == 2 * weights + 2 * 4 * 64
    assert weights / 4 < packed["layer_bytes"] < weights / 2
    assert packed["step_us"] > 0
    assert "tiny 2 bits apart, context 64:" in capsys.readouterr().err


def test_the_table_has_shares_and_ratios() -> None:
    row = {"shape": "s", "context": 64, "layers": [1, 3], "layer_bytes": 4e6}
    record = {
        "copy_bytes_per_s": 2e12,
        "layers": [
            row | {"bits": 2.0, "way": "whole", "layer_us": 4.0, "step_us": 30.0},
            row | {"bits": 16.0, "way": "xla", "layer_us": 10.0, "step_us": 60.0},
        ],
    }
    lines = step_layers(record, "markdown").splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("s", "2 bits", "all in one kernel", "4.0", "4.0", "50%", "2.5x", "3", "30", "2.0x")
    ]
    assert "XLA" in lines[3]
