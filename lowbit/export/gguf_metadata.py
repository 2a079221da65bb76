"""What llama.cpp asks of a model besides its weights: architecture, sizes, rotary frequencies."""

import math
from typing import Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.llama import LlamaConfig, RopeScaling, rope_frequencies

_QUANTIZATION_VERSION = 2  # of ggml; every file with quantized tensors states it
# Of `enum llama_ftype`: what a file says it mostly is. llama.cpp prints it and computes nothing from it.
_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q8_0": 7,
    "Q2_K": 10,
    "Q3_K": 11,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "Q1_0": 40,
    "Q2_0": 41,
}
_YARN_TEMPERATURE = 0.1


def architecture(cfg: LlamaConfig) -> str:
    """Returns llama.cpp's name of the decoder; "qwen2" is the one with a bias on q, k and v."""
    return "qwen2" if cfg.qkv_bias else "llama"


def model_metadata(cfg: LlamaConfig, name: str, mostly: str) -> dict[str, Any]:
    """Returns every key but those of the tokenizer.

    Args:
      cfg: the model.
      name: what it is called.
      mostly: the tensor type of most weights.

    Raises:
      ModelError: a rope scaling that llama.cpp does not have.
    """
    own = {
        "vocab_size": cfg.vocab_size,
        "context_length": cfg.max_positions,
        "embedding_length": cfg.hidden_size,
        "block_count": cfg.num_layers,
        "feed_forward_length": cfg.intermediate_size,
        "attention.head_count": cfg.num_heads,
        "attention.head_count_kv": cfg.num_kv_heads,
        "attention.key_length": cfg.head_dim,
        "attention.value_length": cfg.head_dim,
        "attention.layer_norm_rms_epsilon": cfg.rms_norm_eps,
        "rope.dimension_count": cfg.head_dim,
        "rope.freq_base": cfg.rope_theta,
        **_rope_scaling(cfg.rope_scaling, cfg),
    }
    return {
        "general.architecture": architecture(cfg),
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": _QUANTIZATION_VERSION,
        "general.file_type": _FILE_TYPES[mostly],
        **{f"{architecture(cfg)}.{key}": value for key, value in own.items()},
    }


def rope_divisors(cfg: LlamaConfig) -> np.ndarray | None:
    """Returns f32[head_dim/2], what divides the plain frequencies under the scaling of Llama 3; None for others."""
    if cfg.rope_scaling is None or cfg.rope_scaling.kind != "llama3":
        return None
    exponents = np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim
    return (cfg.rope_theta**-exponents / rope_frequencies(cfg)[0]).astype(np.float32)


def _rope_scaling(scaling: RopeScaling | None, cfg: LlamaConfig) -> dict[str, Any]:
    # "llama3" is a tensor of divisors; "dynamic" changes nothing within the context that the file states.
    if scaling is None or scaling.kind in ("llama3", "dynamic"):
        return {}
    keys: dict[str, Any] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling.kind == "linear":
        return keys
    if not scaling.truncate:
        raise ModelError(
            "llama.cpp rounds the ends of yarn's ramp to whole dimensions, and this model does not (truncate = false)",
            "run it with lowbit or transformers",
        )
    # llama.cpp multiplies cos and sin by yarn's own temperature and by what the file states.
    temperature = 1 + _YARN_TEMPERATURE * math.log(scaling.factor)
    return {
        **keys,
        "rope.scaling.original_context_length": scaling.original_max_positions,
        "rope.scaling.attn_factor": rope_frequencies(cfg)[1] / temperature,
        "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
        "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
    }
