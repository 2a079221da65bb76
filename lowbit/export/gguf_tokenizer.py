"""A tokenizer.json as GGUF metadata: byte-level BPE with its merges, or the BPE of SentencePiece with scores."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers

from lowbit.errors import TokenizerError
from lowbit.llama import LlamaConfig
from lowbit.models.gguf_tokenizer import word_rule
from lowbit.models.sentencepiece_bpe import SPACE, merges_by_score

NO_VOCABULARY: Mapping[str, Any] = {"tokenizer.ggml.model": "no_vocab"}
"""What a model without a tokenizer says: token ids in, logits out."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


def tokenizer_metadata(files: Mapping[str, bytes], cfg: LlamaConfig, pre: str | None = None) -> dict[str, Any]:
    """Returns the `tokenizer.*` keys.

    Args:
      files: of a Hugging Face folder, by name; none at all gives `NO_VOCABULARY`.
      cfg: the model, whose vocabulary is filled up with unused tokens.
      pre: llama.cpp's name of the rule that cuts text into words; None finds it by the rule itself.

    Raises:
      TokenizerError: no tokenizer.json, a kind that llama.cpp has no match for, or a rule that is not known.
    """
    if not files:
        return dict(NO_VOCABULARY)
    if "tokenizer.json" not in files:
        raise TokenizerError(
            f"of the tokenizer there is {', '.join(sorted(files))}, but no tokenizer.json",
            "save it with a fast tokenizer of transformers, which writes tokenizer.json",
        )
    return _Tokenizer(files, cfg).metadata(pre)


class _Tokenizer:
    """What the files say, taken apart."""

    def __init__(self, files: Mapping[str, bytes], cfg: LlamaConfig):
        try:
            self.library = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # the package raises bare Exception for a malformed file
            raise TokenizerError(f"tokenizer.json cannot be read: {error}", "export the model again") from error
        self.content: dict[str, Any] = json.loads(files["tokenizer.json"])
        self.model: dict[str, Any] = self.content["model"]
        self.names: dict[str, Any] = json.loads(files.get("tokenizer_config.json", b"{}"))
        self.template = files["chat_template.jinja"].decode() if "chat_template.jinja" in files else None
        self.cfg = cfg
        if self.model.get("type") != "BPE":
            raise _unsupported(f"its model is {self.model.get('type')}, not BPE")

    def metadata(self, pre: str | None) -> dict[str, Any]:
        """Returns the `tokenizer.*` keys."""
        self.vocabulary, kinds = self._vocabulary()
        kind = self._sentencepiece(kinds) if self.model.get("byte_fallback") else self._byte_level(pre)
        template = self.template or self.names.get("chat_template")
        return {
            **kind,
            "tokenizer.ggml.tokens": self.vocabulary,
            "tokenizer.ggml.token_type": np.array(kinds, np.int32),
            **self._special(),
            **({"tokenizer.chat_template": template} if isinstance(template, str) else {}),
        }

    def _vocabulary(self) -> tuple[list[str], list[int]]:
        """Returns tokens in the order of ids and their kinds, filled up to the rows of the embedding."""
        ids = {number: token for token, number in self.library.get_vocab(with_added_tokens=True).items()}
        if ids and max(ids) >= self.cfg.vocab_size:
            raise TokenizerError(
                f"the tokenizer has a token {max(ids)}, the model {self.cfg.vocab_size} rows",
                "export with the model's own tokenizer",
            )
        tokens = [ids.get(number, f"[PAD{number}]") for number in range(self.cfg.vocab_size)]
        kinds = [_NORMAL if number in ids else _UNUSED for number in range(self.cfg.vocab_size)]
        for number, entry in self.library.get_added_tokens_decoder().items():
            kinds[number] = _CONTROL if entry.special else _USER_DEFINED
        return tokens, kinds

    def _byte_level(self, pre: str | None) -> dict[str, Any]:
        rule = pre or word_rule(self.content.get("pre_tokenizer"), self.content.get("normalizer"))
        if rule is None:
            raise TokenizerError(
                "llama.cpp knows rules that cut text into words by name, and this tokenizer's rule has none here",
                "name the rule that llama.cpp has for this model: --pre NAME",
            )
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in self.model["merges"]]
        return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule, "tokenizer.ggml.merges": merges}

    def _sentencepiece(self, kinds: list[int]) -> dict[str, Any]:
        for number, token in enumerate(self.vocabulary):
            if token == self.model.get("unk_token"):
                kinds[number] = _UNKNOWN
            elif kinds[number] == _NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                kinds[number] = _BYTE
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": self._scores(kinds),
            "tokenizer.ggml.add_space_prefix": self._adds_space(),
        }

    def _scores(self, kinds: list[int]) -> np.ndarray:
        """Scores f32[V] that join pieces in the order of the merges; a later merge has a lower score.

        tokenizer.json has lost the scores of SentencePiece, but not their order, which is all that cutting text reads.
        """
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in self.model["merges"]]
        rank: dict[str, int] = {}
        for left, right in merges:
            rank.setdefault(left + right, len(rank))
        scores = np.zeros(len(kinds), np.float32)
        pieces = {}
        for number, (piece, kind) in enumerate(zip(self.vocabulary, kinds, strict=True)):
            if kind == _NORMAL:
                scores[number] = -float(rank.get(piece, len(rank) + number))
                pieces[piece] = float(scores[number])
        if [left + right for left, right in merges_by_score(pieces)] != [left + right for left, right in merges]:
            raise _unsupported("its merges are not those of one score for each piece, as SentencePiece has them")
        return scores

    def _adds_space(self) -> bool:
        """Whether a text gets a space in front."""
        normalizer, words = self.content.get("normalizer"), self.content.get("pre_tokenizer")
        steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
        kinds = [step["type"] for step in steps]
        if words is None and kinds in (["Prepend", "Replace"], ["Replace"]):
            return kinds[0] == "Prepend"
        if not kinds and words is not None and words["type"] == "Metaspace" and words.get("replacement") == SPACE:
            scheme: str = words.get("prepend_scheme", "always")
            return scheme != "never"
        raise _unsupported("it treats spaces in a way that llama.cpp does not have")

    def _special(self) -> dict[str, Any]:
        plain = self.library.encode("a", add_special_tokens=False).ids
        whole = self.library.encode("a").ids
        start = whole.index(plain[0]) if plain[0] in whole else 0
        before, after = whole[:start], whole[start + len(plain) :]
        bos = self.cfg.bos_token_id if self.cfg.bos_token_id is not None else self._id_of("bos_token")
        eos = [*self.cfg.eos_token_ids, self._id_of("eos_token")]
        if eos[0] is None:
            raise TokenizerError(
                "the model has no token that ends a text, and llama.cpp would take one of the vocabulary for it",
                "set eos_token_id in config.json",
            )
        if before not in ([], [bos]) or after not in ([], [eos[0]]):
            raise _unsupported("it puts other tokens around a text than the model's first and last")
        found = {
            "bos_token_id": bos,
            "eos_token_id": eos[0],
            # A second one ends a turn, as in models that were taught to chat.
            "eot_token_id": eos[1] if len(self.cfg.eos_token_ids) > 1 else None,
            "unknown_token_id": self._id_of("unk_token"),
            "padding_token_id": self._id_of("pad_token"),
            "add_bos_token": bool(before),
            "add_eos_token": bool(after),
        }
        return {f"tokenizer.ggml.{key}": value for key, value in found.items() if value is not None}

    def _id_of(self, role: str) -> int | None:
        """Returns the id of a token that tokenizer_config.json names, or None."""
        named = self.names.get(role)
        content = named.get("content") if isinstance(named, dict) else named
        return None if content is None else self.library.token_to_id(content)


def _unsupported(fault: str) -> TokenizerError:
    return TokenizerError(
        f"llama.cpp has no tokenizer like this one: {fault}",
        "export a model with byte-level BPE or SentencePiece's BPE",
    )
