"""How well a model predicts text: nats per token, perplexity and bits per byte.

Nothing here knows a framework: the model is any callable from a batch of tokens to negative log-likelihoods, so the
JAX model and the numpy runtime are measured by the same code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import DataError
from lowbit.evals.batches import Windows, full_batches


@dataclass(frozen=True)
class Evaluation:
    """The result of predicting some text.

    Attributes:
      nll: mean negative log-likelihood, nats/token.
      stderr: standard error of `nll` over windows (each window one sample), nats/token; None for one window.
      perplexity: exp(nll).
      bits_per_byte: total bits over total UTF-8 bytes, comparable across tokenizers; None without byte lengths.
      tokens: number of predictions.
      bytes: UTF-8 bytes that the predicted tokens stand for; None without byte lengths.
      windows: number of windows.
    """

    nll: float
    stderr: float | None
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    bytes: int | None
    windows: int


def evaluate(
    nll_fn: Callable[[NDArray[np.int32]], Any],
    windows: Windows,
    *,
    batch_size: int,
    first: int | None = None,
    byte_lengths: NDArray[np.int64] | None = None,
) -> Evaluation:
    """Predicts every token of the windows but each window's first.

    The last batch is padded to `batch_size` rows and its padding is left out of the sums: no window is dropped.
    Sums are taken in float64.

    Args:
      nll_fn: takes tokens i32 `[b t+1]` and returns nats per token `[b t]`, or summed over each window `[b]`, as any
        array that numpy can read.
      windows: token windows `[n t+1]`, an array or `lowbit.data.TokenWindows`.
      batch_size: b, windows a call.
      first: only the first so many windows; None takes all.
      byte_lengths: bytes per token `[V]` (`lowbit.data.byte_lengths`), for bits per byte.

    Raises:
      DataError: too few windows, a token without byte length, or text that stands for no bytes.
      ValueError: `nll_fn` returned another shape.
    """
    sums: list[NDArray[np.float64]] = []
    predictions = size = 0
    for batch, rows in full_batches(windows, batch_size, first):
        sums.append(_window_sums(np.asarray(nll_fn(batch)), batch.shape)[:rows])
        targets = batch[:rows, 1:]
        predictions += targets.size
        if byte_lengths is not None:
            size += _bytes(targets, byte_lengths)
    nats = np.concatenate(sums)
    return _evaluation(nats, predictions, size if byte_lengths is not None else None)


def _window_sums(nll: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    rows, t = shape[0], shape[1] - 1
    if nll.shape == (rows, t):
        return nll.astype(np.float64).sum(axis=1)
    if nll.shape == (rows,):
        return nll.astype(np.float64)
    raise ValueError(
        f"nll_fn returned shape {list(nll.shape)} for tokens {list(shape)}: return [{rows} {t}] per token or [{rows}] "
        "per window (a sum over the batch would count its padding)"
    )


def _bytes(targets: NDArray[np.int32], byte_lengths: NDArray[np.int64]) -> int:
    if targets.max() >= len(byte_lengths):
        raise DataError(
            f"token {targets.max()} has no byte length, there are {len(byte_lengths)}",
            "take the byte lengths from this model's tokenizer",
        )
    return int(byte_lengths[targets].sum())


def _evaluation(nats: NDArray[np.float64], predictions: int, size: int | None) -> Evaluation:
    if size == 0:
        raise DataError("the windows stand for no bytes of text", "give text, not only special tokens")
    count = len(nats)
    nll = float(nats.sum()) / predictions
    means = nats * (count / predictions)  # windows are equally long
    return Evaluation(
        nll=nll,
        stderr=float(means.std(ddof=1)) / math.sqrt(count) if count > 1 else None,
        perplexity=math.exp(nll) if nll < 700 else math.inf,  # float64 ends at exp(709.8)
        bits_per_byte=float(nats.sum()) / math.log(2) / size if size is not None else None,
        tokens=predictions,
        bytes=size,
        windows=count,
    )
