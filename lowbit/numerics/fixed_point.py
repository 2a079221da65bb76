"""Products with real numbers by integers alone: a significand of 31 bits and a shift (arXiv 1712.05877, section 2.2).

JAX has no 64-bit integers unless a process asks for them, so the product of 63 bits is held in two halves. Everything
is exact up to one rounding, at the end: to the nearest integer, ties upwards (`floor(x + 1/2)`).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int32, UInt32
from numpy.typing import NDArray

from lowbit.errors import QuantizerError

LONGEST_SHIFT = 62
"""Beyond it the half that rounds would not fit; smaller multipliers lose significant bits instead."""


class Multiplier(NamedTuple):
    """Real numbers `significand * 2^-shift`, one an output.

    Attributes:
      significand: i32[n], 2^30 to 2^31 - 1; less only for numbers below 2^-32, and 0 for 0.
      shift: i32[n], 1 to `LONGEST_SHIFT`.
    """

    # Not annotated as arrays: jax rebuilds tuples around stand-ins for them.
    significand: Any
    shift: Any


def multiplier(values: Float64[np.ndarray, " n"]) -> Multiplier:
    """Returns the nearest multipliers, within 2^-31 of the values; on the host, before any integer is multiplied.

    Args:
      values: 0 or more, below 2^30.

    Raises:
      QuantizerError: a value out of this range.
    """
    if not (np.isfinite(values).all() and (values >= 0).all() and (values < 2.0**30).all()):
        odd = values[~(np.isfinite(values) & (values >= 0) & (values < 2.0**30))][0]
        raise QuantizerError(
            f"a factor of {odd:g} between the scales of inputs, weights and outputs is not in [0, 2^30)",
            "calibrate the outputs on tokens that reach this layer: their scale is too small, or not a number",
        )
    fraction, exponent = np.frexp(values)
    significand = np.rint(fraction * 2.0**31).astype(np.int64)
    carried = significand == 2**31
    significand = np.where(carried, 2**30, significand)
    shift = 31 - exponent.astype(np.int64) - carried
    lost = np.maximum(shift - LONGEST_SHIFT, 0)
    significand = np.where(lost > 31, 0, significand >> np.minimum(lost, 31))
    return Multiplier(significand.astype(np.int32), np.minimum(shift, LONGEST_SHIFT).astype(np.int32))


def rescale(x: Int32[Array, "*b n"], by: Multiplier) -> Int32[Array, "*b n"]:
    """Returns `floor(x * significand * 2^-shift + 1/2)`, exactly; saturated where 32 bits do not hold it."""
    over_rows = (1,) * (x.ndim - 1) + by.shift.shape
    significand, shift = (jnp.asarray(part).reshape(over_rows) for part in by)
    high, low = wide_product(x, jnp.broadcast_to(significand, x.shape))

    # Half of what is shifted out, in two halves as well. A shift by 32 or more is never written: shifts are clamped
    # to what the chosen branch uses.
    below = jnp.where(shift <= 32, jnp.uint32(1) << jnp.clip(shift - 1, 0, 31).astype(jnp.uint32), jnp.uint32(0))
    above = jnp.where(shift > 32, jnp.int32(1) << jnp.clip(shift - 33, 0, 31), jnp.int32(0))
    rounded = low + below
    high = high + above + (rounded < low).astype(jnp.int32)

    short = jnp.clip(shift, 1, 31)
    joined = (high.astype(jnp.uint32) << (32 - short).astype(jnp.uint32)) | (rounded >> short.astype(jnp.uint32))
    left_over = high >> (short - 1)  # all equal to the sign where the result fits 32 bits
    extreme = jnp.where(high < 0, jnp.int32(-(2**31)), jnp.int32(2**31 - 1))
    fits = (left_over == 0) | (left_over == -1)
    by_less = jnp.where(fits, joined.astype(jnp.int32), extreme)
    by_more = high >> jnp.clip(shift - 32, 0, 31)
    return jnp.where(shift < 32, by_less, by_more)


def wide_product(a: Int32[Array, "..."], b: Int32[Array, "..."]) -> tuple[Int32[Array, "..."], UInt32[Array, "..."]]:
    """Returns the product of 63 bits as (high, low) = (floor(a b / 2^32), a b mod 2^32), from 16-bit parts.

    Args:
      a: any value.
      b: 0 or more, of the shape of a.
    """
    a_high, a_low = a >> 16, a & 0xFFFF
    b_high, b_low = b >> 16, b & 0xFFFF
    lowest = a_low.astype(jnp.uint32) * b_low.astype(jnp.uint32)
    # Each sum stays below 2^31: |a_high| <= 2^15, b_high < 2^15, and the others are below 2^16.
    middle = a_high * b_low + (lowest >> 16).astype(jnp.int32)
    other = a_low * b_high + (middle & 0xFFFF)
    high = a_high * b_high + (middle >> 16) + (other >> 16)
    return high, (other.astype(jnp.uint32) << 16) | (lowest & 0xFFFF)


def rescaled_on_host(x: NDArray[np.int64], by: Multiplier) -> NDArray[np.int64]:
    """Returns what `rescale` does, by 64-bit integers of numpy: the definition that programs are compared with."""
    shift = np.asarray(by.shift, np.int64)
    exact = (x * np.asarray(by.significand, np.int64) + (np.int64(1) << (shift - 1))) >> shift
    return np.clip(exact, -(2**31), 2**31 - 1)
