"""Memory that compiled kernels compute in."""

import threading

import numpy as np
from numpy.typing import NDArray


class Scratch(threading.local):
    """Memory for one call at a time of each thread, kept between calls: threads may compute with one matrix at once."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, needed: int, more: int = 0) -> NDArray[np.uint8]:
        """Returns at least `needed` bytes; `more` are added where they have to be made anew."""
        if self._bytes.nbytes < needed:
            self._bytes = aligned_empty(needed + more)
        return self._bytes


def aligned_empty(size: int) -> NDArray[np.uint8]:
    """Returns uninitialised bytes that start on a cache line."""
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]
