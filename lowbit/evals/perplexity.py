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
    counted: int | None = None,
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
      counted: of windows that overlap (`OverlappingWindows`), how many predictions at the end of each are new; those
        before are counted in the first window alone. None counts all. `nll_fn` must return `[b t]`.

    Raises:
      DataError: too few windows, a token without byte length, or text that stands for no bytes.
      ValueError: `nll_fn` returned another shape.
    """
    return summarize(window_sums(nll_fn, windows, batch_size, first, byte_lengths, counted))


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class WindowSums:
    """What the windows of a text add up to: `nats` f64[n], `predictions` i64[n], `bytes` in all or None."""

    nats: NDArray[np.float64]
    predictions: NDArray[np.int64]
    bytes: int | None


def window_sums(
    nll_fn: Callable[[NDArray[np.int32]], Any],
    windows: Windows,
    batch_size: int,
    first: int | None = None,
    byte_lengths: NDArray[np.int64] | None = None,
    counted: int | None = None,
) -> WindowSums:
    """Returns what `evaluate` sums up, window by window, as a paired test needs it. Arguments and errors as there."""
    sums: list[NDArray[np.float64]] = []
    predictions: list[int] = []
    size = 0
    for batch, rows in full_batches(windows, batch_size, first):
        nll = np.asarray(nll_fn(batch))
        skipped = 0 if counted is None else batch.shape[1] - 1 - counted
        if skipped < 0 or skipped == batch.shape[1] - 1:
            raise DataError(
                f"{counted} new predictions in windows of {batch.shape[1] - 1}", "ask for 1 up to the window's length"
            )
        for part, begin in _new_predictions(rows, not sums, skipped):
            sums.append(_window_sums(nll, batch.shape, begin)[part])
            targets = batch[part, 1 + begin :]
            predictions += [targets.shape[1]] * targets.shape[0]
            if byte_lengths is not None:
                size += _bytes(targets, byte_lengths)
    return WindowSums(np.concatenate(sums), np.array(predictions, np.int64), size if byte_lengths is not None else None)


def _new_predictions(rows: int, is_start: bool, skipped: int) -> list[tuple[slice, int]]:
    """(rows, first prediction that counts) of a batch: the very first window counts whole."""
    if not is_start or not skipped:
        return [(slice(0, rows), skipped)]
    return [(slice(0, 1), 0), (slice(1, rows), skipped)] if rows > 1 else [(slice(0, 1), 0)]


def _window_sums(nll: NDArray[Any], shape: tuple[int, ...], begin: int) -> NDArray[np.float64]:
    rows, t = shape[0], shape[1] - 1
    if nll.shape == (rows, t):
        return nll[:, begin:].astype(np.float64).sum(axis=1)
    if nll.shape == (rows,) and begin == 0:
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


def summarize(sums: WindowSums) -> Evaluation:
    """Returns the evaluation that windows add up to.

    Raises:
      DataError: they stand for no bytes.
    """
    if sums.bytes == 0:
        raise DataError("the windows stand for no bytes of text", "give text, not only special tokens")
    count, predictions = len(sums.nats), int(sums.predictions.sum())
    nll = float(sums.nats.sum()) / predictions
    # Of a ratio of sums: the windows' deviations from what their lengths let expect.
    deviations = (sums.nats - nll * sums.predictions) * (count / predictions)
    return Evaluation(
        nll=nll,
        stderr=math.sqrt(float(np.square(deviations).sum()) / (count - 1) / count) if count > 1 else None,
        perplexity=math.exp(nll) if nll < 700 else math.inf,  # float64 ends at exp(709.8)
        bits_per_byte=float(sums.nats.sum()) / math.log(2) / sums.bytes if sums.bytes is not None else None,
        tokens=predictions,
        bytes=sums.bytes,
        windows=count,
    )
