"""How many bits a weight costs, counted honestly: the matrices that are quantized, and the whole model."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers import Quantizer
from lowbit.tree import paths
from lowbit.tree.apply import QuantizerRule, resolve
from lowbit.tree.paths import Tree


@dataclasses.dataclass(frozen=True)
class ParameterBits:
    """What one parameter costs.

    Attributes:
      path: the parameter's path.
      quantizer: name of its quantizer, "float32" where it has none.
      shape: its shape, stacked layers included.
      code_bits: bits of all codes with the padding of their rows, or of all values where it stays float.
      scale_bits: bits of all scales and zero points, and of the factors of an adapter.
      quantized: whether it has codes at all.
    """

    path: str
    quantizer: str
    shape: tuple[int, ...]
    code_bits: float
    scale_bits: float
    quantized: bool

    @property
    def weights(self) -> int:
        """How many weights the parameter holds."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """All bits over all weights."""
        return (self.code_bits + self.scale_bits) / self.weights


@dataclasses.dataclass(frozen=True)
class BitsReport:
    """Bits per weight of a model, from its rules and shapes alone.

    A model called "1 bit" for its matrices may average several bits with its embedding: both figures are here; the
    third, bytes on disk, is the packed file's own.
    """

    parameters: tuple[ParameterBits, ...]

    @property
    def quantized_bits_per_weight(self) -> float:
        """Codes and scales of the quantized matrices, over their weights; nan where there are none."""
        return _average([p for p in self.parameters if p.quantized])

    @property
    def model_bits_per_weight(self) -> float:
        """Everything that is stored, over every weight of the model."""
        return _average(self.parameters)

    def __str__(self) -> str:
        width = max(len(p.path) for p in self.parameters)
        lines = [
            f"{p.path:<{width}}  {p.quantizer:<22} {p.weights:>12,} weights  {p.bits_per_weight:7.3f} bits/weight"
            for p in self.parameters
        ]
        lines.append(f"quantized matrices: {self.quantized_bits_per_weight:.3f} bits/weight")
        lines.append(f"whole model:        {self.model_bits_per_weight:.3f} bits/weight")
        return "\n".join(lines)


def _average(parameters: Sequence[ParameterBits]) -> float:
    weights = sum(p.weights for p in parameters)
    return sum(p.code_bits + p.scale_bits for p in parameters) / weights if weights else math.nan


def bits_report(rules: Sequence[QuantizerRule], params: Tree) -> BitsReport:
    """Counts the bits that each parameter will cost in a packed file, rows of codes in whole bytes.

    Args:
      rules: as for `resolve`.
      params: the parameters or their shapes.

    Raises:
      RuleError: as `resolve`.
    """
    flat = paths.flatten(params)
    rows = []
    for path, quantizer in resolve(rules, params).items():
        shape, dtype = flat[path].shape, flat[path].dtype
        if quantizer is None:
            rows.append(ParameterBits(path, dtype.name, shape, 8.0 * dtype.itemsize * math.prod(shape), 0.0, False))
            continue
        layers = shape[0] if quantizer.at_layer is not None else 1
        code_bits, scale_bits, quantized = 0.0, 0.0, False
        for index in range(layers):
            one = shape if quantizer.at_layer is None else shape[1:]
            layer = quantizer.layer(index)
            kept = _kept(layer, jax.ShapeDtypeStruct(one, jnp.float32))  # of masters, or of what took their place
            if isinstance(kept, QTensor):
                quantized = True
                *stacked, k, n = kept.codes.shape
                code_bits += 8.0 * kept.grid.row_bytes(k) * n * math.prod(stacked)
                scale = kept.scale if kept.coded_scale is None else kept.coded_scale
                scales = jax.tree.leaves((scale, kept.zero, kept.in_scale, kept.adapter))
                scale_bits += sum(8.0 * s.dtype.itemsize * s.size for s in scales)
            else:
                code_bits += 8.0 * kept.dtype.itemsize * math.prod(one)
        rows.append(ParameterBits(path, quantizer.name, shape, code_bits, scale_bits, quantized))
    return BitsReport(tuple(rows))


@functools.lru_cache(maxsize=256)
def _kept(quantizer: Quantizer, w: jax.ShapeDtypeStruct) -> QTensor | jax.ShapeDtypeStruct:
    """The shapes of what a file holds of a parameter; traced once for those of one shape."""
    kept: QTensor | jax.ShapeDtypeStruct = jax.eval_shape(lambda w: quantizer.encode(w, quantizer.init(w)), w)
    return kept
