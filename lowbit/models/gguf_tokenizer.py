"""A tokenizer out of GGUF metadata, as a tokenizer.json: byte-level BPE, or the BPE of SentencePiece.

GGUF stores the vocabulary with either merges and the name of the rule that cuts text into words (kind "gpt2"), or
scores (kind "llama"). The file for the `tokenizers` library is put together from those, so that neither torch nor the
original model is needed.
"""

import json
from collections.abc import Mapping
from typing import Any

from lowbit.errors import TokenizerError
from lowbit.models.gguf_vocabulary import Vocabulary
from lowbit.models.sentencepiece_bpe import SPACE, merges_by_score

_GPT2_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {**_GPT2_WORDS, "use_regex": False}


def _words(pattern: str) -> dict[str, Any]:
    """Words by a regex of the model's own, then bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES_ONLY]}


def _letters_and_digits(digits: str) -> dict[str, Any]:
    """The word rule of GPT-4's family, in which only the length of a run of digits differs between models."""
    alternatives = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
    return _words("|".join(alternatives))


# tokenizer.ggml.pre -> pre-tokenizer.
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _GPT2_WORDS,
    "llama-bpe": _letters_and_digits(r"\p{N}{1,3}"),
    "qwen2": _letters_and_digits(r"\p{N}"),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2_WORDS]},
}
_NORMALIZERS = {"qwen2": {"type": "NFC"}}
# Models that start every text with bos unless the file says otherwise.
_STARTS_WITH_BOS = ("llama-bpe",)


def word_rule(pre_tokenizer: Any, normalizer: Any) -> str | None:
    """Returns the `tokenizer.ggml.pre` of a tokenizer.json's parts, or None where they are those of no known rule."""
    if normalizer not in (None, *_NORMALIZERS.values()):
        return None
    own = _what_cuts(pre_tokenizer)
    return next((rule for rule, known in _PRE_TOKENIZERS.items() if _what_cuts(known) == own), None)


def _what_cuts(part: Any) -> Any:
    """A pre-tokenizer without what does not change where text is cut, and with the defaults that a file may omit."""
    if not isinstance(part, dict):
        return part
    kept = {key: value for key, value in part.items() if key != "trim_offsets"}
    if kept.get("type") == "ByteLevel":
        kept = {"add_prefix_space": True, "use_regex": True, **kept}
    if "pretokenizers" in kept:
        steps = [_what_cuts(step) for step in kept["pretokenizers"]]
        return steps[0] if len(steps) == 1 else {**kept, "pretokenizers": steps}
    return kept


def tokenizer_from_metadata(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Returns tokenizer.json and tokenizer_config.json for the tokenizer that GGUF metadata describes.

    Args:
      metadata: all fields of the file, as Python values.
      where: the file's name, for messages.

    Raises:
      TokenizerError: no tokenizer, one of another kind than "gpt2" and "llama", a word rule that is not known, or
        metadata that is incomplete.
    """

    def entry(key: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}")

    kind = entry("model")
    mend = f"put the model's tokenizer.json beside {where}"
    if kind is None:
        raise TokenizerError(f"{where} has no tokenizer", mend)
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(
            f"{where} has a tokenizer of kind {kind!r}, neither byte-level BPE ('gpt2') nor SentencePiece ('llama')",
            mend,
        )
    vocabulary = Vocabulary(metadata, where)
    parts = _byte_level(vocabulary, entry("pre")) if kind == "gpt2" else _sentencepiece(vocabulary)

    starts = vocabulary.flag("add_bos_token", kind == "llama" or entry("pre") in _STARTS_WITH_BOS)
    ends = vocabulary.flag("add_eos_token", False)
    around = [vocabulary.special(role) if wanted else None for role, wanted in (("bos", starts), ("eos", ends))]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(*token) for token in vocabulary.added()],
        "post_processor": _template(*around) if starts or ends else None,
        **parts,
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if entry(f"{key}_token_id") is not None:
            config[f"{role}_token"] = vocabulary.special(key)[1]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2).encode(),
    }


def _byte_level(vocabulary: Vocabulary, rule: Any) -> dict[str, Any]:
    """BPE over bytes, with the merges of the file and words cut by its rule."""
    if rule not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise TokenizerError(
            f"{vocabulary.where} cuts words by the rule {rule!r}, which is not one of {known}", vocabulary.mend
        )
    return {
        "normalizer": _NORMALIZERS.get(rule),
        "pre_tokenizer": _PRE_TOKENIZERS[rule],
        "decoder": _GPT2_WORDS,
        "model": _bpe(vocabulary, vocabulary.merges(), ignore_merges=rule == "llama-bpe"),
    }


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    """BPE over characters, spaces written as "▁", characters without a piece as bytes."""
    prefix = vocabulary.flag("add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizers = [{"type": "Prepend", "prepend": SPACE}, spaces] if prefix else [spaces]
    merges = merges_by_score(vocabulary.normal_pieces())
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary, merges, unk_token=vocabulary.unknown(), fuse_unk=True, byte_fallback=True),
    }


def _bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
        "merges": merges,
        **changes,
    }


def _added_token(number: int, token: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": number, "content": token, **flags}


def _template(first: tuple[int, str] | None, last: tuple[int, str] | None) -> dict[str, Any]:
    """A post-processor that puts a token before or after every text, each given as (id, token)."""
    around = [[] if token is None else [{"SpecialToken": {"id": token[1], "type_id": 0}}] for token in (first, last)]
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [*around[0], texts[0], *around[1]],
        "pair": [*around[0], *texts, *around[1]],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]} for number, token in filter(None, (first, last))
        },
    }
