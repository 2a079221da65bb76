"""GGUF files of public shapes with random blocks: what llama.cpp decodes beside the kernels."""

from pathlib import Path

import gguf
import numpy as np

from lowbit.bench.random_model import SHAPES

NAMES = {
    "attn_q": ("hidden", "heads"),
    "attn_k": ("hidden", "kv"),
    "attn_v": ("hidden", "kv"),
    "attn_output": ("heads", "hidden"),
    "ffn_gate": ("hidden", "intermediate"),
    "ffn_up": ("hidden", "intermediate"),
    "ffn_down": ("intermediate", "hidden"),
}
"""Inputs and outputs of the matrices of a layer."""

FALLBACK = "q4_0"
"""What llama.cpp takes where a row is no multiple of a type's block, as with 576 inputs and blocks of 256."""

_SCALE_AT = {"q4_0": 0, "q8_0": 0, "q1_0": 0, "tq1_0": -2, "tq2_0": -2}
"""Where a block has its float16 scale."""


def write_model(folder: Path, shape: str, embedding_bits: int, kind: str) -> Path:
    """Writes a model whose matrices have a type of ggml, with the embedding in q8_0 or, at 4 bits, q4_0."""
    config = SHAPES[shape]
    sizes = {
        "hidden": config["hidden_size"],
        "intermediate": config["intermediate_size"],
        "heads": config["num_attention_heads"] * config["head_dim"],
        "kv": config["num_key_value_heads"] * config["head_dim"],
    }
    path = folder / f"{shape}-{kind}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def add(name: str, kind: str, k: int, n: int) -> None:
        quantized = gguf.GGMLQuantizationType[kind.upper()]
        block, size = gguf.GGML_QUANT_SIZES[quantized]
        if k % block:
            return add(name, FALLBACK, k, n)
        blocks = rng.integers(0, 256, (n * k // block, size), dtype=np.uint8)
        if kind == "tq2_0":
            blocks &= 0b01010101  # codes 0 and 1: there is no level for 3
        at = _SCALE_AT[kind] % size
        blocks[:, at : at + 2] = np.array([k**-0.5], "<f2").view(np.uint8)
        return writer.add_tensor(name, blocks.reshape(n, -1), raw_dtype=quantized)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(sizes["hidden"], np.float32))

    add("token_embd.weight", {4: "q4_0", 8: "q8_0"}[embedding_bits], sizes["hidden"], config["vocab_size"])
    for layer in range(config["num_hidden_layers"]):
        for name, (k, n) in NAMES.items():
            add(f"blk.{layer}.{name}.weight", kind, sizes[k], sizes[n])
        add_norm(f"blk.{layer}.attn_norm.weight")
        add_norm(f"blk.{layer}.ffn_norm.weight")
    add_norm("output_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
