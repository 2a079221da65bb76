"""Hugging Face folders: transformers reads config and tokenizer, weights are those of the packed file bit for bit."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowbit.errors import FormatError, ModelError
from lowbit.export.hf import PACKED_FILE, to_hf
from lowbit.export.rounding_error import logits_bound
from lowbit.formats import PackedModel, PackedTensor, decode, read
from lowbit.kernels import Runtime, unstacked_shapes
from lowbit.llama import LlamaConfig
from lowbit.models import load

QUICKSTART = Path(__file__).parents[2] / "assets" / "quickstart" / "model"
CFG = LlamaConfig(4096, 16, 24, 2, 2, 1, 8, tie_embeddings=True, max_positions=64, bos_token_id=0, eos_token_ids=(0,))


def packed_model(levels):
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in unstacked_shapes(CFG).items():
        if name.endswith("_proj.kernel"):
            codes = rng.integers(0, len(levels), shape).astype(np.uint8)
            scale = rng.uniform(0.01, 0.1, (1, shape[1])).astype(np.float16)
            tensors[name] = PackedTensor.from_codes(codes, scale, np.array(levels, np.float32), "g")
        else:
            tensors[name] = rng.normal(size=shape).astype(np.float16)
    files = {name: (QUICKSTART / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    return PackedModel(tensors, CFG.to_hf(), files, {"note": 1})


@pytest.mark.parametrize(("levels", "dtype"), [((-1, 1), "float16"), ((-0.75, -0.25, 0.25, 0.75), "float32")])
def test_the_smallest_dtype_that_loses_nothing(levels, dtype, tmp_path):
    packed = packed_model(levels)
    assert to_hf(packed, tmp_path / "hf") == dtype
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    assert stored[name].dtype == dtype
    np.testing.assert_array_equal(stored[name].T, decode(packed.tensors["layers.1.mlp.up_proj.kernel"]))
    inside = read(tmp_path / "hf" / PACKED_FILE, verify=True)
    assert inside.tensors.keys() == packed.tensors.keys()
    assert inside.meta == packed.meta
    assert load(tmp_path / "hf").cfg == CFG


def test_transformers_reads_config_and_tokenizer(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    packed = packed_model((-1, 0, 1))
    to_hf(packed, tmp_path / "hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.hidden_size, config.num_key_value_heads, config.tie_word_embeddings) == (16, 1, True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("The ship lay")["input_ids"]) == "The ship lay"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llama"


def test_a_folder_with_content_and_tensors_of_another_config_are_refused(tmp_path):
    packed = packed_model((-1, 1))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "notes").write_text("mine")
    with pytest.raises(ModelError, match="exists and is not an empty folder"):
        to_hf(packed, tmp_path / "hf")
    del packed.tensors["norm.scale"]
    with pytest.raises(ModelError, match=r"not those of the config: see norm\.scale"):
        to_hf(packed, tmp_path / "other")


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, monkeypatch):
    def refuse(path, packed):
        raise FormatError("no space left", "free some")

    monkeypatch.setattr("lowbit.export.hf.write", refuse)
    with pytest.raises(FormatError, match="no space left"):
        to_hf(packed_model((-1, 1)), tmp_path / "hf")
    assert not list(tmp_path.iterdir())


TORCH = """
import sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.no_grad():
    np.save(sys.argv[3], model(torch.tensor(np.load(sys.argv[2]))).logits.numpy())
"""


@pytest.mark.slow
def test_transformers_computes_the_same_logits(tmp_path):
    """Within what float32 rounding explains. Name an interpreter with torch and transformers in LOWBIT_TORCH_PYTHON."""
    named = os.environ.get("LOWBIT_TORCH_PYTHON")
    if named is None and importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch: name a python with torch and transformers in LOWBIT_TORCH_PYTHON")
    packed = packed_model((-0.75, -0.25, 0.25, 0.75))
    to_hf(packed, tmp_path / "hf")
    tokens = np.random.default_rng(0).integers(0, CFG.vocab_size, (2, 16))
    np.save(tmp_path / "tokens.npy", tokens)
    arguments = [str(tmp_path / name) for name in ("hf", "tokens.npy", "logits.npy")]
    subprocess.run([named or sys.executable, "-c", TORCH, *arguments], check=True, capture_output=True)
    runtime = Runtime(packed)
    ours = runtime.forward(tokens)
    assert np.abs(np.load(tmp_path / "logits.npy") - ours).max() <= logits_bound(packed, runtime, tokens, ours)
