"""A linear layer without a float in it: int8 inputs, integer weights, int32 sums, int8 outputs (arXiv 1712.05877).

Real numbers are turned into integers once, on the host, by `integer_linear`: scales become a multiplier of fixed point,
the bias and all zero points one int32 an output. `IntegerLinear.__call__` multiplies, adds and shifts integers alone.

`wide_linear` makes one with int16 outputs, which need no calibration: each output has the least step that holds all
that its inputs can come to.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int8, Int32
from numpy.typing import NDArray

from lowbit.errors import QuantizerError
from lowbit.numerics.fixed_point import Multiplier, multiplier, rescale
from lowbit.numerics.grids import Grid
from lowbit.numerics.qtensor import QTensor

LOW, HIGH = -128, 127
"""What eight bits hold."""

WIDE = 2**15 - 1
"""The largest code of sixteen bits."""


class Codes(NamedTuple):
    """What int8 codes of activations mean: `x = scale (code - zero)`; zero is an integer of eight bits."""

    scale: float
    zero: int

    def check(self, what: str) -> None:
        """Raises QuantizerError where no int8 code can mean that."""
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise QuantizerError(f"the scale of {what} is {self.scale:g}", "calibrate it: scales are above 0")
        if not LOW <= self.zero <= HIGH:
            raise QuantizerError(
                f"the zero point of {what} is {self.zero}", f"give one that eight bits hold, {LOW} to {HIGH}"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntegerLinear:
    """`y = x w + b` from int8 codes of x to int8 or int16 codes of y.

    Attributes:
      packed: i8[k n], or u8[k*width/8 n] of indices below 16 or 4, the first input in the lowest bits.
      weight_zero: i32[n], the integer that stands for a weight of 0; None where it is 0 everywhere.
      constant: i32[n], what no input changes: the bias in units of an input's step times a weight's, and zero points.
      by: from these units to the output's.
      width: 8, 4 or 2 bits of a stored weight (static).
      first: the integer of index 0; read where width is below 8 (static).
      stride: integers from one index to the next; likewise (static).
      out_zero: code of an output of 0 (static).
      out_bits: 8 or 16, of an output's code (static).
    """

    packed: Any
    weight_zero: Any
    constant: Any
    by: Multiplier
    width: int = dataclasses.field(metadata={"static": True})
    first: int = dataclasses.field(metadata={"static": True})
    stride: int = dataclasses.field(metadata={"static": True})
    out_zero: int = dataclasses.field(metadata={"static": True})
    out_bits: int = dataclasses.field(default=8, metadata={"static": True})

    def weights(self) -> Int8[Array, "k n"]:
        """Returns the integers that are multiplied."""
        if self.width == 8:
            return self.packed
        places = jnp.arange(0, 8, self.width, dtype=jnp.uint8)
        index = (self.packed[:, None, :] >> places[None, :, None]) & jnp.uint8(2**self.width - 1)
        rows = index.reshape(-1, self.packed.shape[1]).astype(jnp.int8)
        return jnp.int8(self.first) + jnp.int8(self.stride) * rows

    def sums(self, x: Int8[Array, "*b k"]) -> Int32[Array, "*b n"]:
        """Returns the outputs in units of an input's step times a weight's, exactly."""
        over_rows = (1,) * (x.ndim - 1) + self.constant.shape
        dimensions = (((x.ndim - 1,), (0,)), ((), ()))
        total = jax.lax.dot_general(x, self.weights(), dimensions, preferred_element_type=jnp.int32)
        if self.weight_zero is not None:
            inputs = jnp.sum(x, axis=-1, keepdims=True, dtype=jnp.int32)
            total = total - inputs * self.weight_zero.reshape(over_rows)
        return total + self.constant.reshape(over_rows)

    def __call__(self, x: Int8[Array, "*b k"]) -> Int[Array, "*b n"]:
        """Returns the codes of the outputs, i8 or i16: nearest, ties upwards, saturated."""
        held = jnp.iinfo(f"int{self.out_bits}")
        # Clipped before the zero point is added: next to a saturated int32 the sum would wrap.
        steps = jnp.clip(rescale(self.sums(x), self.by), int(held.min) - self.out_zero, int(held.max) - self.out_zero)
        return (steps + self.out_zero).astype(held.dtype)


def integer_linear(kernel: QTensor, bias: NDArray[np.floating] | None, inputs: Codes, outputs: Codes) -> IntegerLinear:
    """Turns a quantized kernel and what it reads and writes into integers.

    A result differs from the product of the decoded numbers by half a step of the output, half a step of the bias, and
    2^-31 of itself: the rounding of the output, of the bias, and of the multiplier.

    Args:
      kernel: codes [k n] of evenly spaced levels, with one scale an output or one in all.
      bias: [n], or None.
      inputs: what codes of x mean.
      outputs: what codes of y shall mean.

    Raises:
      QuantizerError: levels that are no integers, scales of groups or inputs, a zero point that is no integer, sums
        that could leave 32 bits, or scales that no multiplier joins.
    """
    inputs.check("the inputs")
    outputs.check("the outputs")
    weights = _integer_weights(kernel)
    unit_of_sums = inputs.scale * weights.scale
    whole_bias = np.zeros(weights.n) if bias is None else np.rint(np.asarray(bias, np.float64) / unit_of_sums)
    centred = weights.values - weights.zero[None]
    constant = whole_bias - inputs.zero * centred.sum(axis=0)
    farthest = max(HIGH - inputs.zero, inputs.zero - LOW)
    _check_sums(weights, np.abs(centred).sum(axis=0) * farthest + np.abs(whole_bias))
    return _linear(weights, constant, unit_of_sums / outputs.scale, outputs.zero, 8)


def wide_linear(kernel: QTensor) -> tuple[IntegerLinear, NDArray[np.float64]]:
    """Turns a quantized kernel into integers with outputs of sixteen bits, none of which any int8 inputs can exceed.

    The inputs have their zero at code 0 and any scale, which tokens may have of their own: nothing here depends on it.
    A result differs from the product of the decoded numbers by half a step, and 2^-31 of itself; a step is 2^-15 of the
    largest value that the output can have.

    Args:
      kernel: as for `integer_linear`.

    Returns:
      The layer, and f64[n]: output = code times this times the scale of the inputs.

    Raises:
      QuantizerError: as `integer_linear`, of the kernel and its sums.
    """
    weights = _integer_weights(kernel)
    largest = np.abs(weights.values - weights.zero[None]).sum(axis=0) * -LOW
    _check_sums(weights, largest)
    steps = np.maximum(largest, 1) / WIDE  # an output that is always 0 has no scale
    return _linear(weights, np.zeros(weights.n), 1 / steps, 0, 16), weights.scale * steps


class _Weights(NamedTuple):
    """A kernel as integers: `w = scale (values - zero)`, and how its codes are stored.

    Attributes:
      values: i64[k n], what eight bits hold.
      zero: i64[n].
      scale: f64[n].
      codes: [k n], of the grid.
      levels: how many of them there are.
      first: the integer of code 0, before all were moved into eight bits.
      stride: from one code to the next.
      moved: by how much.
    """

    values: NDArray[np.int64]
    zero: NDArray[np.int64]
    scale: NDArray[np.float64]
    codes: NDArray[np.integer]
    levels: int
    first: int
    stride: int
    moved: int

    @property
    def n(self) -> int:
        return self.values.shape[1]


def _integer_weights(kernel: QTensor) -> _Weights:
    if kernel.adapter is not None:
        raise QuantizerError("a kernel has an adapter of floats", "run it with float sums, or train without adapters")
    if kernel.codes.ndim != 2 or kernel.scale.shape[-2] != 1 or kernel.in_scale is not None or kernel.transposed:
        raise QuantizerError(
            f"a kernel with scales of shape {list(kernel.scale.shape)} for codes {list(kernel.codes.shape)} has more "
            "than one scale along its inputs",
            "round it with one scale a channel: sums of integers cannot change their unit on the way",
        )
    integers, unit = integer_levels(kernel.grid)
    n = kernel.codes.shape[1]
    codes = np.asarray(kernel.codes)
    scale = np.broadcast_to(np.asarray(kernel.scale, np.float64)[0], (n,)) * unit
    zero = _integer_zero(kernel, unit, n)
    # Codes from 0 to 255 become int8 by moving them and their zero point.
    moved = max(int(integers[-1]) - HIGH, 0)
    stride = int(integers[1] - integers[0])
    return _Weights(integers[codes] - moved, zero - moved, scale, codes, len(integers), int(integers[0]), stride, moved)


def _check_sums(weights: _Weights, largest: NDArray[np.number]) -> None:
    if not float(largest.max()) < 2**31:
        raise QuantizerError(
            f"sums of {len(weights.values)} products and the bias reach {largest.max():.3g}, beyond 32 bits",
            "round to fewer bits, or check the scales: a bias this large has the wrong unit",
        )


def _linear(
    weights: _Weights, constant: NDArray[np.floating], by: NDArray[np.float64], out_zero: int, out_bits: int
) -> IntegerLinear:
    width = _width(weights.levels, len(weights.values))
    return IntegerLinear(
        packed=jnp.asarray(weights.values.astype(np.int8) if width == 8 else _packed(weights.codes, width)),
        weight_zero=jnp.asarray(weights.zero.astype(np.int32)) if weights.zero.any() else None,
        constant=jnp.asarray(constant.astype(np.int32)),
        by=jax.tree.map(jnp.asarray, multiplier(by)),
        width=width,
        first=weights.first - weights.moved,
        stride=weights.stride,
        out_zero=out_zero,
        out_bits=out_bits,
    )


def integer_levels(grid: Grid) -> tuple[NDArray[np.int64], float]:
    """Returns evenly spaced levels as (integers, unit): levels = integers * unit, up to their rounding to float32.

    Raises:
      QuantizerError: the levels are not evenly spaced, or no integers of a common unit.
    """
    levels = np.asarray(grid.levels, np.float64)
    step = (levels[-1] - levels[0]) / (len(levels) - 1)
    for unit in (step, step / 2):  # levels without a zero are odd multiples of half a step
        integers = np.rint(levels / unit)
        if np.allclose(integers * unit, levels, rtol=2.0**-23, atol=2.0**-23 * step):
            return integers.astype(np.int64), float(unit)
    raise QuantizerError(
        f"the levels of the grid {grid.name!r} are no multiples of one unit",
        "take evenly spaced levels: integer, zero_point or paretoq",
    )


def _integer_zero(kernel: QTensor, unit: float, n: int) -> NDArray[np.int64]:
    if kernel.zero is None:
        return np.zeros(n, np.int64)
    zero = np.broadcast_to(np.asarray(kernel.zero, np.float64)[0], (n,)) / unit
    if not np.array_equal(zero, np.rint(zero)):
        raise QuantizerError("the zero points of the weights are no integers", "take the grid zero_point")
    return np.asarray(np.rint(zero), np.int64)


def _width(levels: int, k: int) -> int:
    """The narrowest storage for an index that k fills without a remainder."""
    return next((width for width in (2, 4) if levels <= 2**width and k % (8 // width) == 0), 8)


def _packed(index: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """u8[k n] of indices -> u8[k*width/8 n]."""
    k, n = index.shape
    parts = index.astype(np.uint8).reshape(k * width // 8, 8 // width, n)
    places = np.arange(0, 8, width, dtype=np.uint8)
    return np.bitwise_or.reduce(parts << places[None, :, None], axis=1)
