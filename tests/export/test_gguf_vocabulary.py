"""Tokenizers as GGUF metadata: rebuilt from there they cut text as before, and what llama.cpp lacks is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lowbit.errors import TokenizerError
from lowbit.export.gguf_tokenizer import NO_VOCABULARY, tokenizer_metadata
from lowbit.llama import LlamaConfig
from lowbit.models.gguf_tokenizer import tokenizer_from_metadata, word_rule

TOKENS = ["<|start|>", "<|end|>", *"abcde", "Ġ", "1", "2", "ab", "Ġc", "<tool>"]
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, *[1] * (len(TOKENS) - 3), 4],
    "tokenizer.ggml.merges": ["a b", "Ġ c"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
REFERENCE = json.loads(
    (Path(__file__).parents[1] / "models/reference_tokenizers/sentencepiece.json").read_text(encoding="utf-8")
)
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    **{f"tokenizer.ggml.{key}": REFERENCE[key] for key in ("tokens", "scores", "token_type")},
}


def sizes(vocabulary, **changes):
    cfg = LlamaConfig(vocabulary, 8, 8, 1, 1, 1, 8, bos_token_id=0, eos_token_ids=(1,))
    return dataclasses.replace(cfg, **changes)


def plain(metadata):
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metadata.items()}


@pytest.mark.parametrize("rule", ["gpt-2", "llama-bpe", "qwen2", "smollm"])
@pytest.mark.parametrize("starts", [True, False])
def test_byte_level_bpe_comes_back(rule, starts):
    told = BYTE_LEVEL | {"tokenizer.ggml.pre": rule, "tokenizer.ggml.add_bos_token": starts}
    files = tokenizer_from_metadata(told, "m.gguf")
    again = plain(tokenizer_metadata(files, sizes(len(TOKENS))))
    assert {key: again[key] for key in told} == told
    assert again["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.parametrize("space", [True, False])
def test_scores_follow_from_merges(space):
    """tokenizer.json keeps no scores; those made of its merges cut the reference texts as sentencepiece did."""
    files = tokenizer_from_metadata(SENTENCEPIECE | {"tokenizer.ggml.add_space_prefix": space}, "m.gguf")
    cfg = sizes(len(REFERENCE["tokens"]), bos_token_id=1, eos_token_ids=(2,))
    again = plain(tokenizer_metadata(files, cfg))
    assert again["tokenizer.ggml.add_space_prefix"] is space
    assert again["tokenizer.ggml.token_type"] == REFERENCE["token_type"]
    assert again["tokenizer.ggml.unknown_token_id"] == 0
    assert again["tokenizer.ggml.add_bos_token"] is True
    before, after = (
        Tokenizer.from_str(content["tokenizer.json"].decode())
        for content in (files, tokenizer_from_metadata(again, "m"))
    )
    for text, ids in REFERENCE["texts"].items():
        assert after.encode(text).ids == before.encode(text).ids
        assert not space or after.encode(text).ids == [1, *ids]


def test_a_metaspace_says_whether_there_is_a_space_in_front():
    files = edited(tokenizer_from_metadata(SENTENCEPIECE, "m.gguf"), normalizer=None)
    cfg = sizes(len(REFERENCE["tokens"]), bos_token_id=1, eos_token_ids=(2,))
    for scheme, space in (("always", True), ("first", True), ("never", False)):
        words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        told = tokenizer_metadata(edited(files, pre_tokenizer=words), cfg)
        assert told["tokenizer.ggml.add_space_prefix"] is space


def test_a_model_without_a_tokenizer_has_no_vocabulary():
    assert tokenizer_metadata({}, sizes(3)) == NO_VOCABULARY


def edited(files, **changes):
    content = json.loads(files["tokenizer.json"])
    model = changes.pop("model", {})
    return {**files, "tokenizer.json": json.dumps({**content, **changes, "model": content["model"] | model}).encode()}


def test_defaults_and_offsets_do_not_make_a_rule_unknown():
    assert word_rule({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}, None) == "gpt-2"
    assert word_rule({"type": "ByteLevel"}, None) is None  # a space in front, which gpt-2 has not
    assert word_rule({"type": "ByteLevel", "add_prefix_space": False}, {"type": "Lowercase"}) is None
    assert word_rule(None, None) is None


def test_what_llama_cpp_does_not_have_is_refused():
    files = tokenizer_from_metadata(BYTE_LEVEL, "m.gguf")
    cfg = sizes(len(TOKENS))
    whitespace = {"type": "Whitespace"}
    with pytest.raises(TokenizerError, match=r"rule has none here\n  -> name the rule .*: --pre NAME"):
        tokenizer_metadata(edited(files, pre_tokenizer=whitespace), cfg)
    assert tokenizer_metadata(edited(files, pre_tokenizer=whitespace), cfg, "mine")["tokenizer.ggml.pre"] == "mine"
    with pytest.raises(TokenizerError, match=r"there is tokenizer_config\.json, but no tokenizer\.json"):
        tokenizer_metadata({"tokenizer_config.json": b"{}"}, cfg)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        tokenizer_metadata({"tokenizer.json": b"{}"}, cfg)
    bare = {"tokenizer.json": files["tokenizer.json"]}
    with pytest.raises(TokenizerError, match="no token that ends a text"):
        tokenizer_metadata(bare, sizes(len(TOKENS), eos_token_ids=()))
    starting = tokenizer_from_metadata(BYTE_LEVEL | {"tokenizer.ggml.add_bos_token": True}, "m.gguf")
    with pytest.raises(TokenizerError, match="puts other tokens around a text than the model's first and last"):
        tokenizer_metadata(starting, sizes(len(TOKENS), bos_token_id=5))
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    other = {"tokenizer.json": json.dumps({"version": "1.0", "model": words}).encode()}
    with pytest.raises(TokenizerError, match="its model is WordLevel, not BPE"):
        tokenizer_metadata(other, cfg)


def test_merges_in_another_order_than_one_of_scores_are_refused():
    files = tokenizer_from_metadata(SENTENCEPIECE, "m.gguf")
    merges = json.loads(files["tokenizer.json"])["model"]["merges"]
    cfg = sizes(len(REFERENCE["tokens"]), bos_token_id=1, eos_token_ids=(2,))
    with pytest.raises(TokenizerError, match="its merges are not those of one score for each piece"):
        tokenizer_metadata(edited(files, model={"merges": merges[1:]}), cfg)
    with pytest.raises(TokenizerError, match=r"treats spaces in a way that llama\.cpp does not have"):
        tokenizer_metadata(edited(files, normalizer={"type": "Lowercase"}), cfg)
