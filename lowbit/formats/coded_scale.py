"""Scales that are quantized themselves: codes of 8 bits, a step for each block of them, and one mean."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import FormatError

BLOCK = 256
"""Scales that share a step, in the order of the codes."""

MIDDLE = 128
"""The code of the mean."""

LEAST, LARGEST = np.float32(1e-5), np.float32(65504)
"""What scales are limited to before they are rounded to float16: its largest number, and above 0."""


@dataclass(frozen=True, eq=False)
class CodedScale:
    """The scales of a matrix [k n] in groups of k/g, as a file holds them.

    Attributes:
      codes: u8[n g], one output after the other.
      steps: f32[ceil(n g / 256)], of each 256 codes in their order.
      mean: f32[1].
    """

    codes: np.ndarray
    steps: np.ndarray
    mean: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return self.codes.nbytes + self.steps.nbytes + self.mean.nbytes

    def validate(self, k: int, n: int) -> None:
        """Checks shapes and dtypes against the matrix [k n].

        Raises:
          FormatError: what does not fit.
        """
        groups = self.codes.shape[1] if self.codes.ndim == 2 else 0
        if self.codes.dtype != np.uint8 or self.codes.shape != (n, groups) or groups < 1 or k % groups:
            raise FormatError(
                f"codes of scales are {self.codes.dtype}{list(self.codes.shape)} for [k n] = {[k, n]}",
                "store uint8 [n g] with g a divisor of k",
            )
        parts = (("scale_steps", self.steps, (-(-n * groups // BLOCK),)), ("scale_mean", self.mean, (1,)))
        for what, values, shape in parts:
            if values.dtype != np.float32 or values.shape != shape:
                raise FormatError(
                    f"{what} is {values.dtype}{list(values.shape)}, and not float32{list(shape)}",
                    f"store a step for each {BLOCK} scales, and one mean",
                )

    def decode(self) -> NDArray[np.float16]:
        """Returns `half(clip((codes - 128) * step + mean, 1e-5, 65504))`, f16[g n], as training has it.

        Each operation rounds to float32 once, and then to float16.

        Raises:
          FormatError: a step or mean that is not finite.
        """
        if not (np.isfinite(self.steps).all() and np.isfinite(self.mean).all()):
            raise FormatError(
                "a step or the mean of scales is NaN or infinity", "look for where training diverged, and export again"
            )
        n, groups = self.codes.shape
        numbers = self.codes.reshape(-1).astype(np.float32) - np.float32(MIDDLE)
        with np.errstate(over="ignore"):  # a huge step ends at the limit
            numbers *= np.repeat(self.steps, BLOCK)[: n * groups]
            numbers += self.mean
        half = np.clip(numbers, LEAST, LARGEST).astype(np.float16)
        return np.ascontiguousarray(half.reshape(n, groups).T)
