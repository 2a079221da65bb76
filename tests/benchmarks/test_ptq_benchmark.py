"""The benchmark of methods without training: its rows, its shares, its going on, and the page that is made of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gptq_sink, ptq_memory
from benchmarks.ptq_smollm2 import ROWS, jobs, main, make_plan, merged, parse_arguments
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.models import save_hf
from lowbit.tree import unflatten

TOKENIZER = Path(__file__).resolve().parents[2] / "assets" / "quickstart" / "model"
NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Arguments that name a tiny model, tokens and a task."""
    folder = tmp_path_factory.mktemp("ptq")
    cfg = LlamaConfig(4096, 64, 64, 2, num_heads=4, num_kv_heads=2, head_dim=16, max_positions=64)
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(len(s) == 1, 0.2, s).astype(np.float32) for path, s in param_shapes(cfg).items()}
    files = {name: (TOKENIZER / name).read_bytes() for name in NAMES}
    save_hf(folder / "model", cfg, unflatten(flat), files, "float32")
    np.save(folder / "tokens.npy", rng.integers(3, 4096, 1200).astype(np.uint16))
    rows = [{"goal": f"Say {word}.", "choices": [word, "sea"], "label": 0} for word in ("land", "ship")]
    (folder / "piqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = ["--sequences", "4", "--length", "32", "--eval-length", "24", "--windows", "2", "--batch", "2"]
    tokens = str(folder / "tokens.npy")
    task = ["--tasks", f"piqa={folder / 'piqa.jsonl'}", "--task-batch", "4"]
    return ["--model", str(folder / "model"), "--data", tokens, "--eval", tokens, *sizes, *task]


def test_rows_in_shares_that_go_on_and_are_merged(inputs, tmp_path, capsys):
    labels = ["rounding, min-max", "SmoothQuant, inputs static"]
    chosen = ["--bits", "8", "--methods", *labels]
    parts = [tmp_path / f"part{i}.json" for i in range(2)]
    assert main([*inputs, *chosen, "--share", "0/2", "-o", str(parts[0])]) == 0
    stopped = [*inputs, *chosen, "--share", "1/2", "-o", str(parts[1])]
    assert main([*stopped, "--seconds", "0"]) == 1
    assert "out of time: the same command goes on" in capsys.readouterr().err
    assert json.loads(parts[1].read_text())["rows"] == []
    assert main(stopped) == 0
    whole = tmp_path / "whole.json"
    assert main(["--merge", *map(str, reversed(parts)), "-o", str(whole)]) == 0
    record = json.loads(whole.read_text())
    assert [row["label"] for row in record["rows"]] == labels
    for found in (record["float"], *record["rows"]):
        assert found["evaluations"]["tokens"]["nll"] > 0
        assert 0 <= found["tasks"]["piqa"]["acc"]["value"] <= 1
    assert merged([record, record])["command"] == record["command"]
    assert [command.partition(" --share ")[2][:3] for command in record["command"]] == ["1/2", "1/2", "0/2"]
    rounded, smoothed = record["rows"]
    assert rounded["git_commit"] == record["machine"]["git_commit"]
    assert rounded["activations"] is None
    assert smoothed["activations"] == {"name": "int8-static", "range": "max", "cache": None}
    assert rounded["seconds"] > 0
    assert smoothed["evaluations"]["tokens"]["nll"] != rounded["evaluations"]["tokens"]["nll"]
    before = whole.read_text()
    assert main([*inputs, *chosen, "-o", str(whole)]) == 0  # nothing is left to do
    assert whole.read_text() == before
    with pytest.raises(ValueError, match="records of different windows make no table"):
        merged([record, {**record, "windows": 3}])


def test_shares_are_all_rows_once():
    every = ["--model", "m", "--data", "d", "--eval", "e", "-o", "o"]
    whole = jobs(parse_arguments(every))
    parts = [job for i in range(3) for job in jobs(parse_arguments([*every, "--share", f"{i}/3"]))]
    assert sorted(whole, key=str) == sorted(parts, key=str)
    assert {row.label for row, _ in whole} == {row.label for row in ROWS}
    gptq = jobs(parse_arguments([*every, "--methods", "gptq", "NF4", "--bits", "4"]))
    assert {row.method for row, _ in gptq} == {"gptq", "rtn"}
    assert make_plan(next(row for row in ROWS if row.activations), 4.0, None) is None


def test_peak_memory_is_that_of_a_process_of_its_own(tmp_path):
    sizes = ["--layers", "2", "--hidden", "64", "--intermediate", "64", "--vocabulary", "100"]
    output = tmp_path / "memory.json"
    ptq_memory.main(["--methods", "rtn", *sizes, "-o", str(output)])
    record = json.loads(output.read_text())
    (row,) = record["rows"]
    # Embedding and head, a norm, and two layers: q and o of 64 x 64, k and v of one head, the MLP, two norms.
    assert record["weights"] == 2 * 100 * 64 + 64 + 2 * (4 * 64 * 64 + 3 * 64 * 64 + 2 * 64)
    assert row["peak_host_bytes"] > 1e8
    assert 5e8 < row["estimated_bytes"] < 1e9


@pytest.mark.slow
def test_errors_at_the_sink_are_those_of_all_kernels(inputs, tmp_path):
    _, model, _, tokens, *_ = inputs
    output = tmp_path / "sink.json"
    sizes = ["--layers", "1", "--granularity", "16", "--sequences", "4", "--length", "32"]
    gptq_sink.main(["--model", model, "--data", tokens, *sizes, "-o", str(output)])
    record = json.loads(output.read_text())
    assert [row["kernel"].split("/")[1][0] for row in record["rows"]] == list("qkvogud")
    for row in record["rows"]:
        assert row["layer"] == 1
        # An even share is 1/32; every query sees the first token, so that it gets more.
        assert 1 / 32 < row["weight_of_first"] < 1
        assert 0 < row["all"]["gptq"] < row["all"]["rounding"] < 0.1
        assert row["all"]["gptq"] < row["all"]["gptq_attention"] < row["all"]["rounding"]
        assert row["first"]["gptq_attention"] < row["first"]["gptq"]
