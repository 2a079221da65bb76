"""A packed file as a model to start from: its weights exactly, its tokenizer, and refusals before any work."""

import numpy as np
import pytest

from lowbit.errors import FormatError, ModelError
from lowbit.formats import PackedModel, PackedTensor, decode, write
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig
from lowbit.models import load
from lowbit.models.pretrained import load_config
from lowbit.tree import flatten

CFG = LlamaConfig(12, 8, 16, 3, 2, 1, 4, tie_embeddings=False, max_positions=32)


@pytest.fixture
def packed():
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in unstacked_shapes(CFG).items():
        if name.endswith("kernel"):
            codes = rng.integers(0, 3, shape).astype(np.uint8)
            scale = rng.uniform(0.01, 0.1, (2, shape[1])).astype(np.float16)
            tensors[name] = PackedTensor.from_codes(codes, scale, np.array([-1, 0, 1], np.float32), "t")
        else:
            tensors[name] = rng.normal(size=shape).astype(np.float32)
    return PackedModel(tensors, CFG.to_hf(), {"tokenizer.json": b"{}"})


def test_decoded_weights_stacked_over_layers(packed, tmp_path):
    write(tmp_path / "m.lowbit", packed)
    loaded = load(tmp_path / "m.lowbit")
    assert loaded.cfg == load_config(tmp_path / "m.lowbit") == CFG
    assert loaded.tokenizer_files == {"tokenizer.json": b"{}"}
    flat = flatten(loaded.params)
    up = flat["layers/mlp/up_proj/kernel"]
    np.testing.assert_array_equal(up[2], decode(packed.tensors["layers.2.mlp.up_proj.kernel"]))
    np.testing.assert_array_equal(flat["lm_head/kernel"], decode(packed.tensors["lm_head.kernel"]))
    np.testing.assert_array_equal(flat["embed/embedding"], packed.tensors["embed.embedding"])


def test_checksums_are_compared(packed, tmp_path):
    path = tmp_path / "m.lowbit"
    write(path, packed)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"m\.lowbit: tensor '.*': its bytes do not match their checksum"):
        load(path)


def test_a_config_of_other_sizes_is_refused_before_anything_is_allocated(packed, tmp_path):
    path = tmp_path / "m.lowbit"
    packed.config["vocab_size"] = 2**40
    write(path, packed)
    with pytest.raises(ModelError, match=r"embed\.embedding in .* has shape \[12, 8\], but the config states"):
        load(path)
    packed.config["num_hidden_layers"] = 2**40
    write(path, packed, overwrite=True)
    with pytest.raises(ModelError, match="num_layers is 1099511627776, more than 10000"):
        load(path)
