"""The factors of an adapter: a matrix of low rank that is added to what codes decode to."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import FormatError

_HALF = np.dtype(np.float16)


@dataclass(frozen=True, eq=False)
class Adapter:
    """Two factors of a matrix [k n] of rank r.

    Attributes:
      a: f16[k r].
      b: f16[r n], with every constant factor in it.
    """

    a: np.ndarray
    b: np.ndarray

    @property
    def rank(self) -> int:
        """r."""
        return int(self.a.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.a.nbytes + self.b.nbytes

    def validate(self, k: int, n: int) -> None:
        """Checks shapes and dtypes against the matrix [k n].

        Raises:
          FormatError: what does not fit.
        """
        described = f"{self.a.dtype}{list(self.a.shape)} and {self.b.dtype}{list(self.b.shape)}"
        rank = self.a.shape[1] if self.a.ndim == 2 else 0
        if (self.a.dtype, self.b.dtype) != (_HALF, _HALF) or (self.a.shape, self.b.shape) != ((k, rank), (rank, n)):
            raise FormatError(
                f"the factors of the adapter are {described} for [k n] = {[k, n]}", "store float16 [k r] and [r n]"
            )
        if not 1 <= rank <= min(k, n):
            raise FormatError(
                f"an adapter of rank {rank} for [k n] = {[k, n]}", "store a rank of 1 to the smaller side"
            )

    def check_contents(self) -> None:
        """Reads both factors.

        Raises:
          FormatError: NaN or infinity.
        """
        for values in (self.a, self.b):
            if not np.isfinite(values).all():
                raise FormatError(
                    "the adapter holds NaN or infinity", "look for where training diverged, and export again"
                )

    def product(self) -> NDArray[np.float32]:
        """Returns `((a_0 b_0 + a_1 b_1) + a_2 b_2) + ...`, f32[k n]: the order of sums in which training has it.

        Products of two float16 numbers are exact in float32, so that only the additions round.

        Raises:
          FormatError: NaN or infinity.
        """
        self.check_contents()
        a, b = self.a.astype(np.float32), self.b.astype(np.float32)
        total = a[:, :1] * b[:1]
        for r in range(1, self.rank):
            total += a[:, r : r + 1] * b[r]
        return total

    def matmul(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns `(x a) b`, f32[b n], of x f32[b k]: what a runtime adds to the product with the codes."""
        return (x @ self.a.astype(np.float32)) @ self.b.astype(np.float32)

    def outputs(self, index: NDArray[np.integer] | slice) -> "Adapter":
        """Returns the factors of some of the n outputs."""
        return replace(self, b=self.b[:, index])
