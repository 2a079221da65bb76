"""A `tokenizer.json` as text and evaluation need it: ids, the document separator, and bytes per token."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from lowbit.errors import TokenizerError

# Checkpoints pad the embedding table to a round number (Qwen2: 151,665 tokens in 151,936 rows); a gap beyond
# this share of the vocabulary means that the tokenizer belongs to another model.
MAX_PADDED_SHARE = 0.02


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer and the token that stands between two documents.

    Attributes:
      backend: the loaded `tokenizers.Tokenizer`, with truncation and padding switched off.
      separator: id of the token written after every document.
      vocab_size: number of rows in the model's embedding table; every id is below it.
    """

    backend: tokenizers.Tokenizer
    separator: int
    vocab_size: int

    @classmethod
    def load(
        cls,
        source: str | Path | Mapping[str, bytes],
        *,
        vocab_size: int | None = None,
        separator: str | int | None = None,
    ) -> "TextTokenizer":
        """Reads a tokenizer and checks that it belongs to a model.

        Args:
          source: a `tokenizer.json`, the folder that holds one, or the folder's files as bytes.
          vocab_size: rows of the model's embedding table; None trusts the tokenizer's own size.
          separator: the token between documents, as text or id; None takes `eos_token`, or `bos_token` where
            there is none, from `tokenizer_config.json`.

        Raises:
          TokenizerError: the file is missing or unreadable, the sizes differ, or no separator is known.
        """
        files, place = _files(source)
        backend = _parse(files, place)
        size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if size == 0:
            raise TokenizerError(f"{place} holds no tokens", "train it, or fetch it again with the model")
        rows = size if vocab_size is None else vocab_size
        if size > rows or rows - size > MAX_PADDED_SHARE * rows:
            raise TokenizerError(
                f"{place} has {size:,} tokens, the model's vocabulary {rows:,}",
                "use the tokenizer that was saved with this model",
            )
        return cls(backend, _separator(backend, files, place, separator), rows)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of each text, without any special token around it."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int] | NDArray[np.integer]) -> str:
        """Returns the text of a sequence of ids; special tokens are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def fingerprint(self) -> str:
        """Returns a SHA-256 over every token with its id, and over the merges in their order.

        Equal for one tokenizer in two spellings (a Hugging Face file, and the one rebuilt from GGUF metadata), as the
        ids mean the same text; the token between documents is not part of it.
        """
        model = json.loads(self.backend.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
        vocabulary = sorted(self.backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[::-1])
        return hashlib.sha256(json.dumps([vocabulary, merges]).encode()).hexdigest()


def byte_lengths(tokenizer: TextTokenizer) -> NDArray[np.int64]:
    """Returns how many UTF-8 bytes of text each token stands for, `[vocab_size]`.

    A special token, and a padding row of the embedding table, stands for none. The sum over the tokens of a
    document is its size in bytes, so that nats/token becomes bits/byte from the tokens alone. (A tokenizer that
    puts a space in front of each document counts that space too, and one that normalizes counts what it made.)

    Raises:
      TokenizerError: the tokenizer is neither byte-level nor a byte-fallback (SentencePiece) BPE or unigram.
    """
    spec = json.loads(tokenizer.backend.to_str())
    added = {token["content"]: token for token in spec["added_tokens"]}
    length = _length_of(spec)
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if token not in added:
            lengths[index] = length(token)
        elif not added[token]["special"]:
            lengths[index] = len(token.encode())
    return lengths


def _byte_level_length(token: str) -> int:
    """Byte-level BPE writes every byte as one printable character."""
    return len(token)


def _byte_fallback_length(token: str) -> int:
    """SentencePiece writes text as it is, a space as U+2581, and a byte that it has no piece for as `<0xNN>`."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\u2581", " ").encode())


def _length_of(spec: dict[str, Any]) -> Callable[[str], int]:
    decoder = spec["decoder"] or {}
    parts = decoder.get("decoders", [decoder])
    if any(part.get("type") == "ByteLevel" for part in parts):
        return _byte_level_length
    if spec["model"].get("byte_fallback"):
        return _byte_fallback_length
    raise TokenizerError(
        f"a {spec['model']['type']} tokenizer without bytes (neither byte-level nor byte fallback) can lose text",
        "report nats per token for this model; bits per byte needs a byte-level or byte-fallback tokenizer",
    )


def _files(source: str | Path | Mapping[str, bytes]) -> tuple[Mapping[str, bytes], str]:
    if isinstance(source, Mapping):
        return source, "the model's tokenizer.json"
    path = Path(source)
    folder, place = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    if not place.is_file():
        raise TokenizerError(f"no tokenizer at {place}", "give a folder that holds tokenizer.json, or that file")
    files = {"tokenizer.json": place.read_bytes()}
    config = folder / "tokenizer_config.json"
    if config.is_file():
        files["tokenizer_config.json"] = config.read_bytes()
    return files, str(place)


def _parse(files: Mapping[str, bytes], place: str) -> tokenizers.Tokenizer:
    if "tokenizer.json" not in files:
        raise TokenizerError(
            "the model comes without tokenizer.json", "save it with its fast tokenizer, or name a tokenizer folder"
        )
    try:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # the library raises bare Exceptions for every defect of the file
        raise TokenizerError(f"{place} cannot be read: {error}", "fetch it again with its model") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _separator(backend: tokenizers.Tokenizer, files: Mapping[str, bytes], place: str, wanted: str | int | None) -> int:
    if isinstance(wanted, int):
        if backend.id_to_token(wanted) is None:
            raise TokenizerError(f"{place} has no token {wanted}", "name the separator by its text or a valid id")
        return wanted
    name = wanted if wanted is not None else _document_end(files, place)
    if name is None:
        raise TokenizerError(
            f"{place} does not say which token ends a document",
            "name the separator, or put tokenizer_config.json with an eos_token beside it",
        )
    index = backend.token_to_id(name)
    if index is None:
        raise TokenizerError(f"{place} has no token {name!r}", "name a separator that the tokenizer knows")
    return index


def _document_end(files: Mapping[str, bytes], place: str) -> str | None:
    where = f"tokenizer_config.json beside {place}"
    try:
        config = json.loads(files.get("tokenizer_config.json", b"{}"))
    except ValueError as error:
        raise TokenizerError(f"{where} cannot be read: {error}", "fetch it again with its model") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{where} does not hold a JSON object", "fetch it again with its model")
    token = config.get("eos_token") or config.get("bos_token")
    if isinstance(token, dict):  # older files describe the token in full
        token = token.get("content")
    if token is not None and not isinstance(token, str):
        raise TokenizerError(f"{where} names {token!r} as the end of a document", "write the token's text there")
    return token
