"""A tiny teacher of random weights with a tokenizer of its own."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lowbit.data import TextTokenizer
from lowbit.generation import Generator
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.tree import unflatten

VOCABULARY = 260
SPECIAL = (0, 1, 2)  # <|end|>, <|start|> and <|user|>


def tiny_config(**changes):
    fields = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
    }
    return LlamaConfig.from_hf(fields | changes)


def make_generator(endings=2.0, **changes):
    """Returns a generator of random weights; `endings` adds to the logit of each special token, so that texts end."""
    cfg = tiny_config(**changes)
    rng = np.random.default_rng(0)
    means = {path: float(path.endswith("norm/scale")) for path in param_shapes(cfg)}
    flat = {path: rng.normal(means[path], 0.2, s).astype(np.float32) for path, s in param_shapes(cfg).items()}
    flat["embed/embedding"][:, 0] = 3.0  # something in every state that the head can read
    flat["lm_head/kernel"][0] = 0.0
    flat["lm_head/kernel"][0, list(SPECIAL)] = endings
    return Generator.from_params(cfg, unflatten(flat))


@pytest.fixture(scope="session")
def generator():
    return make_generator()


@pytest.fixture(scope="session")
def wide_generator():
    """One with heads as wide as the kernel of attention asks for."""
    return make_generator(head_dim=16)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A byte-level tokenizer: three special tokens, 256 bytes, one pair."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|end|>", "<|start|>", "<|user|>", *alphabet, "th"]
    backend = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("t", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(names[:3])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return TextTokenizer.load(tokenizer_folder, vocab_size=VOCABULARY)
