"""Tokenizers rebuilt from GGUF metadata; those of SentencePiece compared with how sentencepiece itself cuts text."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lowbit.errors import TokenizerError
from lowbit.models.gguf_tokenizer import tokenizer_from_metadata
from lowbit.models.sentencepiece_bpe import merges_by_score

# "Ġ" is how byte-level BPE writes a space.
TOKENS = ["<|start|>", "<|end|>", *"abcde", "Ġ", "1", "2", "ab", "Ġc", "<tool>"]
KINDS = [3, 3, *[1] * (len(TOKENS) - 3), 4]
MERGES = ["a b", "Ġ c"]
METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": KINDS,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}


def tokenizer(**changes):
    metadata = METADATA | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return Tokenizer.from_str(tokenizer_from_metadata(metadata, "m.gguf")["tokenizer.json"].decode())


def test_the_tokenizer_of_the_metadata_cuts_text_as_its_rule_says():
    assert tokenizer().encode("ab cab12<|end|><tool>").tokens == ["ab", "Ġc", "ab", "1", "2", "<|end|>", "<tool>"]
    assert tokenizer().decode([10, 11, 8, 9, 1]) == "ab c12"  # special tokens are not text
    assert tokenizer(add_bos_token=True).encode("ab").tokens == ["<|start|>", "ab"]
    assert tokenizer(pre="llama-bpe").encode("ab c").tokens == ["<|start|>", "ab", "Ġc"]
    assert tokenizer(pre="qwen2").encode("ab c").tokens == ["ab", "Ġc"]


def test_a_text_may_end_with_eos():
    assert tokenizer(add_eos_token=True).encode("ab").tokens == ["ab", "<|end|>"]
    assert tokenizer(add_bos_token=True, add_eos_token=True).encode("ab").tokens == ["<|start|>", "ab", "<|end|>"]


# Made by scripts/make_reference_sentencepiece.py.
REFERENCE = json.loads((Path(__file__).parent / "reference_tokenizers/sentencepiece.json").read_text(encoding="utf-8"))


def sentencepiece(**changes):
    metadata = {"model": "llama", "pre": "default", "bos_token_id": 1, "eos_token_id": 2}
    metadata |= {key: REFERENCE[key] for key in ("tokens", "scores", "token_type")}
    return tokenizer(**{**dict.fromkeys(key.split(".")[-1] for key in METADATA), **metadata, **changes})


@pytest.mark.parametrize("text", REFERENCE["texts"])
def test_sentencepiece_text_is_cut_as_by_sentencepiece(text):
    """Spaces in front, between and behind, letters with marks, characters that only bytes can write."""
    ids = REFERENCE["texts"][text]
    assert sentencepiece().encode(text).ids == [1, *ids]
    assert sentencepiece().decode(ids) == text.replace("▁", " ")


def test_the_reference_covers_byte_fallback_and_merges():
    cut = {REFERENCE["tokens"][i] for ids in REFERENCE["texts"].values() for i in ids}
    assert {"<0xF0>", "<0x0A>", "▁the", "▁▁"} <= cut


def test_sentencepiece_special_tokens_and_options():
    assert sentencepiece(add_bos_token=False).encode("the").tokens == ["▁the"]
    assert sentencepiece(add_bos_token=False, add_space_prefix=False).encode("the").tokens == ["the"]
    assert sentencepiece(add_space_prefix=False).decode(sentencepiece().encode(" the").ids) == "  the"
    assert sentencepiece(add_bos_token=False, add_eos_token=True).encode("the</s>").ids[-2:] == [2, 2]


def test_merges_follow_scores():
    """Of the ways to cut one piece, that of the better parts is first."""
    scores = {"▁a": -1.0, "ab": 0.0, "▁ab": -2.0, "▁": -3.0, "a": -4.0, "b": -5.0}
    assert merges_by_score(scores) == [("a", "b"), ("▁", "a"), ("▁a", "b"), ("▁", "ab")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, r"tokenizer\.ggml\.tokens of m\.gguf is not a list of str\n.*put the model's tokenizer"),
        ({"tokens": 3}, r"ggml\.tokens of m\.gguf is not a list of str"),
        ({"token_type": None}, r"ggml\.token_type of m\.gguf is not a list of int"),
        ({"token_type": [1, 1]}, r"ggml\.token_type of m\.gguf has 2 entries for 13 tokens"),
        ({"merges": None}, r"ggml\.merges of m\.gguf is not a list of str"),
        ({"merges": ["ab"]}, r"ggml\.merges of m\.gguf holds 'ab', which does not join"),
        ({"merges": ["a c"]}, r"ggml\.merges of m\.gguf holds 'a c', which does not join"),
        ({"add_bos_token": True, "bos_token_id": None}, r"ggml\.bos_token_id of m\.gguf is None, not one of its 13"),
        ({"bos_token_id": 13}, r"ggml\.bos_token_id of m\.gguf is 13, not one of its 13 tokens"),
        ({"add_bos_token": "yes"}, r"ggml\.add_bos_token of m\.gguf is 'yes', not true or false"),
        ({"model": "t5"}, r"kind 't5', neither byte-level BPE \('gpt2'\) nor SentencePiece \('llama'\)"),
        ({"model": None}, r"m\.gguf has no tokenizer"),
    ],
)
def test_incomplete_metadata_is_refused(changes, message):
    with pytest.raises(TokenizerError, match=message):
        tokenizer(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, r"ggml\.scores of m\.gguf is not a list of float"),
        ({"scores": [-1000.0] * len(REFERENCE["tokens"])}, "gives every token -1000, which puts them in no order"),
        ({"bos_token_id": None}, r"ggml\.bos_token_id of m\.gguf is None"),
        ({"unknown_token_id": -1}, r"ggml\.unknown_token_id of m\.gguf is -1"),
    ],
)
def test_incomplete_metadata_of_sentencepiece_is_refused(changes, message):
    with pytest.raises(TokenizerError, match=message):
        sentencepiece(**changes)
