"""The vocabulary in GGUF metadata, checked as it is read: a file may lack any of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from lowbit.errors import TokenizerError

# Of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


class Vocabulary:
    """Tokens in the order of their ids, and what the metadata says of them.

    Args:
      metadata: all fields of the file, as Python values.
      where: the file's name, for messages.

    Raises:
      TokenizerError: tokens or their types are missing or malformed; from each method, what it reads is.
    """

    def __init__(self, metadata: Mapping[str, Any], where: str):
        self._metadata = metadata
        self.where = where
        self.mend = f"put the model's tokenizer.json beside {where}"
        self.tokens: list[str] = self._list("tokens", str)
        self._kinds: list[int] = self._list("token_type", int, len(self.tokens))

    def special(self, role: str) -> tuple[int, str]:
        """Returns (id, token) of the role "bos", "eos", "unknown" or "padding"."""
        number = self._entry(f"{role}_token_id")
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise self._fault(f"{role}_token_id", f"is {number}, not one of its {len(self.tokens)} tokens")
        return number, self.tokens[number]

    def unknown(self) -> str | None:
        """Returns the token of what no other token covers, or None."""
        if self._entry("unknown_token_id") is not None:
            return self.special("unknown")[1]
        return next((token for token, kind in zip(self.tokens, self._kinds, strict=True) if kind == _UNKNOWN), None)

    def added(self) -> Iterator[tuple[int, str, bool]]:
        """Yields (id, token, whether it is special) of tokens that are found in a text before it is cut."""
        for number, (token, kind) in enumerate(zip(self.tokens, self._kinds, strict=True)):
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
                yield number, token, kind != _USER_DEFINED

    def normal_pieces(self) -> dict[str, float]:
        """Returns the score of each token that text is cut into, in the order of ids."""
        scores = self._list("scores", float, len(self.tokens))
        if len(scores) > 1 and len(set(scores)) == 1:  # so converters write a vocabulary whose scores they do not know
            raise self._fault("scores", f"gives every token {scores[0]:g}, which puts them in no order")
        pieces = zip(self.tokens, self._kinds, scores, strict=True)
        return {token: score for token, kind, score in pieces if kind == _NORMAL}

    def merges(self) -> list[tuple[str, str]]:
        """Returns the pairs that byte-level BPE joins, first one first."""
        pairs = [tuple(merge.split(" ")) for merge in self._list("merges", str)]
        known = set(self.tokens)
        for pair in pairs:
            if len(pair) != 2 or not {*pair, "".join(pair)} <= known:
                raise self._fault("merges", f"holds {' '.join(pair)!r}, which does not join two tokens to a third")
        return [(left, right) for left, right in pairs]

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false; `default` where the file does not say."""
        value = self._entry(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._fault(key, f"is {value!r}, not true or false")
        return value

    def _entry(self, key: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}")

    def _list(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        values = self._entry(key)
        if not isinstance(values, list) or not values or not all(isinstance(value, kind) for value in values):
            raise self._fault(key, f"is not a list of {kind.__name__}")
        if length is not None and len(values) != length:
            raise self._fault(key, f"has {len(values)} entries for {length} tokens")
        return values

    def _fault(self, key: str, fault: str) -> TokenizerError:
        return TokenizerError(f"tokenizer.ggml.{key} of {self.where} {fault}", self.mend)
