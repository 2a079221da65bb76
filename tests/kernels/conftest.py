"""Tiny packed decoders of every variant the runtime knows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lowbit.formats import BFloat16, PackedModel, PackedTensor
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig

BASE = {
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
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "separate head": {"tie_word_embeddings": False},
    "qkv bias": {"model_type": "qwen2", "tie_word_embeddings": False},
    "no grouped queries": {"num_key_value_heads": 4},
    "llama3 rope": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "yarn rope": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
}

SEQ2 = np.array([-0.75, -0.25, 0.25, 0.75], np.float32)
INT4 = np.arange(-8, 8, dtype=np.float32)


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return BASE | VARIANTS[request.param]


@pytest.fixture
def make_packed() -> Callable[..., PackedModel]:
    """Random codes, scales that keep activations near 1, and float tensors of each dtype."""

    def make(config: dict[str, Any] | None = None, tokenizer: dict[str, bytes] | None = None) -> PackedModel:
        config = BASE if config is None else config
        rng = np.random.default_rng(0)
        tensors: dict[str, Any] = {}
        for name, shape in unstacked_shapes(LlamaConfig.from_hf(config)).items():
            if name == "embed.embedding":
                v, d = shape
                codes = rng.integers(0, 16, (d, v)).astype(np.uint8)
                scale = rng.uniform(0.1, 0.3, (1, v)).astype(np.float16)
                tensors[name] = PackedTensor.from_codes(codes, scale, INT4, "int4", transposed=True)
            elif name == "lm_head.kernel":
                tensors[name] = rng.normal(0, 0.3, shape).astype(np.float16)
            elif name.endswith("kernel"):
                codes = rng.integers(0, 4, shape).astype(np.uint8)
                scale = rng.uniform(0.2, 0.6, (2, shape[1])).astype(np.float16)
                tensors[name] = PackedTensor.from_codes(codes, scale, SEQ2, "seq2")
            elif name.endswith("bias"):
                tensors[name] = rng.normal(0, 1, shape).astype(np.float32)
            else:
                tensors[name] = BFloat16.from_float32(rng.uniform(0.5, 1.5, shape).astype(np.float32))
        return PackedModel(tensors, dict(config), tokenizer or {})

    return make
