"""Tiny packed decoders, and the quickstart's model rounded to a width."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from lowbit import config as configs
from lowbit.export import pack_model
from lowbit.formats import PackedModel, PackedTensor
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig
from lowbit.models import pretrained
from lowbit.train.quantization import quantization_rules
from lowbit.tree import init_state

QUICKSTART = Path(__file__).resolve().parents[2] / "assets" / "quickstart" / "model"

TINY = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEQ2 = np.array([-0.75, -0.25, 0.25, 0.75], np.float32)
INT8 = np.arange(-128, 128, dtype=np.float32)


def make_packed(**changes):
    """Returns a model of random codes, with a head of its own: a tied one would repeat the last token for ever."""
    config = TINY | changes
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in unstacked_shapes(LlamaConfig.from_hf(config)).items():
        if name == "embed.embedding":
            codes = rng.integers(0, 256, shape[::-1]).astype(np.uint8)
            scale = rng.uniform(0.01, 0.02, (1, shape[0])).astype(np.float16)
            tensors[name] = PackedTensor.from_codes(codes, scale, INT8, "int8", transposed=True)
        elif name == "lm_head.kernel":
            tensors[name] = rng.normal(0, 0.3, shape).astype(np.float16)
        elif name.endswith("kernel"):
            codes = rng.integers(0, 4, shape).astype(np.uint8)
            scale = rng.uniform(0.2, 0.6, (2, shape[1])).astype(np.float16)
            tensors[name] = PackedTensor.from_codes(codes, scale, SEQ2, "seq2")
        else:
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return PackedModel(tensors, config, {})


@pytest.fixture(scope="session")
def tiny():
    return make_packed()


@pytest.fixture(scope="session")
def make():
    return make_packed


@pytest.fixture(scope="session")
def quickstart():
    """Returns quickstart(bits) -> the model rounded to nearest, packed."""
    loaded = pretrained.load(str(QUICKSTART))

    @functools.cache
    def rounded(bits):
        quant = configs.base().quant
        quant.method, quant.bits = "rtn", float(bits)
        rules = tuple(quantization_rules(quant))
        state = jax.jit(functools.partial(init_state, rules))(loaded.params)
        return pack_model(loaded.cfg, loaded.params, rules, state, loaded.tokenizer_files, {})

    return rounded
