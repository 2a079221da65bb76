"""What a packed model costs, tensor by tensor."""

import re
from dataclasses import dataclass

from lowbit.formats.layout import PackedModel
from lowbit.formats.tensors import BFloat16, PackedTensor


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a packed model.

    Attributes:
      name: parameter path with dots.
      grid: name of the grid, with what else there is to know of scales and adapters, or the float dtype.
      bits: stored bits per weight, scales, zeros and padding included.
      shape: shape of the parameter.
      weights: number of weights.
      nbytes: bytes in the file.
    """

    name: str
    grid: str
    bits: float
    shape: tuple[int, ...]
    weights: int
    nbytes: int


@dataclass(frozen=True)
class Summary:
    """A packed model's rows and totals.

    Attributes:
      rows: in natural order of the names, layer 2 before layer 10.
      quantized_weights: weights stored as codes.
      weights: all weights.
      quantized_bits: bits per weight of the quantized matrices, codes and scales; None without any.
      model_bits: bits per weight of the whole model, float tensors included.
      tensor_bytes: bytes of all tensors.
      file_bytes: bytes of the file with header and tokenizer; None for a model that was not read from a file.
    """

    rows: tuple[TensorRow, ...]
    quantized_weights: int
    weights: int
    quantized_bits: float | None
    model_bits: float
    tensor_bytes: int
    file_bytes: int | None


def summarize(model: PackedModel, file_bytes: int | None = None) -> Summary:
    """Returns sizes and bits per weight; `file_bytes` is what the file system says of the file."""
    rows = []
    quantized_weights = quantized_bytes = 0
    for name in sorted(model.tensors, key=_natural):
        row = _row(model, name)
        rows.append(row)
        if isinstance(model.tensors[name], PackedTensor):
            quantized_weights += row.weights
            quantized_bytes += row.nbytes
    weights = sum(row.weights for row in rows)
    tensor_bytes = sum(row.nbytes for row in rows)
    return Summary(
        rows=tuple(rows),
        quantized_weights=quantized_weights,
        weights=weights,
        quantized_bits=8 * quantized_bytes / quantized_weights if quantized_weights else None,
        model_bits=8 * tensor_bytes / weights if weights else 0.0,
        tensor_bytes=tensor_bytes,
        file_bytes=file_bytes,
    )


def _row(model: PackedModel, name: str) -> TensorRow:
    tensor = model.tensors[name]
    shape: tuple[int, ...]
    if isinstance(tensor, PackedTensor):
        k, n = tensor.shape
        shape, grid = ((n, k) if tensor.transposed else (k, n)), tensor.grid
        if tensor.coded_scale is not None:
            grid += ", 8-bit scales"
        if tensor.adapter is not None:
            grid += f" + rank {tensor.adapter.rank}"
    else:
        shape, grid = tensor.shape, "bfloat16" if isinstance(tensor, BFloat16) else tensor.dtype.name
    weights = 1
    for size in shape:
        weights *= size
    bits = 8 * tensor.nbytes / weights if weights else 0.0
    return TensorRow(name, grid, bits, shape, weights, tensor.nbytes)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers in a name by value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]
