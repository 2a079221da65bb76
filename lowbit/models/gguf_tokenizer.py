"""A byte-level BPE tokenizer out of GGUF metadata, as a tokenizer.json.

GGUF stores the vocabulary, the merges and the name of the rule that cuts text into words. The file for the
`tokenizers` library is put together from those, so that neither torch nor the original model is needed.
"""

import json
from collections.abc import Mapping
from typing import Any

from lowbit.errors import TokenizerError

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type

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


def tokenizer_from_metadata(metadata: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Returns tokenizer.json and tokenizer_config.json for the tokenizer that GGUF metadata describes.

    Args:
      metadata: all fields of the file, as Python values.
      where: the file's name, for messages.

    Raises:
      TokenizerError: no tokenizer, one that is not byte-level BPE, or a word rule that is not known.
    """

    def entry(key: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}")

    kind, rule = entry("model"), entry("pre")
    mend = f"put the model's tokenizer.json beside {where}"
    if kind is None:
        raise TokenizerError(f"{where} has no tokenizer", mend)
    if kind != "gpt2":
        raise TokenizerError(f"{where} has a tokenizer of kind {kind!r}, not byte-level BPE ('gpt2')", mend)
    if rule not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise TokenizerError(f"{where} cuts words by the rule {rule!r}, which is not one of {known}", mend)

    tokens, kinds = entry("tokens"), entry("token_type")
    starts_with_bos = entry("add_bos_token")
    if starts_with_bos is None:
        starts_with_bos = rule in _STARTS_WITH_BOS
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(number, token, special=kind == _CONTROL)
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": _NORMALIZERS.get(rule),
        "pre_tokenizer": _PRE_TOKENIZERS[rule],
        "post_processor": _starts_with(tokens, entry("bos_token_id")) if starts_with_bos else None,
        "decoder": _GPT2_WORDS,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule == "llama-bpe",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in entry("merges")],
        },
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = entry(f"{key}_token_id")
        if number is not None:
            config[f"{role}_token"] = tokens[number]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2).encode(),
    }


def _added_token(number: int, token: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": number, "content": token, **flags}


def _starts_with(tokens: list[str], bos: int) -> dict[str, Any]:
    """A post-processor that puts bos before every text."""
    special = {"SpecialToken": {"id": tokens[bos], "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, second],
        "special_tokens": {tokens[bos]: {"id": tokens[bos], "ids": [bos], "tokens": [tokens[bos]]}},
    }
