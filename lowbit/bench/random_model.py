"""Packed models of public shapes with random codes: speed does not depend on what they say."""

from typing import Any

import numpy as np

from lowbit.formats import PackedModel, PackedTensor, packing_for, row_bytes
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig

LEVELS: dict[float, tuple[float, ...]] = {
    1: (-1, 1),
    1.58: (-2 / 3, 0, 2 / 3),
    2: (-0.75, -0.25, 0.25, 0.75),
    3: tuple(range(-4, 4)),
    4: tuple(range(-8, 8)),
    8: tuple(range(-128, 128)),
}
"""The grids that ParetoQ fits to a width, and whole numbers at 8 bits for the embedding."""


def _config(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-587m": _config(2048, 8192, 8, 32, 8),
    "smollm2-135m": _config(576, 1536, 30, 9, 3),
    "llama-1b": _config(2048, 8192, 16, 32, 8) | {"vocab_size": 128_256},
    "llama-8b": _config(4096, 14336, 32, 32, 8) | {"vocab_size": 128_256, "head_dim": 128},
    "llama-70b": _config(8192, 28672, 80, 64, 8) | {"vocab_size": 128_256, "head_dim": 128},
    "tiny": _config(64, 96, 2, 4, 2) | {"vocab_size": 300, "head_dim": 16},
}


def random_tensor(k: int, n: int, bits: float, rng: np.random.Generator, groups: int = 1) -> PackedTensor:
    """Returns a matrix [k n] of random codes and a scale that keeps activations at their size."""
    levels = np.array(LEVELS[bits], np.float32)
    packing = packing_for(len(levels))
    rows = rng.integers(0, 243 if packing == "t5" else 256, (n, row_bytes(packing, k)), dtype=np.uint8)
    if packing == "t5" and k % 5:
        rows[:, -1] %= 3 ** (k % 5)
    elif used := k * bits % 8:  # what follows the last code is zero
        rows[:, -1] &= (1 << int(used)) - 1
    scale = np.full((groups, n), k**-0.5 / float(np.sqrt(np.mean(levels**2))), np.float16)
    return PackedTensor(rows, scale, None, levels, (k, n), f"bits{bits:g}", packing)


def random_model(shape: str, bits: float, embedding_bits: int, layers: int | None = None) -> PackedModel:
    """Returns a model of one of `SHAPES`, of all its layers or some.

    Args:
      shape: its name.
      bits: of matrices, with a scale an output.
      embedding_bits: of the tied embedding: 4 or 8, with a scale a row, or 16: float16.
      layers: how many; None for all.
    """
    config, rng = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers}), np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, size in unstacked_shapes(LlamaConfig.from_hf(config)).items():
        if len(size) == 1:
            tensors[name] = np.ones(size, np.float32)
        elif name != "embed.embedding":
            k, n = size
            tensors[name] = random_tensor(k, n, bits, rng)
        elif embedding_bits == 16:
            tensors[name] = rng.standard_normal(size, dtype=np.float32).astype(np.float16)
        else:
            packed = random_tensor(size[1], size[0], embedding_bits, rng)
            fields = (packed.scale, None, packed.levels, packed.shape, f"embedding{embedding_bits}", packed.packing)
            tensors[name] = PackedTensor(packed.packed, *fields, transposed=True)
    return PackedModel(tensors, dict(config), {})
