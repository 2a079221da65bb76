"""Likelihoods from the numpy runtime."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import DataError
from lowbit.evals.predictor import Logits, Predictor, Scores
from lowbit.formats import PackedModel
from lowbit.kernels import Runtime

LOGITS_AT_ONCE = 1 << 24
"""float32 logits in memory: 64 MB."""


def predictor(packed: PackedModel) -> Predictor:
    """Returns a predictor that runs a packed file as `generate` does."""
    runtime = Runtime(packed)

    def make_nll(batch: int, length: int, separator: int | None) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
        if separator is not None:
            raise DataError("the numpy runtime does not keep documents apart", "add --backend jax")
        return lambda tokens: token_scores(runtime, tokens)[0]

    def make_scores(batch: int) -> Scores:
        return lambda tokens: token_scores(runtime, tokens)

    def make_logits(batch: int) -> Logits:
        return runtime.forward

    return Predictor(runtime.config, packed.tokenizer, "numpy", make_nll, make_scores, make_logits)


def token_scores(runtime: Runtime, tokens: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns (negative log-likelihood in nats of each token, likeliest token in its place), f64 and i64[b t].

    Args:
      runtime: the model.
      tokens: i32[b t+1]; the first of each row is not predicted.

    Raises:
      DataError: as `Runtime.forward`.
    """
    hidden = runtime.hidden(tokens[:, :-1])
    states, targets = hidden.reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1)
    rows = max(1, LOGITS_AT_ONCE // runtime.config.vocab_size)
    parts = [
        _scores(runtime.head(states[start : start + rows]), targets[start : start + rows])
        for start in range(0, len(states), rows)
    ]
    nll, top = (np.concatenate(values).reshape(len(tokens), -1) for values in zip(*parts, strict=True))
    return nll, top


def _scores(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_norm = np.log(np.exp(shifted).sum(axis=-1, dtype=np.float64))
    nll = log_norm - np.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
    return nll, logits.argmax(axis=-1)
