"""Batches of one shape for evaluation: the last one is padded, and the padding is never counted."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import DataError


@runtime_checkable
class Windows(Protocol):
    """Token windows that are read a few at a time: an int array `[n t+1]`, or `lowbit.data.TokenWindows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> NDArray[np.integer]: ...


def full_batches(windows: Windows, batch_size: int, first: int | None) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Yields `(batch i32[batch_size t+1], rows)`, where the first `rows` rows are windows and the rest padding.

    Every batch has the same shape, so that a compiled model compiles once; padding repeats the last window.

    Args:
      windows: what to go through, in order.
      batch_size: rows of each batch.
      first: only the first so many windows; None takes all.

    Raises:
      DataError: there are fewer than `first` windows, none at all, or `batch_size` is not positive.
    """
    if batch_size < 1:
        raise DataError(f"an evaluation batch of {batch_size} windows", "ask for at least 1")
    count = len(windows) if first is None else first
    if not 1 <= count <= len(windows):
        raise DataError(
            f"the first {count} windows were asked for, and the text has {len(windows)}",
            "ask for fewer windows, make them shorter, or give more text",
        )
    return _full_batches(windows, batch_size, count)


def _full_batches(windows: Windows, batch_size: int, count: int) -> Iterator[tuple[NDArray[np.int32], int]]:
    for start in range(0, count, batch_size):
        rows = min(batch_size, count - start)
        batch = np.asarray(windows[start : start + rows], np.int32)
        if batch.ndim != 2 or batch.shape[1] < 2:
            raise DataError(
                f"windows of shape {list(batch.shape)}", "give token windows [n t+1] with at least one prediction"
            )
        yield np.concatenate([batch, np.repeat(batch[-1:], batch_size - rows, axis=0)]), rows
