"""Scales as codes of 8 bits with scales of their own: double quantization (QLoRA, arXiv 2305.14314, section 3).

The scales of a matrix, less their mean, are whole numbers from -127 to 127 times a step that `BLOCK` of them share. A
step has 16 significant bits, so that its product with such a number is exact in float32: whether a compiler fuses it
with the addition of the mean changes nothing. What comes out is rounded to float16, and every reader goes on from there
as with scales that were stored so.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.numerics import scales

BLOCK = 256
"""Scales that share a step: those of one output after the other, groups in order of the inputs. The paper's."""

REACH = 127
"""Largest number of steps from the mean, on either side."""

MIDDLE = 128
"""The code of the mean."""

DTYPE = jnp.float16
"""What scales are rounded to before they are coded, and after."""

_LEAST_STEP = np.float32(2.0**-40)
_LOWER_BITS = np.uint32(0xFF)
_LARGEST = float(jnp.finfo(jnp.float32).max)


class CodedScale(NamedTuple):
    """The scales of a matrix as a file holds them.

    Attributes:
      codes: u8 `[*s n g]`, from `MIDDLE - REACH` to `MIDDLE + REACH`.
      steps: f32 `[*s b]`, of each `BLOCK` of the codes in their order; of 16 significant bits.
      mean: f32 `[*s 1]`.
    """

    # Not annotated as arrays: jax rebuilds tuples around stand-ins for them.
    codes: Any
    steps: Any
    mean: Any


def encode(scale: Float[Array, "*s g n"]) -> CodedScale:
    """Returns the nearest codes of scales; steps are just large enough that none is out of reach.

    The paper's 8 bits are floating-point numbers, and those of its code are closer together near the mean. Evenly
    spaced ones lose less of scales that are anything like normal.
    """
    rows = jnp.swapaxes(scales.stored(scale, DTYPE), -1, -2)
    *stacked, n, g = rows.shape
    flat = rows.reshape(*stacked, n * g)
    total = scales.sum_in_order(flat[..., None])
    # Limited to what it is anyway: a product that meets an addition unlimited may be fused with it, and not be rounded.
    mean = jnp.clip(total * np.float32(1 / (n * g)), scales.FLOOR, _LARGEST)
    padding = [(0, 0)] * len(stacked) + [(0, -(n * g) % BLOCK)]
    blocks = jnp.pad(flat - mean, padding).reshape(*stacked, -1, BLOCK)
    steps = _of_sixteen_bits(jnp.maximum(jnp.max(jnp.abs(blocks), axis=-1) * np.float32(1 / REACH), _LEAST_STEP))
    numbers = scales.in_units_of(steps[..., None], blocks.reshape(*stacked, -1, 1)).reshape(*stacked, -1)
    codes = jnp.clip(jnp.round(numbers[..., : n * g]), -REACH, REACH) + MIDDLE
    return CodedScale(codes.astype(jnp.uint8).reshape(*stacked, n, g), steps, mean)


def coded_bytes(count: int) -> int:
    """Returns the bytes of so many scales of a matrix: a code each, a step for each block of them, and their mean."""
    return count + 4 * math.ceil(count / BLOCK) + 4


def decode(coded: CodedScale) -> Float[Array, "*s g n"]:
    """Returns `half(clip((codes - 128) * step + mean, 1e-5, 65504))` in float32: what a reader finds."""
    *stacked, n, g = coded.codes.shape
    numbers = (coded.codes.astype(jnp.float32) - MIDDLE).reshape(*stacked, n * g)
    steps = jnp.repeat(coded.steps, BLOCK, axis=-1)[..., : n * g]
    rows = (numbers * steps + coded.mean).reshape(*stacked, n, g)
    return jnp.swapaxes(scales.stored(rows, DTYPE), -1, -2)


def _of_sixteen_bits(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The next float32 from x > 0 upward whose lower 8 bits are 0."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + _LOWER_BITS) & ~_LOWER_BITS, jnp.float32)
