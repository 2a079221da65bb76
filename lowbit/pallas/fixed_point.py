"""Activations as 16-bit whole numbers, cut in two bytes and laid side by side as the codes that they meet.

The inputs that a 32-bit word of codes holds share a unit, a power of two: the largest of them lies between 2**14 and
2**15 units. A bfloat16 number has 8 bits, so inputs down to 1/128 of the largest keep all of theirs; smaller ones are
rounded to the unit, by at most a half: 2**-15 of the largest. Products with codes are exact then, four at a time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.pallas.words import permuted

LARGEST = 255 << 7
"""The largest number there is: 8 bits, of which the highest stands for 2**14 units."""
_TOP = 14
_EXPONENT = 23
"""Where the exponent of a float32 begins."""
_BIAS = 127
_EXPONENT_BITS = 0xFF << _EXPONENT
_ROUNDER = 3 << 22
"""Added to a float32 below 2**22, it leaves a whole number in the lowest bits."""
_ROUNDER_BITS = 0x4B400000
EXACT = 1 << 22
"""Whole numbers below it become float32 by an addition."""


class FixedPoint(NamedTuple):
    """The inputs of words of codes, whatever their shape is.

    Attributes:
      high: i32 of each pair of planes: the upper bytes, signed, of two inputs of both planes.
      low: the lower bytes, unsigned.
      sums: i32 of each pair: of its four numbers.
      unit: f32: what 1 stands for. NaN where an input is not finite.
    """

    high: list[jax.Array]
    low: list[jax.Array]
    sums: list[jax.Array]
    unit: jax.Array


def fixed_point(planes: list[tuple[jax.Array, jax.Array]], *, interpret: bool) -> FixedPoint:
    """Rounds the inputs of words: of each plane bf16 those of the words' lower halfwords and those of the upper ones.

    Args:
      planes: an even number of them.
      interpret: compute with jax.numpy instead of inline assembly, which only a GPU runs.
    """
    wide = [[x.astype(jnp.float32) for x in plane] for plane in planes]
    largest = functools.reduce(jnp.maximum, (jnp.abs(x) for plane in wide for x in plane))
    # Below 2**-112 a smaller unit would be no normal number; nothing is lost that sums of float32 would keep.
    exponent = jnp.maximum(_bits(largest) & _EXPONENT_BITS, jnp.int32((_TOP + 1) << _EXPONENT))
    factor = _float(_int32((2 * _BIAS + _TOP) << _EXPONENT) - exponent)
    unit = jnp.where(largest < jnp.inf, _float(exponent - (_TOP << _EXPONENT)), jnp.float32(jnp.nan))
    numbers = [[_bits(x * factor + jnp.float32(_ROUNDER)) for x in plane] for plane in wide]
    high, low, sums = [], [], []
    for even, odd in zip(numbers[::2], numbers[1::2], strict=True):
        first = permuted(even[0], odd[0], 0x5140, interpret=interpret)
        second = permuted(even[1], odd[1], 0x5140, interpret=interpret)
        low.append(permuted(first, second, 0x5410, interpret=interpret))
        high.append(permuted(first, second, 0x7632, interpret=interpret))
        sums.append(even[0] + even[1] + odd[0] + odd[1] - _int32(4 * _ROUNDER_BITS))
    return FixedPoint(high, low, sums, unit)


def as_float(number: jax.Array, largest: int) -> jax.Array:
    """Returns whole numbers i32 within +-`largest` as f32, by whichever way is fast and as exact as float32 is."""
    if largest < EXACT:
        return _float(number + jnp.int32(_ROUNDER_BITS)) - jnp.float32(_ROUNDER)
    return number.astype(jnp.float32)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _float(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _int32(value: int) -> jax.Array:
    """A constant of the lowest 32 bits of a number."""
    return jnp.int32(np.uint32(value & 0xFFFFFFFF).view(np.int32))
