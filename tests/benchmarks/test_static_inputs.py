"""The benchmark of static ranges: which inputs each row rounds how, and that its rows are those of `eval`."""

import json

import jax
import numpy as np
import pytest

from benchmarks import static_inputs
from lowbit import formats
from lowbit.data import open_windows
from lowbit.evals import evaluate, jax_predictor
from lowbit.llama import LINEARS, LlamaConfig, param_shapes
from lowbit.models.layerwise import ModelInMemory
from lowbit.models.pretrained import Pretrained
from lowbit.ptq import METHODS, Activations, Calibration, Options, Plan, make_target, pack_layers, quantize_layers
from lowbit.tree import unflatten

CFG = LlamaConfig(40, 32, 48, 2, num_heads=4, num_kv_heads=2, head_dim=8, max_positions=32)


def test_each_way_rounds_one_kind_of_input_by_a_static_range():
    static = dict(Activations("int8-static").rounding().inputs)
    kinds = {
        name: {path: one.range for path, one in inputs.items()} for name, inputs in static_inputs.ways(static).items()
    }
    assert kinds["float"] == {}
    assert set(kinds["by token"].values()) == {"dynamic"}
    assert set(kinds["static"].values()) == {"static"}
    alone = [[path for path in LINEARS if kinds[f"{name} static"][path] == "static"] for name in static_inputs.STAGES]
    assert [path for paths in alone for path in paths] == list(LINEARS)


def test_rows_are_what_eval_would_say(tmp_path):
    rng = np.random.default_rng(0)
    flat = {path: rng.standard_normal(shape).astype(np.float32) * 0.3 for path, shape in param_shapes(CFG).items()}
    source, target = ModelInMemory(Pretrained(CFG, unflatten(flat), {})), make_target("integer", 8, "channel", "max")
    calibration = Calibration(rng.integers(0, 40, (8, 24)).astype(np.int32), 0, "noise")
    plan = Plan(METHODS["rtn"], target, Options(), calibration, Activations("int8-static"))
    layers = quantize_layers(source, plan, devices=jax.devices()[:1])
    packed, _ = pack_layers(source, layers, target, {"quantization": plan.record()}, plan.activations)
    formats.write(tmp_path / "m.lowbit", packed)
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, rng.integers(0, 40, 200).astype(np.uint16))
    sizes = ["--windows", "4", "--length", "16", "--batch", "2", "--rows", "float", "static"]
    output = tmp_path / "found.json"
    static_inputs.main(["--models", str(tmp_path / "m.lowbit"), "--data", str(tokens), *sizes, "-o", str(output)])
    (model,) = json.loads(output.read_text())["models"]
    assert model["quantization"]["activations"]["name"] == "int8-static"
    rows = {row["inputs"]: row["nll"] for row in model["rows"]}
    windows = open_windows([str(tokens)], length=16, vocab_size=40, tokenizer=None)
    nll = jax_predictor.packed_predictor(CFG, packed).make_nll(2, 16, None)
    assert rows["static"] == pytest.approx(evaluate(nll, windows, batch_size=2, first=4).nll, rel=1e-6)
    assert rows["static"] != rows["float"]
