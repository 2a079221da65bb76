"""The benchmark of fine-tuning beside codes that stay: rows of every kind, made once, and their tables."""

import json

import numpy as np
import pytest

from benchmarks import finetuning
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.report.finetuning_tables import tables
from lowbit.tree import unflatten

pytestmark = pytest.mark.usefixtures("one_device")

# Kernels of one shape, so that one program rounds them all.
CFG = LlamaConfig(40, 16, 16, 2, num_heads=2, num_kv_heads=2, head_dim=8, max_positions=32)
ROWS = ("rounding", "QLoRA, from rounding")


def test_rows_are_made_once_and_become_tables(tmp_path):
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(0, 0.3, shape).astype(np.float32) for path, shape in param_shapes(CFG).items()}
    save_hf(tmp_path / "model", CFG, unflatten(flat), {}, dtype="float32")
    np.save(tmp_path / "tokens.npy", rng.integers(0, 40, 2000).astype(np.uint16))
    output = tmp_path / "out.json"
    told = {"--model": tmp_path / "model", "--data": tmp_path / "tokens.npy", "--eval": tmp_path / "tokens.npy"}
    sizes = {"--group": 8, "--rank": 2, "--length": 16, "--train-length": 16, "--tokens": 512, "--windows": 4}
    places = {"--work": tmp_path / "runs", "-o": output}
    arguments = [str(x) for pair in (told | sizes | places).items() for x in pair] + ["--bits", "3", "--rows", *ROWS]
    finetuning.main(arguments)
    record = json.loads(output.read_text())
    by_label = {row["label"]: row for row in record["rows"]}
    assert by_label.keys() == {"float", *ROWS}
    assert by_label["QLoRA, from rounding"]["trained"] == 7 * 2 * 2 * (16 + 16)
    assert by_label["QLoRA, from rounding"]["adapter_bytes"] == 2 * by_label["QLoRA, from rounding"]["trained"]
    assert by_label["rounding"]["adapter_bytes"] == by_label["rounding"]["trained"] == 0
    # 3 bits, a scale and a zero point of 16 bits for 8 weights; and 16 bits for each number of the factors.
    assert by_label["rounding"]["bits_per_weight"] == 3 + 32 / 8
    assert by_label["QLoRA, from rounding"]["bits_per_weight"] == 3 + 32 / 8 + 16 * 2 * 32 / 256
    finetuning.main(arguments)
    assert json.loads(output.read_text())["rows"] == record["rows"]
    made = tables(record, "plain")
    assert len(made["finetuning.rows"].splitlines()) == 2 + 2
    assert "4 windows of 16 tokens" in made["finetuning.machine"]
    with pytest.raises(SystemExit, match="holds rows of other settings"):
        finetuning.main([*arguments, "--windows", "3"])
