"""The two kinds of stored tensor that numpy has no type for, and how each becomes float32.

Shapes follow the Flax kernels: `[k n]`, k = contraction, n = output; scales `[g n]` with g groups of k/g.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import FormatError
from lowbit.formats.adapter import Adapter
from lowbit.formats.coded_scale import CodedScale
from lowbit.formats.packing import pack, packing_for, row_bytes, unpack

SCALE_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))
FLOAT_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A quantized matrix: packed codes, scales and the levels that the codes mean.

    The logical matrix is `[k n]`, but rows lie in memory per output, along k, because that is the order
    in which a dot product reads them. `transposed` says that the parameter itself is `[n k]` (an embedding
    `[V d]` with one scale per vocabulary row has n = V, k = d); it changes the orientation of `decode()` and
    nothing else.

    Attributes:
      packed: u8[n row_bytes(packing, k)].
      scale: f16 or f32 [g n], or [1 1] for one scale for the whole tensor.
      zero: of the shape and dtype of scale, or None; subtracted from the level before scaling.
      levels: f32[L], what code i means.
      shape: (k, n).
      grid: name of the levels, unique within a file.
      packing: one of `lowbit.formats.packing.PACKINGS`; follows from L.
      transposed: the parameter is [n k].
      in_scale: f16 or f32 [k], a second factor, of each input; None where there is none.
      adapter: a matrix of low rank that is added; None where there is none. A transposed tensor has none.
      coded_scale: what `scale` was decoded from, and the file holds in its place; None where it holds `scale` itself.
    """

    packed: NDArray[np.uint8]
    scale: np.ndarray
    zero: np.ndarray | None
    levels: NDArray[np.float32]
    shape: tuple[int, int]
    grid: str
    packing: str
    transposed: bool = False
    in_scale: np.ndarray | None = None
    adapter: Adapter | None = None
    coded_scale: CodedScale | None = None

    @staticmethod
    def from_codes(
        codes: NDArray[np.uint8],
        scale: np.ndarray,
        levels: NDArray[np.float32],
        grid: str,
        *,
        zero: np.ndarray | None = None,
        transposed: bool = False,
        in_scale: np.ndarray | None = None,
        adapter: Adapter | None = None,
        coded_scale: CodedScale | None = None,
    ) -> "PackedTensor":
        """Packs codes u8[k n], also where transposed; the packing follows from the number of levels.

        Raises:
          FormatError: whatever `validate` refuses, or a code without a level.
        """
        _check_codes(codes, len(levels))
        packing = packing_for(len(levels))
        k, n = codes.shape
        tensor = PackedTensor(
            packed=pack(np.ascontiguousarray(codes.T), packing),
            scale=scale,
            zero=zero,
            levels=levels,
            shape=(k, n),
            grid=grid,
            packing=packing,
            transposed=transposed,
            in_scale=in_scale,
            adapter=adapter,
            coded_scale=coded_scale,
        )
        tensor.validate()
        return tensor

    @property
    def groups(self) -> int:
        """Groups of scales along k."""
        return int(self.scale.shape[0])

    @property
    def bits(self) -> float:
        """Information per code, log2 L: what the grid needs, not what the packing spends."""
        return math.log2(len(self.levels))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros, and of an adapter, as a file holds them."""
        scale = self.scale if self.coded_scale is None else self.coded_scale
        beside = (self.zero, self.in_scale, self.adapter)
        return self.packed.nbytes + scale.nbytes + sum(x.nbytes for x in beside if x is not None)

    def validate(self) -> None:
        """Checks shapes, dtypes and levels against each other, without reading the codes.

        Raises:
          FormatError: the first thing that does not fit.
        """
        k, n = self.shape
        if k < 1 or n < 1:
            raise FormatError(f"shape [k n] = {[k, n]} is empty", "store matrices of one weight or more")
        _check_levels(self.levels)
        if self.packing != packing_for(len(self.levels)):
            raise FormatError(
                f"{len(self.levels)} levels are packed as {self.packing!r}",
                f"pack them as {packing_for(len(self.levels))!r}",
            )
        expected = (n, row_bytes(self.packing, k))
        if self.packed.dtype != np.uint8 or self.packed.shape != expected:
            raise FormatError(
                f"codes are {self.packed.dtype}{list(self.packed.shape)}, but [k n] = {[k, n]} packed as "
                f"{self.packing!r} is uint8{list(expected)}",
                "store one row of packed codes per output",
            )
        if self.scale.dtype not in SCALE_DTYPES:
            raise FormatError(f"scale is {self.scale.dtype}", "store scales as float16 or float32")
        if not _scale_fits(self.scale.shape, k, n):
            raise FormatError(
                f"scale has shape {list(self.scale.shape)}, which does not fit [k n] = {[k, n]}",
                "store [g n] with g a divisor of k, or [1 1]",
            )
        if self.zero is not None and (self.zero.shape, self.zero.dtype) != (self.scale.shape, self.scale.dtype):
            raise FormatError(
                f"zero is {self.zero.dtype}{list(self.zero.shape)}, "
                f"scale is {self.scale.dtype}{list(self.scale.shape)}",
                "store zero with the shape and dtype of scale",
            )
        if self.in_scale is not None and (self.in_scale.shape, self.in_scale.dtype) != ((k,), self.scale.dtype):
            raise FormatError(
                f"in_scale is {self.in_scale.dtype}{list(self.in_scale.shape)} for {k} inputs and a scale of "
                f"{self.scale.dtype}",
                "store in_scale as [k], in the dtype of scale",
            )
        if self.coded_scale is not None:
            self.coded_scale.validate(k, n)
        if self.adapter is not None:
            if self.transposed:
                raise FormatError("a transposed matrix has an adapter", "add it to the weights before they are rounded")
            self.adapter.validate(k, n)

    def codes(self) -> NDArray[np.uint8]:
        """Returns the codes, u8[k n], also where transposed.

        Raises:
          FormatError: damaged padding, or a code without a level.
        """
        return self._code_rows().T

    def decode(self) -> NDArray[np.float32]:
        """Returns `(levels[codes] - zero) * repeat(scale, k/g) * in_scale`, f32[k n] (f32[n k] where transposed).

        An adapter is added last. Each operation rounds to float32 once and in this order, as the fake-quantizer of
        training does: the two agree bit for bit.

        Raises:
          FormatError: damaged codes, or a scale that is not finite.
        """
        k, n = self.shape
        _check_finite(self.scale, "scale")
        # The codes are checked, so clipping changes nothing; without numpy's own check it takes half the time.
        rows = self.levels.take(self._code_rows(), mode="clip").reshape(n, self.groups, k // self.groups)
        if self.zero is not None:
            _check_finite(self.zero, "zero")
            rows -= self.zero.astype(np.float32).T[:, :, None]
        with np.errstate(over="ignore"):  # a huge scale becomes inf, as it does in training
            rows *= self.scale.astype(np.float32).T[:, :, None]
        matrix = rows.reshape(n, k)
        if self.in_scale is not None:
            _check_finite(self.in_scale, "in_scale")
            with np.errstate(over="ignore"):
                matrix *= self.in_scale.astype(np.float32)
        if self.adapter is not None:
            matrix += self.adapter.product().T
        return matrix if self.transposed else matrix.T

    def outputs(self, index: NDArray[np.integer] | slice) -> "PackedTensor":
        """Returns the tensor restricted to some of the n outputs: rows of an embedding, columns of a kernel.

        Scales that a file holds as codes are those that these decode to.
        """
        packed = self.packed[index]
        per_tensor = self.scale.shape[1] == 1
        return replace(
            self,
            packed=packed,
            scale=self.scale if per_tensor else self.scale[:, index],
            zero=self.zero if per_tensor or self.zero is None else self.zero[:, index],
            shape=(self.shape[0], len(packed)),
            adapter=None if self.adapter is None else self.adapter.outputs(index),
            coded_scale=None,
        )

    def without_adapter(self) -> "PackedTensor":
        """Returns codes and scales alone."""
        return replace(self, adapter=None)

    def check_contents(self) -> None:
        """Reads every code, scale and zero.

        Raises:
          FormatError: a code without a level, damaged padding, a number that is not finite, or scales that are not
            those of their codes.
        """
        self._code_rows()
        _check_finite(self.scale, "scale")
        if self.zero is not None:
            _check_finite(self.zero, "zero")
        if self.in_scale is not None:
            _check_finite(self.in_scale, "in_scale")
        if self.coded_scale is not None and not np.array_equal(self.scale, self.coded_scale.decode()):
            raise FormatError("scale is not what its codes decode to", "give coded_scale.decode() as the scale")
        if self.adapter is not None:
            self.adapter.check_contents()

    def _code_rows(self) -> NDArray[np.uint8]:
        rows = unpack(self.packed, self.packing, self.shape[0])
        _check_codes(rows, len(self.levels))
        return rows


@dataclass(frozen=True, eq=False)
class BFloat16:
    """A bfloat16 array as its raw bits, since numpy has no such type.

    Attributes:
      bits: u16, any shape; the upper half of the float32 of equal value.
    """

    bits: NDArray[np.uint16]

    @staticmethod
    def from_float32(values: NDArray[np.float32]) -> "BFloat16":
        """Rounds to the nearest bfloat16, ties to even. NaN stays NaN."""
        raw = np.ascontiguousarray(values).view(np.uint32)
        odd = raw >> np.uint32(16) & np.uint32(1)
        # The largest finite patterns plus half a unit still fit 32 bits; only a NaN could wrap, so it is set apart.
        rounded = np.where(np.isnan(values), np.uint32(0x7FC0_0000), raw) + np.uint32(0x7FFF) + odd
        quiet = np.uint16(0x7FC0)
        return BFloat16(np.where(np.isnan(values), quiet, (rounded >> np.uint32(16)).astype(np.uint16)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.bits.nbytes

    def decode(self) -> NDArray[np.float32]:
        """Returns the float32 array of equal values."""
        return (self.bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


StoredTensor = PackedTensor | BFloat16 | np.ndarray
"""What a packed file maps a parameter's name to; a plain array is float16 or float32."""


def decode(tensor: StoredTensor) -> NDArray[np.float32]:
    """Returns any stored tensor as float32, in the orientation of the parameter."""
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32)
    return tensor.decode()


def check_float(tensor: BFloat16 | np.ndarray) -> None:
    """Checks the dtype of a tensor that is stored as float.

    Raises:
      FormatError: a dtype that the file cannot hold.
    """
    if isinstance(tensor, BFloat16):
        if tensor.bits.dtype != np.uint16:
            raise FormatError(f"bfloat16 bits are {tensor.bits.dtype}", "give the bits as uint16")
    elif tensor.dtype not in FLOAT_DTYPES:
        raise FormatError(f"dtype {tensor.dtype} cannot be stored", "store float16, float32 or BFloat16")


def check_float_contents(tensor: BFloat16 | np.ndarray) -> None:
    """Reads every value.

    Raises:
      FormatError: NaN or infinity.
    """
    _check_finite(tensor.decode() if isinstance(tensor, BFloat16) else tensor, "the tensor")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` (a file, a tensor's name) in front of the cause of a FormatError raised inside."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{where}: {error.cause}", error.mend) from error


def _scale_fits(shape: tuple[int, ...], k: int, n: int) -> bool:
    if shape == (1, 1):
        return True
    return len(shape) == 2 and shape[1] == n and shape[0] >= 1 and k % shape[0] == 0


def _check_levels(levels: np.ndarray) -> None:
    if levels.dtype != np.float32 or levels.ndim != 1:
        raise FormatError(f"levels are {levels.dtype}{list(levels.shape)}", "give the levels as float32[L]")
    packing_for(len(levels))
    if not np.isfinite(levels).all() or len(np.unique(levels)) != len(levels):
        raise FormatError("levels repeat or are not finite", "give every code a finite level of its own, in float32")


def _check_codes(codes: np.ndarray, num_levels: int) -> None:
    if codes.size and int(codes.max()) >= num_levels:
        raise FormatError(
            f"code {int(codes.max())} has no level: the grid has {num_levels}",
            "the codes are damaged or belong to another grid; export the model again",
        )


def _check_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise FormatError(f"{what} holds NaN or infinity", "look for where training diverged, and export again")
