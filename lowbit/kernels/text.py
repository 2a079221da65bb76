"""Text in and out of the runtime, through the tokenizer that travels in the packed file."""

from collections.abc import Iterable, Iterator
from typing import Any

from lowbit.errors import DataError, TokenizerError
from lowbit.formats import PackedModel
from lowbit.kernels.runtime import Runtime
from lowbit.llama import LlamaConfig

TOKENIZER_FILE = "tokenizer.json"
_INCOMPLETE = "\ufffd"
_UNFINISHED_BYTES = 3
"""At most: a character of UTF-8 has four."""


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
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
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

    def stream(self, tokens: Iterable[int], context: Iterable[int] = ()) -> Iterator[str]:
        """Yields text piece by piece; a character split over tokens comes whole.

        Joined, it is what `decode` of context and tokens adds to `decode` of the context: a decoder that takes the
        space from the first token of a text (SentencePiece) leaves it in a continuation.

        Args:
          tokens: to be shown, each read when the text before it was yielded.
          context: tokens before them.
        """
        # Decoding everything at every token would take quadratic time. What a token's text depends on is near it, so
        # only a window is decoded, from the last place but one where text ended whole (its tokens are the context
        # of what follows; special tokens have no text and are none).
        window = [token for token in context if token not in self._special]
        shown, whole = len(self.decode(window)), len(window)
        for token in tokens:
            if token in self._special:
                continue
            window.append(token)
            text = self.decode(window)
            unfinished = len(text) - len(text.rstrip(_INCOMPLETE))
            # Byte fallback loses the whole run of bytes until its last character is finished: wait for that.
            if unfinished and len(window) - whole <= _UNFINISHED_BYTES:
                continue
            settled = len(text) - min(unfinished, _UNFINISHED_BYTES)
            if settled > shown:
                yield text[shown:settled]
                shown = settled
                if not unfinished:
                    del window[:whole]
                    shown, whole = len(self.decode(window)), len(window)
        rest = self.decode(window)[shown:]
        if rest:
            yield rest


def prompt_tokens(tokenizer: Tokenizer, prompt: str, config: LlamaConfig) -> list[int]:
    """Returns the tokens of a prompt; of an empty one, the config's bos token.

    Raises:
      DataError: an empty prompt for a model without a bos token.
    """
    tokens = tokenizer.encode(prompt)
    if tokens:
        return tokens
    if config.bos_token_id is None:
        raise DataError("the prompt is empty and the model has no bos token", "give a prompt")
    return [config.bos_token_id]


def generate_text(
    runtime: Runtime, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, **sampling: Any
) -> Iterator[str]:
    """Yields what follows a prompt, its first space included; `sampling` goes to `Runtime.generate`.

    Raises:
      DataError: as `prompt_tokens` and `Runtime.generate`.
    """
    tokens = prompt_tokens(tokenizer, prompt, runtime.config)
    return tokenizer.stream(runtime.generate(tokens, max_new_tokens, **sampling), tokens)


def _load(content: bytes) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError("the tokenizers package is not installed", "pip install tokenizers") from error
    try:
        library = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the package raises bare Exception for a malformed file
        raise TokenizerError(
            f"{TOKENIZER_FILE} in the packed model cannot be read: {error}", "export the model again"
        ) from error
    # Settings of a training pipeline that some files carry: they would cut a prompt, or add to it.
    library.no_truncation()
    library.no_padding()
    return library
