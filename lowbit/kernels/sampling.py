"""Choosing the next token from its logits."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import ConfigError
from lowbit.kernels.decoder import softmax


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; refuses impossible values when made.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_k: draw among this many likeliest tokens only; None for all.
      top_p: draw among the fewest tokens that together have this probability (arXiv 1904.09751); None for all.

    Raises:
      ConfigError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature {self.temperature} is out of range", "give 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k {self.top_k} is out of range", "give 1 or more, or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p {self.top_p} is out of range", "give a number above 0 and up to 1, or leave it out"
            )


def sample(logits: NDArray[np.float32], sampling: Sampling, rng: np.random.Generator) -> int:
    """Returns one token from logits f32[V]; top_k is applied first, then top_p to what it left."""
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[: sampling.top_k]
    probabilities = softmax(logits[order].astype(np.float64) / sampling.temperature)
    if sampling.top_p is not None:
        before = np.cumsum(probabilities) - probabilities
        kept = int((before < sampling.top_p).sum())  # the token that crosses top_p is in
        order, probabilities = order[:kept], probabilities[:kept]
    cumulative = np.cumsum(probabilities)
    drawn = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return int(order[min(int(drawn), len(order) - 1)])
