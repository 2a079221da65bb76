"""Codes out of halfwords: a plane of a tile at a time, as bfloat16 or int8, in few instructions for 2 or 4 codes.

A halfword holds 16/bits codes, field f at bits [f*bits, (f+1)*bits), and bit 7 of both bytes is turned over: so 8-bit
codes are int8 as they lie there. What turns it back is part of the same logic instruction that takes the field out.

Placed below an exponent, a field is a mantissa: `0x3F80 | code << at` is the bfloat16 number 1 + code * 2**(at-7), from
which one fused multiply-add makes a level. Levels are whole numbers of at most 8 bits, so nothing is rounded.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import triton as plgpu

from lowbit.errors import QuantizerError

HALFWORD = 16
TURNED = 0x8080
"""Bits of a halfword that are stored turned over: the highest of each byte."""
MANTISSA = 7
"""Bits of a bfloat16 mantissa."""
_ONE, _BIG = 0x3F80, 0x4300
"""bfloat16 bits of 1 and of 128, whose last place is 1."""
_AND_XOR, _AND_OR = 0x6A, 0xEA
"""Tables of the instruction lop3: (a & b) ^ c and (a & b) | c."""


class Affine(NamedTuple):
    """What a code stands for: first + distance * code, whole numbers."""

    first: int
    distance: int


class Place(NamedTuple):
    """Where a field is taken out: after a shift to the right by `shift` (left if negative) it starts at bit `at`."""

    shift: int
    at: int


def places(bits: int, levels: Affine) -> list[Place]:
    """Returns where each field of a halfword becomes a mantissa, with as few shifts as there can be; for 1 to 4 bits.

    Raises:
      QuantizerError: levels that a bfloat16 multiply-add cannot make from a code without rounding.
    """
    highest = MANTISSA - bits
    exact = [all(map(_exact, _scale_and_offset(levels, at))) for at in range(highest + 1)]
    if not exact[highest]:
        raise QuantizerError(
            f"levels {levels.first} + {levels.distance} * code are too large for bfloat16", "take the portable path"
        )
    lowest = next(at for at in range(highest + 1) if all(exact[at:]))
    found: list[Place] = []
    for start in range(0, HALFWORD, bits):
        if not found or not lowest <= start - found[-1].shift <= highest:
            found.append(Place(start - lowest, lowest))
        else:
            found.append(Place(found[-1].shift, start - found[-1].shift))
    return found


def to_bfloat16(words: jax.Array, bits: int, levels: Affine, *, interpret: bool) -> list[jax.Array]:
    """Returns the levels of each field of halfwords i16[m h], bf16[m h] a field.

    Args:
      words: as stored.
      bits: of a field: 1, 2, 4 or 8.
      levels: what a code stands for.
      interpret: compute with jax.numpy instead of inline assembly, which only a GPU runs.

    Raises:
      QuantizerError: see `places`.
    """
    if bits == 8:
        return [_byte_to_bfloat16(words, shift, levels, interpret) for shift in (0, 8)]
    mask = (1 << bits) - 1
    shifted: dict[int, jax.Array] = {}
    planes = []
    for start, (shift, at) in zip(range(0, HALFWORD, bits), places(bits, levels), strict=True):
        if shift not in shifted:
            shifted[shift] = _shift(words, shift, interpret)
        turned = (mask << start & TURNED) >> start << at
        scale, offset = _scale_and_offset(levels, at)
        planes.append(_mantissas(shifted[shift], mask << at, _ONE | turned, scale, offset, interpret))
    return planes


def to_int8(words: jax.Array, bits: int, weight: int, *, interpret: bool) -> list[jax.Array]:
    """Returns each field of halfwords i16[m h] as whole numbers, i8[m h] a field: code * weight.

    8-bit codes are 128 less than that, and `weight` is 1.
    """
    mask = (1 << bits) - 1
    planes = []
    for byte in (0, 1):
        part = _byte(words, byte, interpret)
        for start in range(0, 8, bits):
            if bits == 8:
                planes.append(part)
                continue
            up = weight.bit_length() - 1
            turned = (mask << start & TURNED) >> start << up
            planes.append(_small_integers(part, start - up, mask << up, turned, interpret))
    return planes


def added(lower: jax.Array, upper: jax.Array, *, interpret: bool) -> jax.Array:
    """Returns what two parts of the same codes stand for together: small whole numbers, of which no bit is in both."""
    if interpret:
        return lower + upper
    if lower.dtype == jnp.int8:
        return _inline("or.b32 $0, $1, $2;", (lower, upper), jnp.int8, 4, "=r,r,r")
    text = f".reg .b32 a; mov.b32 a, {_pair(_ONE)}; fma.rn.bf16x2 $0, $1, a, $2;"
    return _inline(text, (lower, upper), jnp.bfloat16, 2, "=r,r,r")


def _scale_and_offset(levels: Affine, at: int) -> tuple[int, int]:
    """(a, b) with a * (1 + code * 2**(at-7)) + b = first + distance * code."""
    scale = levels.distance << (MANTISSA - at)
    return scale, levels.first - scale


def _bfloat16(value: int) -> Any:
    return np.float32(value).astype(jnp.dtype("bfloat16"))


def _exact(value: int) -> bool:
    return float(_bfloat16(value)) == value


def _pair(bits: int) -> int:
    """The same halfword in both halves of a register."""
    return bits << HALFWORD | bits


def _bits_of(value: int) -> int:
    return int(_bfloat16(value).view(np.uint16))


def _inline(
    text: str, args: tuple[jax.Array, ...], dtype: jax.typing.DTypeLike, pack: int, constraints: str = "=r,r"
) -> jax.Array:
    """One instance computes `pack` elements; what it writes is $0, what it reads $1 and so on, 32 bits each."""
    shape = jax.ShapeDtypeStruct(args[0].shape, dtype)
    [result] = plgpu.elementwise_inline_asm(
        f"{{ {text} }}", args=args, constraints=constraints, pack=pack, result_shape_dtypes=[shape]
    )
    return result


def _shift(words: jax.Array, shift: int, interpret: bool) -> jax.Array:
    """Halfwords shifted; with assembly what leaves one half of a register enters the other, and is masked off later."""
    if shift == 0:
        return words
    if interpret:
        if shift < 0:
            return jax.lax.shift_left(words, jnp.full_like(words, -shift))
        return jax.lax.shift_right_logical(words, jnp.full_like(words, shift))
    text = f"shr.b32 $0, $1, {shift};" if shift > 0 else f"shl.b32 $0, $1, {-shift};"
    return _inline(text, (words,), jnp.int16, 2)


def _mantissas(words: jax.Array, mask: int, exponent: int, scale: int, offset: int, interpret: bool) -> jax.Array:
    """((words & mask) ^ exponent, as bfloat16) * scale + offset."""
    if interpret:
        number = jax.lax.bitcast_convert_type((words & _int16(mask)) ^ _int16(exponent), jnp.bfloat16)
        return (number.astype(jnp.float32) * float(_bfloat16(scale)) + float(_bfloat16(offset))).astype(jnp.bfloat16)
    text = (
        f".reg .b32 v, a, b; lop3.b32 v, $1, {_pair(mask)}, {_pair(exponent)}, {_AND_XOR}; "
        f"mov.b32 a, {_pair(_bits_of(scale))}; mov.b32 b, {_pair(_bits_of(offset))}; fma.rn.bf16x2 $0, v, a, b;"
    )
    return _inline(text, (words,), jnp.bfloat16, 2)


def _byte_to_bfloat16(words: jax.Array, shift: int, levels: Affine, interpret: bool) -> jax.Array:
    """One byte of each halfword, an int8 s, as first + distance * (s + 128).

    7 bits below 128's exponent are 128 + (s & 127); the sign, where the last place of the exponent of -128 is, is what
    has to be taken off: 128, or 256.
    """
    scale, offset = levels.distance, levels.first + 128 * levels.distance
    if not _exact(scale) or not _exact(offset):
        raise QuantizerError(
            f"levels {levels.first} + {levels.distance} * code are too large for bfloat16", "take the portable path"
        )
    part = _shift(words, shift, interpret)
    if interpret:
        number = jax.lax.shift_right_arithmetic(
            jax.lax.shift_left(part, jnp.full_like(part, 8)), jnp.full_like(part, 8)
        )
        return (number.astype(jnp.float32) * float(_bfloat16(scale)) + float(_bfloat16(offset))).astype(jnp.bfloat16)
    whole = (
        ""
        if (scale, offset) == (1, 0)
        else (f"mov.b32 a, {_pair(_bits_of(scale))}; mov.b32 b, {_pair(_bits_of(offset))}; fma.rn.bf16x2 $0, $0, a, b;")
    )
    text = (
        f".reg .b32 v, t, a, b; lop3.b32 v, $1, {_pair(0x7F)}, {_pair(_BIG)}, {_AND_OR}; "
        f"lop3.b32 t, $1, {_pair(0x80)}, {_pair(_BIG | 0x8000)}, {_AND_OR}; "
        f"mov.b32 a, {_pair(_ONE)}; fma.rn.bf16x2 $0, v, a, t; {whole}"
    )
    return _inline(text, (part,), jnp.bfloat16, 2)


def _byte(words: jax.Array, byte: int, interpret: bool) -> jax.Array:
    """One byte of each halfword, i8."""
    if interpret:
        return jax.lax.shift_right_logical(words, jnp.full_like(words, 8 * byte)).astype(jnp.int8)
    # Four halfwords lie in two registers; a selector's digits name bytes, lowest first.
    return _inline(f"prmt.b32 $0, $1, $2, {0x7531 if byte else 0x6420};", (words,), jnp.int8, 4, "=r,r,r")


def _small_integers(part: jax.Array, shift: int, mask: int, turned: int, interpret: bool) -> jax.Array:
    """((bytes >> shift) & mask) ^ turned, of bytes i8; a negative shift is one to the left."""
    if interpret:
        wide = part.astype(jnp.int16)
        moved = jax.lax.shift_left(wide, jnp.full_like(wide, max(0, -shift)))
        moved = jax.lax.shift_right_arithmetic(moved, jnp.full_like(wide, max(0, shift)))
        return ((moved & _int16(mask)) ^ _int16(turned)).astype(jnp.int8)
    move = "mov.b32 t, $1" if shift == 0 else f"shr.b32 t, $1, {shift}" if shift > 0 else f"shl.b32 t, $1, {-shift}"
    text = f".reg .b32 t; {move}; lop3.b32 $0, t, {mask * 0x01010101}, {turned * 0x01010101}, {_AND_XOR};"
    return _inline(text, (part,), jnp.int8, 4)


def _int16(bits: int) -> jax.Array:
    """A constant of these 16 bits."""
    return jnp.int16(np.uint16(bits).view(np.int16))
