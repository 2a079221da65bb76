"""Which GGUF type holds a tensor, and its bytes.

A low-bit type holds a weight as an integer times the block's fp16 number d. A grid fits if its levels are integers of
the type in some unit, and a tensor fits if `d = unit * scale` is an fp16 number for each of its scales. Then weights
are those of training, bit for bit but for the sign of a zero. Where no scale of a grid gives an fp16 number in that
unit (levels of -2/3, 0 and 2/3), d is rounded, which moves the weights of a row together by at most 2^-11 of their
size: float16 would do no better.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.formats import BFloat16, PackedTensor, StoredTensor, decode
from lowbit.gguf import BF16, CODERS, F16, F32, Coder, TensorType

HALF_ULP = 2.0**-11
"""Largest relative error of rounding to an fp16 number that is not subnormal."""


class Blocks(NamedTuple):
    """A tensor as GGUF holds it.

    Attributes:
      kind: its type.
      data: u8[n row_bytes], rows of outputs; a vector is [row_bytes].
      error: largest relative error of a weight; 0 where all are equal to the packed tensor's.
      unit: what an integer of 1 means in units of the scale; None for a float type.
    """

    kind: TensorType
    data: NDArray[np.uint8]
    error: float
    unit: float | None

    @property
    def shape(self) -> tuple[int, ...]:
        """[n k], or [k] of a vector."""
        *rows, row_bytes = self.data.shape
        return (*rows, row_bytes // self.kind.nbytes * self.kind.block)


class _Fit(NamedTuple):
    coder: Coder
    unit: float
    error: float


def to_blocks(tensor: StoredTensor, along_rows: bool, avoid: Collection[str] = ()) -> Blocks:
    """Returns the smallest type that holds a tensor without loss, or else the smallest of relative error 2^-11.

    A quantized tensor that no low-bit type holds becomes F16, or F32 where fp16 would lose more than that. Floats keep
    their values: vectors as F32, matrices as the first of F16, BF16 and F32 that holds them.

    Args:
      tensor: a parameter.
      along_rows: whether the parameter is [n k] (an embedding); a kernel is [k n].
      avoid: names of low-bit types not to be used.
    """
    if not isinstance(tensor, PackedTensor):
        return _float_blocks(tensor, along_rows)
    fits = list(_fits(tensor, avoid)) if tensor.transposed == along_rows else []
    exact = [fit for fit in fits if fit.error == 0]
    if fits:
        return _encoded(tensor, (exact or fits)[0])
    rows = _rows(tensor.decode(), along_rows)
    with np.errstate(over="ignore"):
        error = _relative_error(rows, rows.astype(np.float16).astype(np.float32))
    if error <= HALF_ULP:
        return Blocks(F16, _raw(rows.astype("<f2")), error, None)
    return Blocks(F32, _raw(rows.astype("<f4")), 0.0, None)


def _float_blocks(tensor: BFloat16 | np.ndarray, along_rows: bool) -> Blocks:
    values = decode(tensor)
    if values.ndim == 1:
        return Blocks(F32, _raw(values.astype("<f4")), 0.0, None)
    rows = _rows(values, along_rows)
    with np.errstate(over="ignore"):
        half = rows.astype("<f2")
    if np.array_equal(half.astype(np.float32), rows):
        return Blocks(F16, _raw(half), 0.0, None)
    if isinstance(tensor, BFloat16):
        return Blocks(BF16, _raw(_rows(tensor.bits, along_rows).astype("<u2")), 0.0, None)
    return Blocks(F32, _raw(rows.astype("<f4")), 0.0, None)


def _rows(values: np.ndarray, along_rows: bool) -> np.ndarray:
    return values if along_rows else values.T


def _raw(values: np.ndarray) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).view(np.uint8)


def _fits(tensor: PackedTensor, avoid: Collection[str]) -> Iterator[_Fit]:
    """Yields what holds a tensor, smallest first, with an error of at most half a unit in the last place."""
    k, _ = tensor.shape
    for coder in CODERS:
        if coder.kind.name in avoid or (k // tensor.groups) % coder.kind.block:
            continue  # a block has one scale
        for unit in _units(tensor.levels):
            error = _error_of(tensor, coder, unit)
            if error is not None and error <= HALF_ULP:
                yield _Fit(coder, unit, error)


def _units(levels: NDArray[np.float32]) -> tuple[float, ...]:
    """Units in which levels may be integers: their distance, or half of it for levels around zero without it.

    Negative ones turn a grid around: -2, -1, 0, 1 are the integers 2, 1, 0, -1 of Q2_0.
    """
    distance = np.diff(np.sort(levels)).min()
    return tuple(float(sign * distance / np.float32(part)) for sign in (1, -1) for part in (1, 2))


def _error_of(tensor: PackedTensor, coder: Coder, unit: float) -> float | None:
    """Returns the largest relative error of a level at any scale, or None where the levels are no such integers."""
    zero = np.zeros_like(tensor.scale) if tensor.zero is None else tensor.zero
    pairs = np.unique(np.stack([tensor.scale, zero]).reshape(2, -1).astype(np.float32), axis=1)
    levels = tensor.levels - pairs[1][:, None]
    integers = np.rint(levels / np.float32(unit))
    if not np.isin(integers, coder.integers).all() or (integers * np.float32(unit) != levels).any():
        return None
    d = block_scales(pairs[0], unit).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = levels * pairs[0][:, None]
    if not np.isfinite(d).all():
        return None
    return _relative_error(wanted, integers * d[:, None])


def block_scales(scale: np.ndarray, unit: float) -> NDArray[np.float16]:
    """Returns d of blocks whose integers are in this unit; infinite where fp16 ends."""
    with np.errstate(over="ignore"):
        return (scale.astype(np.float32) * np.float32(unit)).astype(np.float16)


def _relative_error(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    distance = np.abs(wanted - got)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 is equality, x/0 is not
        relative = np.where(distance == 0, np.float32(0), distance / np.abs(wanted))
    return float(relative.max(initial=0.0))


def _encoded(tensor: PackedTensor, fit: _Fit) -> Blocks:
    k, n = tensor.shape
    kind = fit.coder.kind
    values = tensor.levels.take(tensor.codes().T)  # [n k]
    if tensor.zero is not None:
        values -= np.repeat(tensor.zero.T.astype(np.float32), k // tensor.groups, axis=1)
    integers = np.rint(values / np.float32(fit.unit)).astype(np.int8).reshape(-1, kind.block)
    d = block_scales(np.broadcast_to(tensor.scale.T, (n, tensor.groups)), fit.unit)
    d = np.repeat(d, k // kind.block // tensor.groups, axis=1).reshape(-1)
    return Blocks(kind, fit.coder.encode(integers, d).reshape(n, -1), fit.error, fit.unit)
