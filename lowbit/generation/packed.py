"""Weights that stay packed in device memory: the bytes of the file, decoded inside the product that reads them.

Plain XLA, so that it runs wherever jax does. `packed_matmul` and `packed_matmul_int8` are the two places where a faster
kernel stands in: weights that were laid out for it (`GpuWeight`) are multiplied by `lowbit.pallas`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.errors import QuantizerError
from lowbit.formats.packing import PACKINGS, packing_for
from lowbit.kernels.reference import ACTIVATION_MAX, INT32_MAX, integer_levels
from lowbit.numerics.activations import dynamic, integers
from lowbit.numerics.low_rank import Factors
from lowbit.pallas import GpuWeight, matmul, matmul_int8, prepack

_ACTIVATIONS = dynamic(8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedWeight:
    """A quantized matrix [k n], or a stack of them, in the canonical packing of the file: a row of k codes an output.

    Attributes:
      packed: u8[*s n row_bytes], see `lowbit.formats.packing`.
      scale: f16 or f32 [*s g n], or [*s 1 1] for one scale for the whole matrix.
      zero: like scale, subtracted from the level before scaling; or None.
      in_scale: f16 or f32 [*s k], a second factor, of each input; or None.
      levels: what code i stands for, in units of the scale (static).
      k: inputs (static): the last byte of a row may be filled up.
      adapter: `Factors` f16 [*s k r] and [*s r n] of a matrix that is added; or None.
    """

    # Not annotated as arrays: transformations rebuild pytrees around stand-ins for them.
    packed: Any
    scale: Any
    zero: Any
    in_scale: Any
    levels: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    k: int = dataclasses.field(metadata={"static": True})
    adapter: Any = None

    def rows(self, index: jax.Array) -> "PackedWeight":
        """Returns some of the n outputs of a matrix that is no stack: i32[r] of them."""
        per_tensor = self.scale.shape[-1] == 1
        scale = self.scale if per_tensor else self.scale[:, index]
        zero = self.zero if per_tensor or self.zero is None else self.zero[:, index]
        return dataclasses.replace(self, packed=self.packed[index], scale=scale, zero=zero)


class EvenLevels(NamedTuple):
    """Levels `(first + distance * code) * unit`, exactly in float32."""

    first: int
    distance: int
    unit: float


def unpack(packed: jax.Array, num_levels: int, k: int) -> jax.Array:
    """Returns the codes u8[*s n k] of rows u8[*s n row_bytes]; `lowbit.formats.unpack` without its checks."""
    scheme = PACKINGS[packing_for(num_levels)]
    *rows, width = packed.shape
    if scheme.word_bytes == 1:
        words = packed
    else:
        whole = -(-width // scheme.word_bytes) * scheme.word_bytes
        padded = jnp.pad(packed, [(0, 0)] * len(rows) + [(0, whole - width)])
        parts = padded.reshape(*rows, -1, scheme.word_bytes).astype(jnp.uint32)
        words = jnp.sum(parts << _along_last(8 * np.arange(scheme.word_bytes), parts), axis=-1, dtype=jnp.uint32)
    words = words[..., None]
    places = scheme.base ** np.arange(scheme.digits)
    if scheme.base & (scheme.base - 1):
        digits = words // _along_last(places, words) % jnp.asarray(scheme.base, words.dtype)
    else:
        digits = words >> _along_last(np.log2(places), words) & jnp.asarray(scheme.base - 1, words.dtype)
    return digits.astype(jnp.uint8).reshape(*rows, -1)[..., :k]


def decode(w: PackedWeight) -> jax.Array:
    """Returns `(levels[codes] - zero) * scale * in_scale`, f32[*s n k], bit for bit as the file's reader.

    An adapter is left out: `adapter_product` adds what it gives.
    """
    codes = unpack(w.packed, len(w.levels), w.k)
    even = even_levels(w.levels)
    if even is None:
        values = jnp.asarray(np.asarray(w.levels, np.float32))[codes.astype(jnp.int32)]
    else:  # arithmetic is faster than a table, and as exact
        values = (codes.astype(jnp.float32) * even.distance + even.first) * even.unit
    grouped = values.reshape(*values.shape[:-1], w.scale.shape[-2], -1)
    if w.zero is not None:
        grouped = grouped - _by_rows(w.zero)
    decoded = (grouped * _by_rows(w.scale)).reshape(values.shape)
    return decoded if w.in_scale is None else decoded * w.in_scale.astype(jnp.float32)[..., None, :]


def for_gpu(w: PackedWeight) -> GpuWeight:
    """Returns a matrix or a stack laid out for the GPU's kernel, one layer of a stack after another.

    Raises:
      QuantizerError: levels or groups that the kernel does not take, or an adapter.
    """
    if w.adapter is not None:
        raise QuantizerError("the GPU's kernel adds no adapter", "leave the matrix to XLA: kernels='auto' or 'xla'")

    def one(w: PackedWeight) -> GpuWeight:
        return prepack(unpack(w.packed, len(w.levels), w.k), w.scale, w.levels, w.zero, w.in_scale)

    laid_out: GpuWeight = jax.jit(one if w.packed.ndim == 2 else lambda w: jax.lax.map(one, w))(w)
    return laid_out


def packed_matmul(x: jax.Array, w: PackedWeight | GpuWeight) -> jax.Array:
    """Returns x [b k] times the matrix, f32[b n]; weights are rounded to the dtype of x, sums are float32.

    XLA keeps at most one layer's decoded weights at a time. A `GpuWeight` is multiplied without rounding its levels,
    and x is taken as bfloat16.
    """
    if isinstance(w, GpuWeight):
        return matmul(x, w)
    kernel = decode(w).astype(x.dtype)
    product = jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return product if w.adapter is None else product + adapter_product(x, w.adapter)


def adapter_product(x: jax.Array, adapter: Factors) -> jax.Array:
    """Returns `(x a) b`, f32[b n]: two small products in place of one with the whole matrix; sums are float32."""
    inner = jnp.matmul(x, adapter.a.astype(x.dtype), preferred_element_type=jnp.float32)
    return jnp.matmul(inner, adapter.b.astype(jnp.float32), preferred_element_type=jnp.float32)


def packed_matmul_int8(x: jax.Array, w: PackedWeight | GpuWeight) -> jax.Array:
    """Returns the product f32[b n] with activations rounded to 8 bits per token and exact int32 sums.

    The meaning is that of `lowbit.kernels.matmul_int8`, rounding of activations included: an adapter has float sums, of
    activations as they were rounded. Activations that are not finite give NaN.

    Raises:
      QuantizerError: levels without `even_levels`, or groups so long that a sum could leave int32.
    """
    if isinstance(w, GpuWeight):
        return matmul_int8(*quantize_activations(w.scaled_inputs(x)), w)
    even = even_levels(w.levels)
    if even is None:
        raise QuantizerError(f"levels {list(w.levels)} are no whole numbers of a step", "take float activations")
    groups = w.scale.shape[-2]
    size = w.k // groups
    ends = (even.first, even.first + even.distance * (len(w.levels) - 1))
    largest = max(map(abs, ends)) * ACTIVATION_MAX
    if size * largest > INT32_MAX:
        raise QuantizerError(
            f"{size} products of up to {largest} may overflow an int32 sum",
            f"take groups of at most {INT32_MAX // largest}, or float activations",
        )
    dtype = jnp.int8 if min(ends) >= -128 and max(ends) <= 127 else jnp.int32
    scaled = x if w.in_scale is None else x.astype(jnp.float32) * w.in_scale.astype(jnp.float32)[None, :]
    codes, scale = quantize_activations(scaled)
    codes = codes.reshape(len(x), groups, size)
    # [g b G] by [g n G]: groups are a batch axis on both sides.
    levels = unpack(w.packed, len(w.levels), w.k).astype(jnp.int32) * even.distance + even.first
    kernel = levels.astype(dtype).reshape(-1, groups, size)
    sums = jax.lax.dot_general(
        codes.astype(dtype), kernel, (((2,), (2,)), ((1,), (1,))), preferred_element_type=jnp.int32
    )
    wide = sums.astype(jnp.float32) * even.unit
    if w.zero is not None:
        code_sums = jnp.sum(codes, axis=-1, dtype=jnp.int32).astype(jnp.float32).T
        wide = wide - code_sums[:, :, None] * w.zero.astype(jnp.float32)[:, None, :]
    product = jnp.sum(wide * w.scale.astype(jnp.float32)[:, None, :], axis=0) * scale
    if w.adapter is None:
        return product
    numbers, unit = quantize_activations(x)
    return product + adapter_product(numbers.astype(jnp.float32) * unit, w.adapter)


def quantize_activations(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds each token (row) of x [b k] to 8 bits: (codes i8[b k] within +-127, scale f32[b 1] = max|x| / 127).

    Bit for bit `lowbit.kernels.reference.quantize_activations` wherever x is finite.
    """
    rounded: Any = _ACTIVATIONS.encode(x, _ACTIVATIONS.init(x))
    codes = integers(rounded)
    return codes.numbers, codes.scale


def even_levels(levels: tuple[float, ...]) -> EvenLevels | None:
    """Returns levels as an arithmetic sequence of small integers times a unit, which 8-bit activations can meet.

    None where they are another codebook: the rule of the numpy runtime and the compiled kernels.
    """
    try:
        integers = integer_levels(np.asarray(levels, np.float32))
    except QuantizerError:
        return None
    distances = np.diff(integers.values)
    if (distances != distances[0]).any():
        return None
    return EvenLevels(int(integers.values[0]), int(distances[0]), float(integers.step))


def _by_rows(scale: jax.Array) -> jax.Array:
    """[*s g n] as f32[*s n g 1], to meet rows split into groups."""
    return jnp.swapaxes(scale.astype(jnp.float32), -1, -2)[..., None]


def _along_last(values: np.ndarray, like: jax.Array) -> jax.Array:
    """Constants in the dtype and rank of `like`, along its last axis."""
    return jnp.asarray(values.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,)))
