"""Text in and out of the runtime, through the tokenizer that travels in the packed file."""

from collections.abc import Iterator
from typing import Any

from lowbit.errors import DataError, TokenizerError
from lowbit.formats import PackedModel
from lowbit.kernels.runtime import Runtime
from lowbit.llama import LlamaConfig

TOKENIZER_FILE = "tokenizer.json"
_INCOMPLETE = "\ufffd"


class Tokenizer:
    """The tokenizer of a packed model. Needs the `tokenizers` package, which is imported here and nowhere else.

    Raises:
      TokenizerError: the file holds none, it cannot be read, it has more tokens than the model, or the package
        is not installed.
    """

    def __init__(self, packed: PackedModel):
        if TOKENIZER_FILE not in packed.tokenizer:
            raise TokenizerError(
                f"the packed model holds no {TOKENIZER_FILE}",
                "export it from a folder with a tokenizer, or work with token ids",
            )
        self._tokenizer = _load(packed.tokenizer[TOKENIZER_FILE])
        tokens, rows = self._tokenizer.get_vocab_size(), LlamaConfig.from_hf(packed.config).vocab_size
        if tokens > rows:
            raise TokenizerError(
                f"the tokenizer has {tokens} tokens, the model {rows}", "export with the model's own tokenizer"
            )

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, with the special tokens that the tokenizer puts around it."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of tokens, special tokens left out."""
        return str(self._tokenizer.decode(tokens))

    def stream(self, tokens: Iterator[int]) -> Iterator[str]:
        """Yields text piece by piece; a character split over tokens comes whole. Joined, it is `decode` of all."""
        seen: list[int] = []
        shown = ""
        for token in tokens:
            seen.append(token)
            text = self.decode(seen)
            if not text.endswith(_INCOMPLETE) and text.startswith(shown) and text != shown:
                yield text[len(shown) :]
                shown = text
        rest = self.decode(seen)[len(shown) :]
        if rest:
            yield rest


def generate_text(
    runtime: Runtime, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, **sampling: Any
) -> Iterator[str]:
    """Yields the continuation of a prompt as text; `sampling` goes to `Runtime.generate`.

    An empty prompt starts from the config's bos token.

    Raises:
      DataError: an empty prompt for a model without a bos token; otherwise as `Runtime.generate`.
    """
    tokens = tokenizer.encode(prompt)
    if not tokens:
        if runtime.config.bos_token_id is None:
            raise DataError("the prompt is empty and the model has no bos token", "give a prompt")
        tokens = [runtime.config.bos_token_id]
    return tokenizer.stream(runtime.generate(tokens, max_new_tokens, **sampling))


def _load(content: bytes) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError("the tokenizers package is not installed", "pip install tokenizers") from error
    try:
        return tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the package raises bare Exception for a malformed file
        raise TokenizerError(
            f"{TOKENIZER_FILE} in the packed model cannot be read: {error}", "export the model again"
        ) from error
