"""Products of few tokens by `product.cu`: what it is compiled with, and the call.

Activations are rounded to whole numbers in units of 2**-21 of the power of two below the largest of their token:
bfloat16 numbers down to 2**-14 of the largest are kept as they are. With a scale for each output all sums are whole
numbers, exact in 64 bits, and a result is rounded twice, as float32 and by its scale: it does not depend on how the
work is cut. With groups, exact sums over 64 or 128 inputs are scaled and added up as float32, in the same order every
time. Activations that are not finite give NaN for their token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.cuda import kernels, target
from lowbit.cuda.product_shapes import (
    TILE,
    CudaTile,
    Shape,
    fits,
    grid,
    pieces_ahead,
    resident,
    shared_bytes,
    slots,
)
from lowbit.errors import ConfigError

SOURCE = Path(__file__).with_name("product.cu")


def matrix_defines(name: str, shape: Shape, chunks: int) -> dict[str, int]:
    """Returns what `matrix.h` has to know of a matrix, under its name."""
    numbers = {
        "TOKENS": shape.tokens,
        "INPUTS": shape.inputs,
        "OUTPUTS": shape.outputs,
        "GROUPS": shape.groups,
        "BITS": shape.bits,
        "SPAN": shape.span,
        "BLOCKS": shape.blocks,
        "FIRST": shape.first,
        "DISTANCE": shape.distance,
        "CHUNKS": chunks,
    }
    return {f"{name}_{key}": number for key, number in numbers.items()}


def defines(shape: Shape, tile: CudaTile) -> dict[str, int]:
    """Returns what `product.cu` is compiled with."""
    return matrix_defines("OWN", shape, tile.chunks) | {
        "GATED": int(shape.gated),
        "NORMED": int(shape.eps is not None),
        "EPS": int(np.float32(shape.eps or 0).view(np.uint32)),
        "TILES": tile.rows // TILE,
        "GRID": grid(shape, tile),
        "RING": slots(shape, tile),
        "WARPS": tile.warps,
        "TEAM": tile.warps,
        "NEST": 0,
        "ABREAST": 2,
        "AHEAD": pieces_ahead(shape, tile),
        "SHARED": shared_bytes(shape, tile),
        "RESIDENT": resident(shape, tile),
    }


def matmul(
    x: jax.Array, scale: jax.Array, words: Sequence[jax.Array], shape: Shape, tile: CudaTile, layer: int = 0
) -> jax.Array:
    """Returns x times whole levels of codes and their scale, f32[b n].

    Args:
      x: activations bf16[b k], or f32[1 2k] that they are made of.
      scale: f32[n g], or a stack of them.
      words: i16[n halfwords] of each part of the codes, or stacks of them.
      shape: of the product.
      tile: how it is cut.
      layer: which of the stacks; the launch finds it, the kernel knows of no stack.

    Raises:
      ConfigError: a tile that does not fit.
      KernelError: no compiler.
    """
    attributes = _launch(shape, tile, layer)
    call = jax.ffi.ffi_call(target.TARGET, _product(shape), vmap_method="sequential")
    y: jax.Array = call(x, scale, words[0], words[-1], **attributes)
    return y


def matmul_normed(
    x: jax.Array,
    added: jax.Array,
    norm: jax.Array,
    scale: jax.Array,
    words: Sequence[jax.Array],
    shape: Shape,
    tile: CudaTile,
    layer: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Returns (x + added, bf16[1 k]; its RMS norm, times whole levels of codes and their scale, f32[1 n]).

    The sum is rounded as `added` was before, to bfloat16; so is the norm of it, which `shape.eps` is of.

    Args:
      x: residual stream bf16[1 k].
      added: f32[1 k].
      norm: f32[k], the scale of the norm.
      scale: see `matmul`, as what follows.
      words: codes.
      shape: of the product.
      tile: how it is cut.
      layer: which of the stacks.

    Raises:
      ConfigError: a tile that does not fit.
      KernelError: no compiler.
    """
    attributes = _launch(shape, tile, layer)
    results = _product(shape), jax.ShapeDtypeStruct((shape.tokens, shape.inputs), jnp.bfloat16)
    call = jax.ffi.ffi_call(target.NORMED_TARGET, results, vmap_method="sequential")
    y, total = call(x, scale, words[0], words[-1], added, norm, **attributes)
    return total, y


def _product(shape: Shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((shape.tokens, shape.outputs), jnp.float32)


def _launch(shape: Shape, tile: CudaTile, layer: int) -> dict[str, Any]:
    """What a handler is to know."""
    if not fits(shape, tile):
        raise ConfigError(f"{tile} does not fit {shape}", "take a tile of `lowbit.pallas.tiles`, or fewer rows")
    return {
        "kernel": kernels.known(SOURCE, defines(shape, tile)),
        "layer": np.int64(layer),
        "chunks": np.int64(tile.chunks),
        "blocks": np.int64(grid(shape, tile)),
        "threads": np.int64(32 * (tile.warps + 1)),
        "shared": np.int64(shared_bytes(shape, tile)),
    }
