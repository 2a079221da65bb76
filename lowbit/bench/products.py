"""Times of single matrix products, with weights that come from memory: more copies of them than the caches hold."""

import dataclasses
import time

import numpy as np

from lowbit.bench.random_model import random_tensor
from lowbit.kernels import library
from lowbit.kernels.matrix import CompiledMatrix
from lowbit.kernels.scratch import aligned_empty

TOTAL_BYTES = 160 << 20
"""Of all copies: five times a third-level cache of 32 MiB."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A product x[batch k] @ w[k n] to be timed.

    Attributes:
      k: inputs.
      n: outputs.
      bits: of the codes; 32 is numpy's float32, through BLAS.
      batch: tokens.
      threads: that share it.
      groups: of scales along k.
    """

    k: int
    n: int
    bits: float
    batch: int
    threads: int
    groups: int = 1


class Stream:
    """Copies of one matrix, multiplied one after another."""

    def __init__(self, case: Product, isa: str):
        rng = np.random.default_rng(0)
        w = random_tensor(case.k, case.n, case.bits, rng, case.groups)
        self._matrix = CompiledMatrix(w, isa, case.threads)
        codes = self._matrix.codes
        self.nbytes = codes.nbytes + w.scale.nbytes
        self._copies = max(2, TOTAL_BYTES // codes.nbytes)
        self._all = aligned_empty(self._copies * codes.nbytes)
        self._all.reshape(self._copies, -1)[:] = codes
        self._x = rng.normal(size=(case.batch, case.k)).astype(np.float32)
        self._y = np.empty((case.batch, case.n), np.float32)

    def set_threads(self, threads: int) -> None:
        """Sets how many share a product."""
        self._matrix.threads = threads

    def seconds(self) -> float:
        """Returns the time of one product, the mean over the copies."""
        step = self._all.nbytes // self._copies
        began = time.perf_counter()
        for copy in range(self._copies):
            self._matrix.struct.data = self._all.ctypes.data + copy * step
            self._matrix.matmul_into(self._x, self._y, library.INT8)
        return (time.perf_counter() - began) / self._copies


class FloatStream:
    """The same in numpy's float32, weights [n k]."""

    def __init__(self, case: Product):
        rng = np.random.default_rng(0)
        self.nbytes = 4 * case.k * case.n
        copies = max(2, TOTAL_BYTES // self.nbytes)
        self._w = rng.standard_normal((copies, case.n, case.k), dtype=np.float32)
        self._x = rng.standard_normal((case.k, case.batch), dtype=np.float32)

    def seconds(self) -> float:
        """Returns the time of one product, the mean over the copies."""
        began = time.perf_counter()
        for w in self._w:
            w @ self._x
        return (time.perf_counter() - began) / len(self._w)


class Reading:
    """Sums bytes and does nothing else: what memory gives."""

    def __init__(self, isa: str):
        self._isa, self._threads = isa.encode(), 1
        self._data = aligned_empty(TOTAL_BYTES)
        self._data[:] = 1
        self.nbytes = self._data.nbytes

    def set_threads(self, threads: int) -> None:
        """Sets how many read."""
        self._threads = threads

    def seconds(self) -> float:
        """Returns the time of one pass."""
        began = time.perf_counter()
        library.library().lb_read(self._isa, self._data.ctypes.data, self.nbytes, self._threads)
        return time.perf_counter() - began
