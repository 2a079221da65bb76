"""Grids: the levels that a code may stand for, and the arithmetic of evenly spaced ones.

A `Grid` is the finished article: a name and a tuple of levels, hashable, static under jit, written into packed
files. An `AffineGrid` is the same thing as arithmetic: a handful of numbers that may be *traced arrays*, so that one
compiled step serves every width, layers under one scan differ in bits, and a sweep over widths is one vmap.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.errors import QuantizerError

TERNARY_BITS = 1.58
"""How three levels are written wherever a user names a width; their information is log2(3) = 1.585 bits."""

WIDTHS = (1, TERNARY_BITS, 2, 3, 4)
"""The widths of ParetoQ, in bits per weight."""

_WORDS = ((2, 8, 1), (3, 5, 1), (4, 4, 1), (8, 8, 3), (16, 2, 1), (256, 1, 1))
"""Up to so many levels, so many codes share a word of so many bytes in a packed row."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A finite set of levels, in units of the scale; code i stands for `levels[i]`.

    Args:
      name: unique name, written into packed files.
      levels: strictly ascending, at least two, at most 256, each exactly a float32.

    Raises:
      QuantizerError: the levels are not ascending, not finite, or too few or many.
    """

    name: str
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if not (2 <= len(self.levels) <= 256 and ascending and all(map(math.isfinite, self.levels))):
            raise QuantizerError(
                f"grid {self.name!r} has levels {self.levels}",
                "give 2 to 256 finite levels in ascending order",
            )

    @property
    def bits(self) -> float:
        """Information in one code: log2 of the number of levels."""
        return math.log2(len(self.levels))

    @property
    def storage_bits(self) -> float:
        """Bits that one code takes in a packed row (ternary: five codes a byte, so 1.6)."""
        codes, nbytes = self._word()
        return 8 * nbytes / codes

    def row_bytes(self, k: int) -> int:
        """Bytes of a packed row of k codes, which ends with a whole byte."""
        codes, nbytes = self._word()
        return -(-k * nbytes // codes)

    def _word(self) -> tuple[int, int]:
        return next((codes, nbytes) for count, codes, nbytes in _WORDS if len(self.levels) <= count)

    def table(self) -> Float[np.ndarray, " levels"]:
        """The levels as a float32 look-up table."""
        return np.asarray(self.levels, np.float32)


Scalar = float | Float[Array, "..."]


class AffineGrid(NamedTuple):
    """Evenly spaced levels `(z + offset) * step` for integers z, and how gradients see them.

    Each field is a number or a float32 array, `[]` or `[*s 1 1]` (one value a stacked layer). The nearest level to a
    weight w with scale s is found as `z = round(clip(w/s, low, high) / step - offset)`, rounding half to even.

    Attributes:
      step: distance of neighbouring levels, in units of the scale. Multiplying by it is exact for every grid here.
      inverse_step: 1/step, kept apart so that no division by a constant (which compilers rewrite) is needed.
      offset: what turns an integer into a level: 0 for integer grids, 1/2 for those without a zero.
      first: the integer of code 0.
      low, high: where w/s is clipped; the gradient to w is zero outside.
      edge_low, edge_high: d(w_hat)/d(scale) for weights below `low` and above `high`.
      elastic: 1 where the scale's gradient inside is `level - w/s` (LSQ), 0 where it is `level` alone (binary).
      reach: the largest level count above zero (ParetoQ's Qp); `scale = max|w|/reach` lets the grid span the weights.
    """

    step: Scalar
    inverse_step: Scalar
    offset: Scalar
    first: Scalar
    low: Scalar
    high: Scalar
    edge_low: Scalar
    edge_high: Scalar
    elastic: Scalar
    reach: Scalar

    def integers(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """The integer z of the level nearest to `u = w/s`; never -0, which a code could not tell from 0."""
        z = jnp.round(jnp.clip(u, self.low, self.high) * self.inverse_step - self.offset)
        return jnp.where(z == 0, 0.0, z)

    def level(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The level of integer z, in units of the scale."""
        return (z + self.offset) * self.step


def elastic_binary() -> AffineGrid:
    """Levels -1 and 1 (ParetoQ at 1 bit). Zero is sent to 1: one bit cannot hold a third value."""
    return AffineGrid(2.0, 0.5, 0.5, -1.0, -1.0, 1.0, -1.0, 1.0, 0.0, 1.0)


# Stretched elastic quant clips just inside 1: at 1 exactly, rounding would reach one level too many.
_SEQ_CLIP = float(np.float32(0.99))


def stretched_ternary() -> AffineGrid:
    """Levels -2/3, 0, 2/3 (ParetoQ's stretched elastic quant at 1.58 bits).

    The edges of the scale's gradient are 1 although the outer level is 2/3: so the reference code does.
    """
    two_thirds = float(np.float32(2 / 3))
    return AffineGrid(two_thirds, 1.5, 0.0, -1.0, -_SEQ_CLIP, _SEQ_CLIP, -1.0, 1.0, 1.0, 1.0)


def stretched_two_bit() -> AffineGrid:
    """Levels -3/4, -1/4, 1/4, 3/4 (ParetoQ's stretched elastic quant at 2 bits)."""
    return AffineGrid(0.5, 2.0, 0.5, -2.0, -_SEQ_CLIP, _SEQ_CLIP, -0.75, 0.75, 1.0, 1.0)


def integer(bits: int) -> AffineGrid:
    """Levels -2^(b-1) .. 2^(b-1)-1: two's complement, as in LSQ (arXiv 1902.08153).

    Raises:
      QuantizerError: bits outside 2 .. 8.
    """
    if bits not in range(2, 9):
        raise QuantizerError(f"an integer grid of {bits} bits does not exist", "choose an integer from 2 to 8")
    low, high = -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
    return AffineGrid(1.0, 1.0, 0.0, low, low, high, low, high, 1.0, high)


def integer_ternary() -> AffineGrid:
    """Levels -1, 0, 1 (BitNet b1.58; plain rounding at 1.58 bits)."""
    return AffineGrid(1.0, 1.0, 0.0, -1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0)


@functools.cache
def paretoq_grid(bits: float) -> tuple[Grid, AffineGrid]:
    """The grid that ParetoQ fits to a width: its levels and its arithmetic.

    Raises:
      QuantizerError: a width other than 1, 1.58, 2, 3, 4.
    """
    if bits == 1:
        return freeze("binary", 2, elastic_binary()), elastic_binary()
    if bits == TERNARY_BITS:
        return freeze("seq_ternary", 3, stretched_ternary()), stretched_ternary()
    if bits == 2:
        return freeze("seq2", 4, stretched_two_bit()), stretched_two_bit()
    if bits in (3, 4):
        return freeze(f"int{int(bits)}", 2 ** int(bits), integer(int(bits))), integer(int(bits))
    raise unknown_width(bits)


def unknown_width(bits: object) -> QuantizerError:
    """The error for a width that no grid here has."""
    return QuantizerError(
        f"no grid has {bits!r} bits per weight",
        f"widths are {', '.join(map(str, WIDTHS))}",
    )


def freeze(name: str, count: int, affine: AffineGrid) -> Grid:
    """The static `Grid` of an affine grid with `count` levels, each rounded to float32 as the arithmetic does."""
    levels = [(np.float32(affine.first) + np.float32(i) + np.float32(affine.offset)) for i in range(count)]
    return Grid(name, tuple(float(np.float32(level * np.float32(affine.step))) for level in levels))


def stack(grids: list[AffineGrid]) -> AffineGrid:
    """Stacks the grids of L layers into one whose fields are `[L 1 1]`, to be sliced by a scan or a vmap."""

    def stack_field(*values: Scalar) -> Float[Array, "layers 1 1"]:
        return jnp.stack([jnp.full((1, 1), v, jnp.float32) for v in values])

    return jax.tree.map(stack_field, *grids)


def per_group(grid: AffineGrid) -> AffineGrid:
    """Fields `[*s 1 1]` as `[*s 1 1 1]`, to meet weights split into groups `[*s g G n]`; scalars stay scalars."""

    def add_axis(field: Scalar) -> Float[Array, "..."]:
        array = jnp.asarray(field, jnp.float32)
        return array[..., None] if array.ndim else array

    return AffineGrid(*map(add_axis, grid))
