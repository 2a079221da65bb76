"""What a teacher is asked to write: where texts begin, how they go on, and how many tokens are wanted."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.data import TextTokenizer
from lowbit.errors import ConfigError, DataError
from lowbit.kernels.sampling import Sampling

TOP_50 = Sampling(temperature=1.0, top_k=50)
"""What the reference of LLM-QAT draws with."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Data-free texts as LLM-QAT writes them (arXiv 2305.17888, section 2.1); refuses impossible values when made.

    Text i begins with start token i modulo their number. The teacher goes on with its likeliest token up to a length
    within `greedy`, the next one for each text, then draws. It ends at a special token, or at `length`.

    Attributes:
      tokens: how many are wanted, separators included; the text that reaches them is the last.
      seed: of the draws.
      length: tokens of the longest text, the start token included.
      greedy: the least and the largest length up to which the likeliest token is taken.
      starts: how many tokens of the vocabulary texts begin with, the first ones; None for all.
      sampling: of what follows.
      batch: texts side by side on all devices together.

    Raises:
      ConfigError: a value out of its range.
    """

    tokens: int
    seed: int = 0
    length: int = 1024
    greedy: tuple[int, int] = (3, 5)
    starts: int | None = None
    sampling: Sampling = TOP_50
    batch: int = 1024

    def __post_init__(self) -> None:
        low, high = self.greedy
        for name, value in (("tokens", self.tokens), ("batch", self.batch), ("starts", self.starts)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is out of range", "give 1 or more")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed {self.seed} is out of range", "give one from 0 to 4294967295")
        if self.length < 2:
            raise ConfigError(f"texts of {self.length} tokens are an empty generation", "ask for a length of 2 or more")
        if not 1 <= low <= high < self.length:
            raise ConfigError(
                f"greedy lengths of {low} to {high} in texts of {self.length} tokens",
                "give two ascending numbers from 1 to below the length",
            )

    def identity(self) -> dict[str, Any]:
        """Returns it as JSON, for a manifest."""
        return {**dataclasses.asdict(self), "greedy": list(self.greedy)}


class Texts(NamedTuple):
    """Texts that are about to be written.

    Attributes:
      numbers: i64[b], of the texts: ascending.
      starts: i32[b], their first tokens.
      greedy: i32[b], lengths up to which the likeliest token is taken.
      seeds: u32[b], of their draws.
    """

    numbers: NDArray[np.int64]
    starts: NDArray[np.int32]
    greedy: NDArray[np.int32]
    seeds: NDArray[np.uint32]


def texts(recipe: Recipe, starts: Sequence[int], first: int, count: int) -> Texts:
    """Returns texts `first` to `first + count - 1`, each a function of the recipe's seed and its number alone.

    A second pass over the start tokens takes other greedy lengths and other seeds.

    Args:
      recipe: seed and greedy lengths.
      starts: of `start_tokens`.
      first: number of the first text.
      count: of texts.
    """
    numbers = np.arange(first, first + count, dtype=np.int64)
    passes, places = np.divmod(numbers, len(starts))
    tokens = np.asarray(starts, np.int32)[places]
    low, high = recipe.greedy
    greedy = low + (places + passes) % (high - low + 1)
    seeds = [
        np.random.SeedSequence([recipe.seed, int(number), int(token)]).generate_state(1)[0]
        for number, token in zip(passes, tokens, strict=True)
    ]
    return Texts(numbers, tokens, greedy.astype(np.int32), np.asarray(seeds, np.uint32))


def special_tokens(tokenizer: TextTokenizer, vocab_size: int, eos: Sequence[int]) -> NDArray[np.bool_]:
    """Returns which of the rows of an embedding table end a text and begin none, `[vocab_size]`.

    Those are the tokenizer's special tokens, its separator, the config's end of text, and rows that stand for nothing.
    """
    special = np.ones(vocab_size, bool)
    special[list(tokenizer.backend.get_vocab(with_added_tokens=True).values())] = False
    for index, token in tokenizer.backend.get_added_tokens_decoder().items():
        special[index] |= token.special
    special[[tokenizer.separator, *eos]] = True
    return special


def start_tokens(special: NDArray[np.bool_], count: int | None) -> tuple[int, ...]:
    """Returns the tokens that texts begin with: the first `count` of the vocabulary, or all, without special ones.

    Raises:
      DataError: more than there are.
    """
    ordinary = tuple(np.flatnonzero(~special).tolist())
    if count is not None and count > len(ordinary):
        raise DataError(
            f"{count:,} start tokens, and the vocabulary has {len(ordinary):,} that are no special ones",
            f"ask for {len(ordinary)} or fewer, or leave it out",
        )
    return ordinary[:count]
