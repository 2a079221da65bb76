"""One weight matrix as the compiled kernels read it, and its product."""

import ctypes
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import ConfigError, DataError, KernelError, QuantizerError, nearest
from lowbit.formats import PACKINGS, Adapter, BFloat16, PackedTensor
from lowbit.kernels import library as native
from lowbit.kernels.reference import ACTIVATION_MAX, INT32_MAX, adapter_product, integer_levels
from lowbit.kernels.scratch import Scratch, aligned_empty
from lowbit.kernels.weights import Activations

TILE_ROWS, UNIT, QUAD_BYTES = 16, 32, 64
"""The layout in memory, described in native/lowbit.h."""

STORED_BITS = {"u1": 1, "t5": 2, "u2": 2, "u3": 3, "u4": 4, "u8": 8}
"""Bits of a code in memory, by its packing in the file. Five trits a byte would be 1.6, but take long to take apart."""


class Parts(NamedTuple):
    """The arrays of a packed matrix: codes u8, scale and zero [tiles g 16], levels, and a factor for each input."""

    codes: NDArray[np.uint8]
    scale: np.ndarray
    zero: np.ndarray | None
    levels: NDArray[np.float32]
    in_scale: NDArray[np.float32] | None


class CompiledMatrix:
    """A packed or float matrix laid out for the compiled kernels; the original is not kept.

    Args:
      w: a packed tensor, or a float matrix.
      isa: an instruction set of `library.supported()`.
      threads: of its products.
      transposed: a float matrix is [n k], and y = x @ w.T; a packed one says so itself.

    Raises:
      FormatError: damaged codes.
      QuantizerError: sums of 8-bit activations that may pass int32.
    """

    def __init__(
        self,
        w: PackedTensor | BFloat16 | np.ndarray,
        isa: str,
        threads: int,
        *,
        transposed: bool = False,
    ):
        self.isa = isa
        self.threads = threads
        self._library = native.library()
        self.struct = native.Matrix()
        self._held: list[np.ndarray] = []
        self._in_scale: np.ndarray | None = None
        self._adapter: Adapter | None = None
        if isinstance(w, PackedTensor):
            self._take_packed(w)
        else:
            self._take_floats(w, transposed)
        self._scratch = Scratch()

    @property
    def k(self) -> int:
        """Inputs."""
        return int(self.struct.k)

    @property
    def n(self) -> int:
        """Outputs."""
        return int(self.struct.n)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self._held) + (0 if self._adapter is None else self._adapter.nbytes)

    @property
    def struct_is_all(self) -> bool:
        """Whether the struct alone is the matrix: without a factor of each input, and without an adapter.

        Both are left to `matmul`.
        """
        return self._in_scale is None and self._adapter is None

    @property
    def codes(self) -> NDArray[np.uint8]:
        """The packed units of a packed matrix, as the kernels read them."""
        return self._held[-1]

    def parts(self) -> Parts:
        """Returns the arrays of a packed matrix, which lie where the struct points."""
        held = {array.ctypes.data: array for array in self._held}
        s = self.struct
        return Parts(held[s.data], held[s.scale], held[s.zero] if s.zero else None, held[s.levels], self._in_scale)

    @property
    def takes_int8(self) -> bool:
        """Whether products can take 8-bit activations: the levels are whole numbers of a step, at equal distances."""
        return bool(self.struct.whole_levels)

    def matmul(self, x: np.ndarray, activations: str = "int8") -> NDArray[np.float32]:
        """Returns x f32[t k] @ w, f32[t n]; activations as in `weights.Activations`.

        With "int8" bit for bit `reference.matmul_int8`. Float matrices, and grids without `takes_int8`, are always
        multiplied with float activations.

        Raises:
          ConfigError: unknown activations.
          DataError: x of another shape or dtype, or 8-bit activations that are not finite.
        """
        if activations not in get_args(Activations):
            raise ConfigError(f"unknown activations {activations!r}", nearest(activations, get_args(Activations)))
        if x.ndim != 2 or x.shape[1] != self.k or x.dtype != np.float32:
            raise DataError(f"activations are {x.dtype}{list(x.shape)}", f"give float32[t {self.k}]")
        scaled = np.ascontiguousarray(x if self._in_scale is None else x * self._in_scale)
        y = np.empty((len(x), self.n), np.float32)
        self.matmul_into(scaled, y, native.INT8 if activations == "int8" else native.FLOAT)
        if self._adapter is not None:
            y += adapter_product(x, self._adapter, activations if self.takes_int8 else "float32")
        return y

    def matmul_into(self, x: NDArray[np.float32], y: NDArray[np.float32], mode: int) -> None:
        """Writes the product of contiguous arrays to y, unchecked; mode is `library.INT8` or `library.FLOAT`."""
        matrix = ctypes.byref(self.struct)
        scratch = self._scratch.of(self._library.lb_workspace(matrix, len(x)))
        check_status(
            self._library.lb_matmul(
                self.isa.encode(),
                matrix,
                x.ctypes.data,
                len(x),
                y.ctypes.data,
                self.n,
                mode,
                scratch.ctypes.data,
                self.threads,
            )
        )

    def _hold(self, array: np.ndarray) -> int:
        self._held.append(array)
        return int(array.ctypes.data)

    def _take_packed(self, w: PackedTensor) -> None:
        s, (k, n) = self.struct, w.shape
        s.kind, s.bits, s.k, s.n, s.groups = native.PACKED, STORED_BITS[w.packing], k, n, w.groups
        s.num_levels = len(w.levels)
        levels = np.zeros(max(16, len(w.levels)), np.float32)
        levels[: len(w.levels)] = w.levels
        s.levels = self._hold(levels)
        self._take_whole_levels(w)
        s.half_scales = w.scale.dtype == np.float16
        s.scale = self._hold(_by_tile(w.scale, n))
        s.zero = None if w.zero is None else self._hold(_by_tile(w.zero, n))
        if w.in_scale is not None:
            if not np.isfinite(w.in_scale).all():
                w.check_contents()
            self._in_scale = w.in_scale.astype(np.float32)
            self._hold(self._in_scale)
        if w.adapter is not None:
            w.adapter.check_contents()
            self._adapter = Adapter(w.adapter.a.copy(), w.adapter.b.copy())
        tiles, units = -(-n // TILE_ROWS), w.groups * -(-k // w.groups // UNIT)
        codes = aligned_empty(tiles * units * s.bits * QUAD_BYTES)
        s.data = self._hold(codes)
        packing = PACKINGS[w.packing]
        rows = np.ascontiguousarray(w.packed)
        status = self._library.lb_prepack(
            *(rows.ctypes.data, rows.shape[1], k, n, w.groups),
            *(packing.base, packing.digits, packing.word_bytes, len(w.levels), s.bits, codes.ctypes.data),
            self.threads,
        )
        if status == native.BAD_CODE or not np.isfinite(w.scale).all():
            w.check_contents()  # says what is wrong
        if w.zero is not None and not np.isfinite(w.zero).all():
            w.check_contents()
        check_status(status)

    def _take_whole_levels(self, w: PackedTensor) -> None:
        try:
            whole = integer_levels(w.levels)
        except QuantizerError:
            return  # a codebook: float activations
        steps = np.diff(whole.values)
        if (steps != steps[0]).any():
            return
        size, largest = w.shape[0] // w.groups, int(np.abs(whole.values).max()) * ACTIVATION_MAX
        if size * largest > INT32_MAX:
            raise QuantizerError(
                f"{size} products of up to {largest} may overflow an int32 sum",
                f"split k into groups of at most {INT32_MAX // largest}",
            )
        s = self.struct
        s.whole_levels, s.first, s.step, s.unit = 1, int(whole.values[0]), int(steps[0]), float(whole.step)

    def _take_floats(self, w: BFloat16 | np.ndarray, transposed: bool) -> None:
        s = self.struct
        bits = w.bits if isinstance(w, BFloat16) else w
        rows = np.ascontiguousarray(bits if transposed else bits.T)
        s.n, s.k = rows.shape
        s.groups = 1
        kinds = {np.dtype(np.float32): native.FLOAT32, np.dtype(np.float16): native.FLOAT16}
        s.kind = native.BFLOAT16 if isinstance(w, BFloat16) else kinds[rows.dtype]
        s.data = self._hold(rows)


def check_status(status: int) -> None:
    """Raises what a status of the library means.

    Raises:
      DataError: NaN or infinity.
      KernelError: no threads or memory.
    """
    match status:
        case native.OK:
            return
        case native.NOT_FINITE:
            raise DataError("activations hold NaN or infinity", "check the model's weights and its input")
        case native.NO_THREADS:
            raise KernelError("the system gives no more threads or memory", "ask for fewer threads")
    raise AssertionError(f"unknown status {status}")


def _by_tile(values: np.ndarray, n: int) -> np.ndarray:
    """[g n] or [1 1] to [tiles g 16], zeros beyond n."""
    groups = values.shape[0]
    tiles = -(-n // TILE_ROWS)
    filled = np.zeros((groups, tiles * TILE_ROWS), values.dtype)
    filled[:, :n] = values
    return np.ascontiguousarray(filled.reshape(groups, tiles, TILE_ROWS).swapaxes(0, 1))
