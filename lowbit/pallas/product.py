"""Products with packed weights: kernels for few tokens on a GPU, plain XLA for many and for all other devices.

What equals what:
- 8-bit activations: sums of whole numbers are exact everywhere. With one scale an output kernel and XLA have the same
  integers, those of `lowbit.kernels.reference.matmul_int8`, and the same bits. With groups XLA has the integers of each
  group; the kernel those of the codes in each block of it, and adds what code 0 stands for once a group: both are
  float32 sums of exact integers times scales, which differ by the rounding of their terms.
- bfloat16 activations: levels are whole numbers, exact in bfloat16, and so is each product in float32; scales are
  applied to float32 sums. Kernel and XLA differ in the order of these sums alone. The kernel in CUDA C++, for few
  tokens, rounds activations to whole numbers first, and its sums are exact (`lowbit.cuda.product`).
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from lowbit import cuda
from lowbit.cuda import CudaTile
from lowbit.errors import ConfigError, DataError, QuantizerError, nearest
from lowbit.kernels.reference import ACTIVATION_MAX, INT32_MAX
from lowbit.pallas import gemv, kernel
from lowbit.pallas.tiles import (
    MAX_TOKENS,
    AnyTile,
    GemvTile,
    Tile,
    cuda_shape,
    cuda_tile_for,
    gated_tile_for,
    gemv_tile_for,
    tile_for,
)
from lowbit.pallas.weight import GpuWeight, codes_of

Implementation = Literal["auto", "kernel", "interpreted", "xla"]
"""What multiplies; "interpreted" is the kernel run by jax.numpy, which is for tests."""
HOPPER = 9.0
"""Compute capability from which on the kernel is chosen: that of an H100, what it was measured on."""
SMALL_BLACKWELL = 12.0
"""Compute capability from which on it is not: GPUs with less shared memory than its tiles were measured with."""

MOST_GATED = 2048
"""Inputs of a matrix whose product makes them of gates: all of them, in each of its programs."""


def kernel_runs_here() -> bool:
    """Returns whether the default device is a GPU that the kernel is made for: compute capability 9.0 to below 12.0."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return False
    try:
        capability = float(getattr(device, "compute_capability", "0"))
    except ValueError:  # "gfx942": a GPU of another make, which runs under the same name of a platform
        return False
    return HOPPER <= capability < SMALL_BLACKWELL


def matmul(x: jax.Array, w: GpuWeight, implementation: str = "auto", tile: AnyTile | None = None) -> jax.Array:
    """Returns x [b k] times the matrix, f32[b n]; x is taken as bfloat16.

    Args:
      x: activations of any float dtype.
      w: weights.
      implementation: "auto" is the kernel for up to `MAX_TOKENS` tokens where `kernel_runs_here`, XLA otherwise.
      tile: of one of the three kernels; None takes what was measured to be good.

    Raises:
      ConfigError: an unknown implementation, or a tile that does not fit.
      DataError: x of another length.
    """
    chosen = _checked(x, w, implementation)
    x = w.scaled_inputs(x).astype(jnp.bfloat16)
    interpret = chosen == "interpreted"
    if tile is None:
        tile = _measured_tile(w, len(x), chosen)
    if chosen == "xla":
        y = _portable(x, w.single())
    elif isinstance(tile, CudaTile):
        y = _by_cuda(x, w, tile, chosen)
    elif isinstance(tile, GemvTile):
        y = gemv.gemv(x, w, tile, interpret=interpret)
    else:
        y = kernel.product(x, w, tile, interpret=interpret)
    if w.zero is None:
        return y
    sums = jnp.sum(x.astype(jnp.float32).reshape(len(x), w.groups, -1), axis=-1)
    return y - _zero_part(sums, w)


def _measured_tile(w: GpuWeight, tokens: int, chosen: str) -> AnyTile:
    """The fastest of the kernels that can run."""
    by_cuda = cuda_tile_for(w, tokens) if chosen == "kernel" and cuda.available() else None
    return by_cuda or (gemv_tile_for(w, tokens) if gemv.takes(w) else None) or tile_for(w, tokens)


def norm_tile(w: GpuWeight, tokens: int, eps: float) -> CudaTile | None:
    """Returns the tile with which `matmul_normed` takes so many tokens here; None where it does not."""
    if tokens != 1 or w.zero is not None or w.in_scale is not None or not kernel_runs_here() or not cuda.available():
        return None
    return cuda_tile_for(w, 1, eps=eps)


def matmul_normed(
    x: jax.Array, added: jax.Array, norm: jax.Array, eps: float, w: GpuWeight, tile: CudaTile
) -> tuple[jax.Array, jax.Array]:
    """Returns (x + added, bf16[1 k]; its RMS norm times the matrix, f32[1 n]), by one kernel.

    Args:
      x: residual stream bf16[1 k].
      added: f32[1 k], rounded to bfloat16 first.
      norm: f32[k], the scale of the norm.
      eps: of the norm.
      w: weights.
      tile: a `norm_tile`.
    """
    shape = cuda_shape(w, 1, eps=eps)
    assert shape is not None
    return cuda.matmul_normed(x, added, norm, w.scale, w.words, shape, tile, _layer(w))


def _layer(w: GpuWeight) -> int:
    """Which of a stack the weights are, known while a program is traced."""
    return 0 if w.layer is None else int(w.layer)


def _by_cuda(x: jax.Array, w: GpuWeight, tile: CudaTile, chosen: str, gated: bool = False) -> jax.Array:
    shape = cuda_shape(w, len(x), gated)
    if shape is None or chosen == "interpreted":
        raise ConfigError(
            f"{tile} is of a kernel for a GPU, few tokens, and a layer known in advance", "take another tile"
        )
    return cuda.matmul(x, w.scale, w.words, shape, tile, _layer(w))


def matmul_gated(both: jax.Array, w: GpuWeight) -> jax.Array:
    """Returns silu(gate) * other times the matrix, f32[b n], of both f32[b 2k], one after the other, as bfloat16.

    One kernel, for one token on a GPU that it was made for (without CUDA if there are few inputs); otherwise what is
    gated, and a `matmul`.
    """
    if len(both) == 1 and w.zero is w.in_scale is None and kernel_runs_here():
        by_cuda = cuda_tile_for(w, 1, gated=True) if cuda.available() else None
        if by_cuda is not None:
            return _by_cuda(both.astype(jnp.float32), w, by_cuda, "kernel", gated=True)
        tile = gated_tile_for(w) if w.groups == 1 and w.k <= MOST_GATED else None
        if tile is not None:
            return gemv.gemv(both, w, tile, gated=True)
    gate, other = jnp.split(both.astype(jnp.bfloat16), 2, axis=-1)
    return matmul(jax.nn.silu(gate) * other, w)


def matmul_int8(
    codes: jax.Array, scale: jax.Array, w: GpuWeight, implementation: str = "auto", tile: Tile | None = None
) -> jax.Array:
    """Returns the product f32[b n] of activations that are `codes * scale`, with exact int32 sums.

    Args:
      codes: i8[b k] within +-127, of activations that had `in_scale` already.
      scale: f32[b 1], a factor of each token.
      w: weights.
      implementation: see `matmul`.
      tile: see `matmul`.

    Raises:
      ConfigError: an unknown implementation.
      DataError: codes of another length.
      QuantizerError: groups so long that a sum could leave int32.
    """
    chosen = _checked(codes, w, implementation)
    size = w.k // w.groups
    ends = (w.levels.first, w.levels.first + w.levels.distance * ((1 << w.bits) - 1))
    largest = max(*map(abs, ends), (1 << w.bits) * w.levels.distance) * ACTIVATION_MAX
    if size * largest > INT32_MAX:
        raise QuantizerError(
            f"{size} products of up to {largest} may overflow an int32 sum",
            f"take groups of at most {INT32_MAX // largest}, or float activations",
        )
    sums = jnp.sum(codes.reshape(len(codes), w.groups, -1), axis=-1, dtype=jnp.int32)
    if chosen == "xla":
        y = _portable(codes, w.single())
    else:
        y = kernel.product_int8(codes, sums, w, tile or tile_for(w, len(codes)), interpret=chosen == "interpreted")
    if w.zero is not None:
        y = y - _zero_part(sums.astype(jnp.float32), w)
    return y * scale


def _checked(x: jax.Array, w: GpuWeight, implementation: str) -> str:
    """What computes, after everything that may be wrong."""
    if implementation not in get_args(Implementation):
        raise ConfigError(
            f"unknown implementation {implementation!r}", nearest(implementation, get_args(Implementation))
        )
    if x.ndim != 2 or x.shape[1] != w.k:
        raise DataError(f"activations are {list(x.shape)}", f"give [tokens {w.k}]")
    if implementation != "auto":
        return implementation
    return "kernel" if len(x) <= MAX_TOKENS and kernel_runs_here() else "xla"


def _portable(x: jax.Array, w: GpuWeight) -> jax.Array:
    """The kernel's sums in plain XLA: whole levels of the dtype of x, or of int32 where int8 does not hold them."""
    codes = codes_of(w).astype(jnp.int32)
    levels = codes * w.levels.distance + w.levels.first
    if x.dtype == jnp.int8:
        largest = max(abs(w.levels.first), abs(w.levels.first + w.levels.distance * ((1 << w.bits) - 1)))
        dtype = jnp.dtype(jnp.int8) if largest <= ACTIVATION_MAX + 1 else jnp.dtype(jnp.int32)
        out = jnp.dtype(jnp.int32)
    else:
        dtype, out = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    x, levels = x.astype(dtype), levels.astype(dtype)
    if w.groups == 1:
        sums = jax.lax.dot_general(x, levels, (((1,), (1,)), ((), ())), preferred_element_type=out)
        return sums.astype(jnp.float32) * w.scale.reshape(1, -1)
    if x.dtype == jnp.bfloat16 and len(x) > MAX_TOKENS:
        # Many tokens: one product of decoded weights. Their scales are rounded into them, which sums by group are not.
        wide = levels.astype(jnp.float32).reshape(w.n, w.groups, -1) * w.scale[:, :, None]
        decoded = wide.reshape(w.n, w.k).astype(jnp.bfloat16)
        return jax.lax.dot_general(x, decoded, (((1,), (1,)), ((), ())), preferred_element_type=out)
    # [g b G] by [g n G]: groups are a batch axis on both sides.
    x = x.reshape(len(x), w.groups, -1)
    levels = levels.reshape(w.n, w.groups, -1)
    sums = jax.lax.dot_general(x, levels, (((2,), (2,)), ((1,), (1,))), preferred_element_type=out)
    return jnp.sum(sums.astype(jnp.float32) * jnp.swapaxes(w.scale, 0, 1)[:, None, :], axis=0)


def _zero_part(sums: jax.Array, w: GpuWeight) -> jax.Array:
    """What zeros take off, from sums f32[b g] of activations."""
    factors = w.own(w.zero) * w.own(w.scale)
    return jax.lax.dot_general(sums, factors, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
