"""From a context and its continuation as text to the tokens that are scored."""

from collections.abc import Sequence

from lowbit.data import TextTokenizer
from lowbit.errors import DataError
from lowbit.evals.scoring import Request
from lowbit.llama import LlamaConfig


def first_token(cfg: LlamaConfig, tokenizer: TextTokenizer) -> int:
    """Returns what stands before a text that has no context: the model's first token, or what separates documents."""
    return cfg.bos_token_id if cfg.bos_token_id is not None else tokenizer.separator


def encode_pairs(tokenizer: TextTokenizer, pairs: Sequence[tuple[str, str]], prefix: int) -> list[Request]:
    """Encodes (context, continuation) pairs as lm-evaluation-harness 0.4 does for causal models.

    Context and continuation are encoded as one text, and cut at the number of tokens that the context has alone;
    spaces at the context's end belong to the continuation. Special tokens are those that `tokenizer.json` itself adds.

    Args:
      tokenizer: of the model.
      pairs: a context may be empty.
      prefix: the token that stands in place of an empty context.

    Raises:
      DataError: a continuation that adds no token to its context.
    """
    moved = [_spaces_to_continuation(*pair) for pair in pairs]
    contexts = _encode(tokenizer, [context for context, _ in moved])
    wholes = _encode(tokenizer, [context + continuation for context, continuation in moved])
    alone = tokenizer.encode([continuation for _, continuation in moved])
    requests = []
    for (context, continuation), before, whole, after in zip(moved, contexts, wholes, alone, strict=True):
        if context:
            request = Request(tuple(before), tuple(whole[len(before) :]))
        elif after[:1] == [prefix]:
            request = Request((prefix,), tuple(after[1:]))
        else:
            request = Request((prefix,), tuple(after))
        if not request.continuation:
            raise DataError(
                f"the continuation {continuation!r} adds no token to {context[-40:]!r}", "mend or leave out this item"
            )
        requests.append(request)
    return requests


def _encode(tokenizer: TextTokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=True)]


def _spaces_to_continuation(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
