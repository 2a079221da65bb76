"""What a low-bit matrix product means, in plain numpy.

Three forms that every faster kernel is compared with: decode and multiply; multiply the levels and scale the
sums; and exact integer sums of 8-bit activations. They agree up to float32 rounding, and the integer sums are
exact. Shapes: x [b k], weights [k n], scales [g n], g groups of G = k/g.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import DataError, QuantizerError
from lowbit.formats import Adapter, PackedTensor

ACTIVATION_MAX = 127
"""Largest magnitude of an 8-bit activation: symmetric, so -128 is never used."""
INT32_MAX = 2**31 - 1
LEVEL_MAX = 255
"""Largest integer level. 65,536 products of it with an activation still fit an int32 sum: 2.12e9 < 2.15e9."""


class QuantizedActivations(NamedTuple):
    """One symmetric scale per token: x is near codes * scale.

    Attributes:
      codes: i8[b k], within +-127.
      scale: f32[b 1], max|x| / 127 of the token.
    """

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]


class IntegerLevels(NamedTuple):
    """Levels as small integers: levels = step * values, exactly in float32.

    Attributes:
      values: i32[L].
      step: the common unit.
    """

    values: NDArray[np.int32]
    step: np.float32


def kernel(w: PackedTensor) -> NDArray[np.float32]:
    """Returns the weights as f32[k n], whichever way round the parameter is, an adapter added."""
    return w.decode().T if w.transposed else w.decode()


def scaled_inputs(x: NDArray[np.float32], w: PackedTensor) -> NDArray[np.float32]:
    """Returns x[b k] times what `w` has as a factor of each input; x itself where it has none."""
    return x if w.in_scale is None else x * w.in_scale.astype(np.float32)


def matmul(x: NDArray[np.float32], w: PackedTensor) -> NDArray[np.float32]:
    """Returns x @ kernel(w), f32[b n]: the plain semantics."""
    return x @ kernel(w)


def matmul_levels(x: NDArray[np.float32], w: PackedTensor) -> NDArray[np.float32]:
    """Returns the product f32[b n] with the scales applied to the sums of each group, not to the weights.

    `sum_g scale[g] * (x_g @ levels[codes_g] - zero[g] * sum(x_g))`, with x times `in_scale` for x: one multiplication
    by a scale for each group and output instead of one for each weight.
    """
    x_groups = _groups_first(scaled_inputs(x, w), w.groups)
    levels = w.levels[_codes_by_group(w)]
    sums = x_groups @ levels
    if w.zero is not None:
        sums = sums - x_groups.sum(-1, keepdims=True) * w.zero.astype(np.float32)[:, None, :]
    product = (sums * w.scale.astype(np.float32)[:, None, :]).sum(0)
    return product if w.adapter is None else product + w.adapter.matmul(x)


def matmul_int8(x: NDArray[np.float32], w: PackedTensor) -> NDArray[np.float32]:
    """Returns the product f32[b n] with activations rounded to 8 bits per token and exact integer sums.

    `scale_x * sum_g scale[g] * (step * acc[g] - zero[g] * sum(codes_x))`, where acc is the int32 sum of products
    of activation codes and integer levels. Only the activations are approximated, after x was taken times `in_scale`.
    An adapter is multiplied in floats by x as it was rounded (`adapter_product`).

    Raises:
      QuantizerError: levels that are no small integers times a step, or sums that may pass int32.
      DataError: activations that are not finite.
    """
    levels = integer_levels(w.levels)
    tokens = quantize_activations(scaled_inputs(x, w))
    codes = _groups_first(tokens.codes, w.groups)
    acc = integer_matmul(codes, levels.values[_codes_by_group(w)])
    sums = acc.astype(np.float32) * levels.step
    if w.zero is not None:
        code_sums = codes.sum(-1, keepdims=True, dtype=np.int32).astype(np.float32)
        sums = sums - code_sums * w.zero.astype(np.float32)[:, None, :]
    product = (sums * w.scale.astype(np.float32)[:, None, :]).sum(0) * tokens.scale
    return product if w.adapter is None else product + adapter_product(x, w.adapter, "int8")


def adapter_product(x: NDArray[np.float32], adapter: Adapter, activations: str) -> NDArray[np.float32]:
    """Returns what an adapter adds to a product, f32[b n], with float sums; "int8" rounds x to 8 bits before.

    Compiled kernels add what this gives too, so that they and numpy agree bit for bit.

    Raises:
      DataError: activations to be rounded that are not finite.
    """
    if activations == "int8":
        tokens = quantize_activations(x)
        x = tokens.codes.astype(np.float32) * tokens.scale
    return adapter.matmul(x)


def quantize_activations(x: NDArray[np.float32]) -> QuantizedActivations:
    """Rounds each token (row) of x f32[b k] to 8 bits by its largest magnitude; a row of zeros stays zero.

    Raises:
      DataError: NaN or infinity.
    """
    if not np.isfinite(x).all():
        raise DataError("activations hold NaN or infinity", "check the model's weights and its input")
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(ACTIVATION_MAX)
    # Next to the smallest float32 the scale may round to zero, or down so far that a ratio passes 127.
    ratio = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
    codes = np.clip(np.rint(ratio), -ACTIVATION_MAX, ACTIVATION_MAX).astype(np.int8)
    return QuantizedActivations(codes, scale)


def integer_levels(levels: NDArray[np.float32]) -> IntegerLevels:
    """Returns levels as integers of at most 255 and their unit, the largest that makes all of them whole.

    Raises:
      QuantizerError: no unit does (a codebook of arbitrary floats).
    """
    # A float32 is an exact fraction, so the greatest common divisor is exact as well.
    fractions = [Fraction(float(level)) for level in levels]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * denominator) for fraction in fractions]
    unit = math.gcd(*whole) or 1
    values = [value // unit for value in whole]
    if max(map(abs, values)) <= LEVEL_MAX:
        return IntegerLevels(np.array(values, np.int32), np.float32(unit / denominator))
    raise QuantizerError(
        f"levels {[float(level) for level in levels]} are no small integers times a step",
        "use matmul or matmul_levels for this grid",
    )


def integer_matmul(codes: NDArray[np.int8], values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Returns codes[... b k] @ values[... k n] as exact i32[... b n].

    The sum runs in float64, which BLAS multiplies and which holds every integer below 2**53: nothing is
    rounded. The bound k * max|codes| * max|values| is checked against int32, the type of a compiled kernel.

    Raises:
      QuantizerError: k so long that a sum could leave int32.
    """
    k = codes.shape[-1]
    largest = int(np.abs(values).max(initial=0)) * ACTIVATION_MAX
    if k * largest > INT32_MAX:
        raise QuantizerError(
            f"{k} products of up to {largest} may overflow an int32 sum",
            f"split k into groups of at most {INT32_MAX // largest}",
        )
    return (codes.astype(np.float64) @ values.astype(np.float64)).astype(np.int32)


def _groups_first(x: np.ndarray, groups: int) -> np.ndarray:
    """[b k] -> [g b G]."""
    return x.reshape(len(x), groups, -1).swapaxes(0, 1)


def _codes_by_group(w: PackedTensor) -> NDArray[np.uint8]:
    """Codes as [g G n]."""
    k, n = w.shape
    return w.codes().reshape(w.groups, k // w.groups, n)
