"""GGUF files (llama.cpp): metadata to a config, quantized tensors to float32, rows of q and k in their own order.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from lowbit.errors import ModelError
from lowbit.gguf import CODERS, GgufTensor, read
from lowbit.gguf.blocks import dequantize as dequantize_integers
from lowbit.llama import LlamaConfig, rope_frequencies
from lowbit.models.gguf_tokenizer import tokenizer_from_metadata
from lowbit.models.hf import read_tokenizer_files
from lowbit.models.layerwise import StoredModel
from lowbit.models.pretrained import Pretrained
from lowbit.models.stacking import release_pages

ARCHITECTURES = ("llama", "qwen2")

_TOP_NAMES = {
    "embed/embedding": "token_embd.weight",
    "norm/scale": "output_norm.weight",
    "lm_head/kernel": "output.weight",
}
_LAYER_NAMES = {
    "attn_norm/scale": "attn_norm.weight",
    "mlp_norm/scale": "ffn_norm.weight",
    "attn/o_proj/kernel": "attn_output.weight",
    **{f"attn/{p}_proj/kernel": f"attn_{p}.weight" for p in "qkv"},
    **{f"attn/{p}_proj/bias": f"attn_{p}.bias" for p in "qkv"},
    **{f"mlp/{p}_proj/kernel": f"ffn_{p}.weight" for p in ("gate", "up", "down")},
}
_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_NOT_IN_LIBRARY = ("Q1_0", "Q2_0")  # types younger than the gguf library's decoders
_NO_TOKENIZER = "no_vocab"
_HEAD = _TOP_NAMES["lm_head/kernel"]
CONFIG_KEY = "lowbit.config"
"""The config.json of a file that lowbit's export wrote, as JSON: it says more than llama.cpp's own keys can."""

ROPE_DIVISORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: how converters write the scaling of Llama 3.1 and later."""

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def gguf_name(path: str, layer: int | None) -> str:
    """Returns llama.cpp's name of one layer (None: not layered) of the parameter at `path`."""
    if layer is None:
        return _TOP_NAMES[path]
    return f"blk.{layer}.{_LAYER_NAMES[path.removeprefix('layers/')]}"


def load_gguf(path: Path) -> Pretrained:
    """Loads a GGUF file; quantized tensors become the float32 values that they stand for.

    Tokenizer files beside it (tokenizer.json and its kin) are taken as they are; without a tokenizer.json, the
    tokenizer is rebuilt from the metadata.

    Raises:
      ModelError: no such file, not a whole GGUF file, an architecture or a tensor type not supported, or tensors
        that are not what the metadata states.
      TokenizerError: a tokenizer that cannot be rebuilt.
    """
    return open_gguf(path).load()


def open_gguf(path: Path) -> StoredModel:
    """Opens a GGUF file, whose tensors stay on the disk; raises as `load_gguf`."""
    metadata, tensors = read(path)
    source = _Tensors(path, tensors)
    cfg = _config(metadata, source)
    if metadata["general.architecture"] == "llama":
        source.rotary_heads = {"attn_q.weight": cfg.num_heads, "attn_k.weight": cfg.num_kv_heads}
    return StoredModel(cfg, _tokenizer_files(path, metadata), source, gguf_name)


def read_gguf_config(path: Path) -> LlamaConfig:
    """Returns the sizes that a file's metadata state; raises ModelError as `load_gguf`, of everything but tensors."""
    metadata, tensors = read(path)
    return _config(metadata, _Tensors(path, tensors))


def load_gguf_tokenizer(path: Path) -> dict[str, bytes]:
    """Returns the tokenizer files of a GGUF file as `load_gguf` does, without reading its tensors; raises the same."""
    return _tokenizer_files(path, read(path).metadata)


class _Tensors:
    """The tensors of a file, dequantized one at a time (a `TensorSource`)."""

    def __init__(self, path: Path, tensors: Mapping[str, GgufTensor]):
        self.where = str(path)
        self._tensors = tensors
        # Heads of the matrices whose rows are interleaved, by the end of their name.
        self.rotary_heads: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor of this name."""
        return name in self._tensors

    def names(self) -> set[str]:
        """Returns all names but that of the rotary divisors, which are part of the config."""
        return set(self._tensors) - {ROPE_DIVISORS}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as floats; raises ModelError for a type that nobody here can dequantize."""
        values = dequantized(self._tensors[name], f"{name} in {self.where}")
        heads = self.rotary_heads.get(name.split(".", 2)[-1])
        # A matrix of other rows keeps them, to be refused for its shape.
        if heads is None or values.ndim != 2 or values.shape[0] % (2 * heads):
            return values
        return half_split_rows(values, heads)

    def release(self) -> None:
        """Lets go of what was read of the file."""
        for tensor in self._tensors.values():
            release_pages(tensor.data)
            break  # one map holds all


def dequantized(tensor: GgufTensor, where: str) -> np.ndarray:
    """Returns a tensor's floats; raises ModelError for a type that nobody here can dequantize."""
    kind, shape, data = tensor
    if kind.name in _FLOATS:
        return data.view(_FLOATS[kind.name])
    for coder in CODERS:
        if coder.kind == kind and kind.name in _NOT_IN_LIBRARY:
            return dequantize_integers(data.reshape(-1, data.shape[-1]), coder).reshape(shape)
    try:
        values: np.ndarray = dequantize(data, GGMLQuantizationType(kind.number))
    except NotImplementedError as error:
        raise ModelError(
            f"{where} has the type {kind.name}, which cannot be dequantized",
            "take a GGUF file of another type, best of all F16",
        ) from error
    return values


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's row order of q and k: interleaved rotary pairs (2i, 2i+1) to pairs (i, i + h/2).

    Args:
      weight: [heads*h k].
      heads: how many heads the rows hold.
    """
    rows, k = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, k).swapaxes(1, 2).reshape(rows, k)


def interleaved_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `half_split_rows`: rows of q and k as the architecture "llama" of llama.cpp wants them."""
    rows, k = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, k).swapaxes(1, 2).reshape(rows, k)


def _tokenizer_files(path: Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    files = read_tokenizer_files(path.parent)
    if "tokenizer.json" in files or metadata.get("tokenizer.ggml.model") == _NO_TOKENIZER:
        return files
    return tokenizer_from_metadata(metadata, str(path))


def _config(metadata: Mapping[str, Any], source: _Tensors) -> LlamaConfig:
    """Reads the metadata by way of the Hugging Face config that it amounts to."""
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"GGUF architecture {architecture!r} of {source.where} is not supported",
            "take a file of one of the architectures " + ", ".join(ARCHITECTURES),
        )
    if metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(f"{source.where} is one of several parts", "merge them with llama.cpp's llama-gguf-split")

    if CONFIG_KEY in metadata:
        return LlamaConfig.from_hf(_json(metadata[CONFIG_KEY]), f"{CONFIG_KEY} of {source.where}")

    def entry(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    vocabulary = metadata.get("tokenizer.ggml.tokens")
    tokens = len(vocabulary) if isinstance(vocabulary, list) and vocabulary else None
    config = {
        "model_type": architecture,
        "vocab_size": entry("vocab_size") or tokens,
        "hidden_size": entry("embedding_length"),
        "intermediate_size": entry("feed_forward_length"),
        "num_hidden_layers": entry("block_count"),
        "num_attention_heads": entry("attention.head_count"),
        "num_key_value_heads": entry("attention.head_count_kv"),
        "head_dim": entry("attention.key_length"),
        "rms_norm_eps": entry("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": entry("context_length"),
        "rope_theta": entry("rope.freq_base"),
        "tie_word_embeddings": not source.has(_HEAD),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }
    uneven = [key for key, value in config.items() if isinstance(value, list)]
    if uneven:
        raise ModelError(
            f"{source.where} gives {', '.join(uneven)} for each layer", "take a model whose layers are all alike"
        )
    if entry("rope.scaling.type") not in (None, "none"):
        config["rope_scaling"] = {
            "rope_type": entry("rope.scaling.type"),
            "factor": entry("rope.scaling.factor"),
            "original_max_position_embeddings": entry("rope.scaling.original_context_length"),
            "attention_factor": _attention_factor(entry("rope.scaling.attn_factor"), entry("rope.scaling.factor")),
            "beta_fast": entry("rope.scaling.yarn_beta_fast"),
            "beta_slow": entry("rope.scaling.yarn_beta_slow"),
        }
    cfg = LlamaConfig.from_hf(config, source.where)
    if entry("rope.dimension_count") not in (None, cfg.head_dim):
        raise ModelError(
            f"{source.where} rotates {entry('rope.dimension_count')} of {cfg.head_dim} dimensions of each head",
            "take a model that rotates whole heads",
        )
    if not source.has(ROPE_DIVISORS):
        return cfg
    return _with_llama3_rope(config, source.read(ROPE_DIVISORS))


def _json(text: Any) -> Any:
    """What a text says, or the value itself where it is no JSON text, to be refused by who reads it."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return text


def _attention_factor(told: Any, factor: Any) -> Any:
    """What multiplies cos and sin: llama.cpp states it in units of YaRN's own temperature, 0.1 ln(factor) + 1."""
    known = isinstance(told, float) and isinstance(factor, float) and factor >= 1
    return told * (0.1 * math.log(factor) + 1) if known else told


def _with_llama3_rope(config: Mapping[str, Any], divisors: np.ndarray) -> LlamaConfig:
    """Returns the config with the Llama 3 scaling that gives these divisors of the frequencies, f32[h/2]."""
    plain = LlamaConfig.from_hf(config)
    if divisors.shape != (plain.head_dim // 2,):
        raise ModelError(
            f"{ROPE_DIVISORS} has shape {list(divisors.shape)}, but the config states [{plain.head_dim // 2}]",
            "download the file again",
        )
    scaling = {**_LLAMA3_ROPE, "factor": max(1.0, float(divisors.max()))}
    scaled = LlamaConfig.from_hf({**config, "rope_scaling": scaling})
    told = rope_frequencies(scaled)[0] * divisors
    if not np.allclose(told, rope_frequencies(plain)[0], rtol=1e-4, atol=0):
        raise ModelError(
            f"{ROPE_DIVISORS} is not the rope scaling of Llama 3.1 to 3.3",
            "load the model from its Hugging Face folder, whose config.json names the scaling",
        )
    return scaled
