"""Which texts are worth learning from: neither cut short, nor repetitive, nor there already.

Small models left to themselves fall into loops; of each text two measures see that. Of 300 pieces of 1,024 tokens of
encyclopedia, novels and textbooks, 99 % have a `repeated_share` below 0.10 and a `compression` below 2.5, none exceeds
0.16 and 2.6: the thresholds drop what no such text is.
"""

import dataclasses
import math
import zlib
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import ConfigError
from lowbit.synthesis.duplicates import Duplicates, ngrams

Reason = Literal["short", "repeated", "compressible", "duplicate", "near_duplicate"]
"""Why a text is left out; the first that applies."""
REASONS: tuple[Reason, ...] = get_args(Reason)
NGRAM = 4


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is kept; refuses impossible values when made.

    Attributes:
      min_tokens: shorter texts are "short".
      max_repeated: largest share of a text's 4-grams that have occurred before in it ("repeated"); 1 keeps all.
      max_compression: largest number of times that zlib makes its bytes fewer ("compressible").
      near_duplicates: texts that share this part of their 5-grams with one that was kept, or more, are
        "near_duplicate", by an estimate (see `duplicates`); equal ones are "duplicate".

    Raises:
      ConfigError: a value out of its range.
    """

    min_tokens: int = 32
    max_repeated: float = 0.2
    max_compression: float = 3.0
    near_duplicates: float = 0.8

    def __post_init__(self) -> None:
        for name, value, valid, mend in (
            ("min_tokens", self.min_tokens, self.min_tokens >= 1, "give 1 or more"),
            ("max_repeated", self.max_repeated, 0 <= self.max_repeated <= 1, "give a share from 0 to 1"),
            (
                "max_compression",
                self.max_compression,
                math.isfinite(self.max_compression) and self.max_compression > 0,
                "give a ratio above 0, such as 4",
            ),
            ("near_duplicates", self.near_duplicates, 0 < self.near_duplicates <= 1, "give a share above 0, up to 1"),
        ):
            if not valid:
                raise ConfigError(f"{name}={value} is out of range", mend)

    def reason(self, tokens: NDArray[np.int32], content: bytes, seen: Duplicates) -> Reason | None:
        """Returns why a text is left out; None keeps it, and enters it among those that are seen.

        Args:
          tokens: of the text, without its separator.
          content: its UTF-8 bytes.
          seen: the texts that were kept before.
        """
        if len(tokens) < self.min_tokens:
            return "short"
        if repeated_share(tokens) > self.max_repeated:
            return "repeated"
        if compression(content) > self.max_compression:
            return "compressible"
        return seen.add(tokens)


def repeated_share(tokens: NDArray[np.int32], n: int = NGRAM) -> float:
    """Returns the share of a text's n-grams that have occurred before in it: 0 where all differ.

    Of tokens `[t]`, 1 - (different n-grams) / (t - n + 1); 0 for fewer than n tokens.
    """
    if len(tokens) < n:
        return 0.0
    grams = ngrams(tokens, n)
    return 1.0 - len(np.unique(grams)) / len(grams)


def compression(content: bytes) -> float:
    """Returns how many times zlib makes a text smaller: about 2 for a page of prose, more for what repeats itself."""
    return len(content) / len(zlib.compress(content)) if content else 0.0
