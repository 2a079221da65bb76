"""How far a model is from a reference: divergence of its predictions and agreement on the likeliest token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbit.evals.batches import Windows, full_batches

_CHUNK_VALUES = 1 << 22  # logits in float64 at a time: 32 MiB an array


@dataclass(frozen=True)
class Agreement:
    """Two models over the same positions.

    Attributes:
      kl: mean over positions of KL(reference || candidate), nats.
      top1: share of positions where both hold the same token likeliest, 0 to 1 (the lowest id of equal ones).
      max_abs: largest difference between two logits.
      positions: number of positions.
      kl_stderr: standard error of `kl` over windows; None without windows, or for one.
      top1_stderr: the same of `top1`.
    """

    kl: float
    top1: float
    max_abs: float
    positions: int
    kl_stderr: float | None = None
    top1_stderr: float | None = None


def compare_logits(reference: Any, candidate: Any) -> Agreement:
    """Compares two arrays of logits `[... V]`, a few positions at a time and in float64.

    Both may be numpy, memory-mapped or JAX arrays of any float type; there is never a float64 copy of the whole.

    Raises:
      ValueError: the shapes differ or hold no position.
    """
    total = _Totals()
    total.add(reference, candidate)
    return total.agreement()


def compare_models(
    reference_fn: Callable[[NDArray[np.int32]], Any],
    candidate_fn: Callable[[NDArray[np.int32]], Any],
    windows: Windows,
    *,
    batch_size: int,
    first: int | None = None,
) -> Agreement:
    """Compares two models on every position of the windows that predicts a token.

    Args:
      reference_fn: the model to be near to: tokens i32 `[b t]` -> logits `[b t V]`.
      candidate_fn: the model compared with it.
      windows: token windows `[n t+1]`; the last token of each is only a target and is not fed.
      batch_size: windows a call; the last batch is padded, its padding not counted.
      first: only the first so many windows; None takes all.

    Raises:
      DataError: there are too few windows.
      ValueError: the models return different shapes.
    """
    total = _Totals()
    for batch, rows in full_batches(windows, batch_size, first):
        inputs = batch[:, :-1]
        reference, candidate = reference_fn(inputs), candidate_fn(inputs)
        for row in range(rows):  # one at a time: windows are the samples of the standard errors
            total.add(reference[row], candidate[row])
    return total.agreement(windows=True)


class _Totals:
    """Sums over positions, so that the logits of all windows never stand in memory together."""

    def __init__(self) -> None:
        self.kl = 0.0
        self.same = 0
        self.max_abs = 0.0
        self.positions = 0
        self.parts: list[tuple[float, float]] = []

    def add(self, reference: Any, candidate: Any) -> None:
        if reference.shape != candidate.shape or 0 in reference.shape or not reference.shape:
            raise ValueError(
                f"logits of shapes {list(reference.shape)} and {list(candidate.shape)}: both must be the same [... V]"
            )
        vocab, kl, same, positions = reference.shape[-1], self.kl, self.same, self.positions
        reference, candidate = reference.reshape(-1, vocab), candidate.reshape(-1, vocab)
        chunk = max(1, _CHUNK_VALUES // vocab)
        for start in range(0, len(reference), chunk):
            p = np.asarray(reference[start : start + chunk]).astype(np.float64)
            q = np.asarray(candidate[start : start + chunk]).astype(np.float64)
            self.same += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
            # np.maximum, unlike max(), lets a NaN through: a broken model must not look like a perfect one.
            self.max_abs = float(np.maximum(self.max_abs, np.abs(p - q).max()))
            p, q = _log_softmax(p), _log_softmax(q)
            self.kl += float((np.exp(p) * (p - q)).sum())
            self.positions += len(p)
        added = self.positions - positions
        self.parts.append(((self.kl - kl) / added, (self.same - same) / added))

    def agreement(self, *, windows: bool = False) -> Agreement:
        n, parts = self.positions, len(self.parts)
        errors = np.std(self.parts, axis=0, ddof=1) / parts**0.5 if windows and parts > 1 else None
        kl_stderr, top1_stderr = (None, None) if errors is None else map(float, errors)
        return Agreement(self.kl / n, self.same / n, self.max_abs, n, kl_stderr, top1_stderr)


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
