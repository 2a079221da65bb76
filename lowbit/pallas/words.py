"""What the GPU does to 32-bit words in one instruction, and the same in jax.numpy.

Each is inline assembly on numbers of its own: which of them a thread holds makes no difference.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from lowbit.pallas.fields import HALFWORD, TURNED
from lowbit.pallas.weight import Part

_BYTES = 0x01010101
_AND_XOR = 0x6A
"""Table of the instruction lop3: (a & b) ^ c."""


def joined(lower: jax.Array, upper: jax.Array, *, interpret: bool) -> jax.Array:
    """Returns the words i32 of two halfwords i16 each; no work where these lay in one register."""
    if interpret:
        wide = jax.lax.shift_left(upper.astype(jnp.int32), jnp.full(upper.shape, HALFWORD, jnp.int32))
        return (lower.astype(jnp.int32) & 0xFFFF) | wide
    return _inline("mov.b32 $0, {$1, $2};", (lower, upper), "=r,h,h")


def field_in_bytes(words: jax.Array, part: Part, start: int, *, interpret: bool) -> jax.Array:
    """Returns the field that begins at bit `start` of each byte of words i32 of a part, times its weight."""
    up = part.weight.bit_length() - 1
    mask = (1 << part.bits) - 1
    turned = ((mask << start & TURNED & 0xFF) >> start << up) * _BYTES
    mask = (mask << up) * _BYTES
    shift = start - up
    if shift < 0:
        words = jax.lax.shift_left(words, jnp.full_like(words, -shift))
    elif shift > 0:
        words = jax.lax.shift_right_logical(words, jnp.full_like(words, shift))
    if interpret or not turned:
        return (words & mask) ^ turned
    return _inline(f"lop3.b32 $0, $1, {mask:#x}, {turned:#x}, {_AND_XOR};", (words,), "=r,r")


def dot4(a: jax.Array, b: jax.Array, c: jax.Array, signed: tuple[bool, bool], *, interpret: bool) -> jax.Array:
    """Returns c + the products of the four bytes of a and b, i32; `signed` says which of a and b have signed bytes."""
    if interpret:
        a, b = (_bytes(words, sign).astype(jnp.int32) for words, sign in zip((a, b), signed, strict=True))
        return c + jnp.sum(a * b, axis=-1, dtype=jnp.int32)
    kinds = ".".join("s32" if sign else "u32" for sign in signed)
    return _inline(f"dp4a.{kinds} $0, $1, $2, $3;", (a, b, c), "=r,r,r,r")


def permuted(a: jax.Array, b: jax.Array, selector: int, *, interpret: bool) -> jax.Array:
    """Returns four bytes of the eight of a and b: digits of the selector name them, the lowest byte's first."""
    if interpret:
        both = jnp.concatenate([_bytes(a, False), _bytes(b, False)], axis=-1)
        digits = [selector >> 4 * byte & 0xF for byte in range(4)]
        return jax.lax.bitcast_convert_type(jnp.stack([both[..., digit] for digit in digits], axis=-1), jnp.int32)
    return _inline(f"prmt.b32 $0, $1, $2, {selector:#x};", (a, b), "=r,r,r")


def _inline(text: str, args: tuple[jax.Array, ...], constraints: str) -> jax.Array:
    """One instruction for each word."""
    args = tuple(jnp.broadcast_arrays(*args))
    shape = jax.ShapeDtypeStruct(args[0].shape, jnp.int32)
    [result] = plgpu.elementwise_inline_asm(
        text, args=args, constraints=constraints, pack=1, result_shape_dtypes=[shape]
    )
    return result


def _bytes(words: jax.Array, signed: bool) -> jax.Array:
    """The bytes of words along a last axis of 4, the lowest first."""
    return jax.lax.bitcast_convert_type(words, jnp.int8 if signed else jnp.uint8)
