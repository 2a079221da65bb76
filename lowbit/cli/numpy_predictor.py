"""Likelihoods from the numpy runtime."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lowbit.cli.evaluate import Predictor
from lowbit.cli.usage import UsageError
from lowbit.formats import PackedModel
from lowbit.kernels import Runtime

LOGITS_AT_ONCE = 1 << 24
"""float32 logits in memory: 64 MB."""


def predictor(packed: PackedModel) -> Predictor:
    """Returns a predictor that runs a packed file as `generate` does."""
    runtime = Runtime(packed)

    def make_nll(batch: int, length: int, separator: int | None) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
        if separator is not None:
            raise UsageError("the numpy runtime does not keep documents apart", "add --backend jax")
        return lambda tokens: token_nll(runtime, tokens)

    return Predictor(runtime.config, packed.tokenizer, "numpy", make_nll)


def token_nll(runtime: Runtime, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """Returns each token's negative log-likelihood, f64[b t] of i32[b t+1], in nats.

    Raises:
      DataError: as `Runtime.forward`.
    """
    hidden = runtime.hidden(tokens[:, :-1])
    states, targets = hidden.reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1)
    rows = max(1, LOGITS_AT_ONCE // runtime.config.vocab_size)
    parts = [
        _nll(runtime.head(states[start : start + rows]), targets[start : start + rows])
        for start in range(0, len(states), rows)
    ]
    return np.concatenate(parts).reshape(tokens.shape[0], -1)


def _nll(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_norm = np.log(np.exp(shifted).sum(axis=-1, dtype=np.float64))
    return log_norm - np.take_along_axis(shifted, targets[:, None], axis=-1)[:, 0]
