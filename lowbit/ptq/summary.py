"""What a quantized model costs and how far its kernels are off, added up layer by layer."""

import dataclasses
from collections.abc import Sequence

from lowbit.numerics.coded_scales import coded_bytes
from lowbit.ptq.layers import QuantizedKernel, QuantizedLayer
from lowbit.ptq.target import Target

FLOAT_BITS = 16.0
"""Of embedding, head, norms and biases, and of each scale and zero point."""


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """A quantized model in a few figures.

    Attributes:
      bits: bits/weight of the quantized matrices, scales and tables included.
      model_bits: the same of all parameters.
      errors: relative error of each kernel, by path, one a layer.
      packable: whether a packed file holds all kernels as codes.
    """

    bits: float
    model_bits: float
    errors: dict[str, list[float]]
    packable: bool


class Tally:
    """Bits and errors of the layers seen so far."""

    def __init__(self, target: Target):
        self._target = target
        self._kernel_bits = self._kernel_weights = self._bits = self._weights = 0.0
        self._errors: dict[str, list[float]] = {}
        self._packable = True

    def add(self, layer: QuantizedLayer) -> None:
        """Counts one layer."""
        for path, leaf in layer.leaves.items():
            kernel = layer.kernels.get(path)
            if kernel is None:
                self.add_float(leaf.size)
                continue
            bits = self._bits_of(kernel, leaf.shape)
            self._kernel_bits, self._kernel_weights = self._kernel_bits + bits, self._kernel_weights + leaf.size
            self._bits, self._weights = self._bits + bits, self._weights + leaf.size
            self._errors.setdefault(path, []).append(kernel.error)
            self._packable = self._packable and kernel.bits is None

    def add_float(self, weights: int) -> None:
        """Counts weights that stay float."""
        self._bits, self._weights = self._bits + FLOAT_BITS * weights, self._weights + weights

    def summary(self, paths: Sequence[str]) -> Summary:
        """Returns the figures; `paths` are those of the kernels, in the order of the errors."""
        return Summary(
            self._kernel_bits / self._kernel_weights,
            self._bits / self._weights,
            {path: self._errors[path] for path in paths},
            self._packable,
        )

    def _bits_of(self, kernel: QuantizedKernel, shape: tuple[int, ...]) -> float:
        k, n = shape
        quantizer = kernel.quantizer(self._target)
        if quantizer is None:
            assert kernel.bits is not None
            return kernel.bits * k * n
        assert quantizer.grid is not None
        floats = {name: leaf.size for name, leaf in kernel.state.items()}
        coded = coded_bytes(floats.pop("scale")) if quantizer.doubled else 0
        return 8.0 * (quantizer.grid.row_bytes(k) * n + coded) + FLOAT_BITS * sum(floats.values())
