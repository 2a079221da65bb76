"""Attention of one new token a sequence by `attention.cu`: what it is compiled with, when it can be, and the call.

Queries, keys and values are turned by the position of the token and rounded to bfloat16; scores, their shares and sums
of values are float32. Slots are shared out among warps and blocks of threads, which changes the order of these sums.
"""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.cuda import kernels, target
from lowbit.errors import ConfigError

SOURCE = Path(__file__).with_name("attention.cu")
WARPS = 8
"""Of a block of threads."""
CHUNK = 32
"""Slots that a warp reads at once, of heads of up to `NARROW` numbers for `FEW_QUERIES`; half of them of wider ones,
and for more queries, or registers would not hold them."""
NARROW = 64
FEW_QUERIES = 5
MOST_BLOCKS = 8
"""Of a cluster, on every GPU that has them."""
MOST_QUERIES = 8
"""That share a key: they, and sums for each, are in registers."""


class AttentionShape(NamedTuple):
    """Everything static.

    Attributes:
      sequences: each with a new token.
      heads: of keys and values.
      group: query heads that share one of them.
      width: numbers of a head.
      slots: of the cache.
    """

    sequences: int
    heads: int
    group: int
    width: int
    slots: int


class AttentionTile(NamedTuple):
    """How the work is cut.

    Attributes:
      warps: of 32 threads of a block.
      blocks: of the cluster that has a head of a sequence.
      chunk: slots that a warp reads at once.
    """

    warps: int
    blocks: int
    chunk: int


def attention_fits(shape: AttentionShape) -> bool:
    """Returns whether the kernel can attend."""
    return 1 <= shape.group <= MOST_QUERIES and shape.width in (16, 32, 64, 128)


def attention_chunk(shape: AttentionShape) -> int:
    """Returns how many slots a warp can read at once."""
    return CHUNK >> (shape.width > NARROW) >> (shape.group > FEW_QUERIES)


def attention_tile(shape: AttentionShape) -> AttentionTile:
    """Returns a tile: a block where it can read all slots at once, else as many as can, if there are processors."""
    chunk = attention_chunk(shape)
    at_once = 1 << (math.ceil(shape.slots / (WARPS * chunk)) - 1).bit_length()
    apart = 1 << (max(1, kernels.PROCESSORS // (shape.sequences * shape.heads)).bit_length() - 1)
    return AttentionTile(WARPS, min(at_once, apart, MOST_BLOCKS), chunk)


def defines(shape: AttentionShape, tile: AttentionTile) -> dict[str, int]:
    """Returns what `attention.cu` is compiled with."""
    return {
        "HEADS": shape.heads,
        "SHARING": shape.group,
        "GROUP": shape.group,
        "WIDTH": shape.width,
        "SLOTS": shape.slots,
        "WARPS": tile.warps,
        "BLOCKS": tile.blocks,
        "CHUNK": tile.chunk,
        "SHARED": shared_bytes(shape, tile),
    }


def shared_bytes(shape: AttentionShape, tile: AttentionTile) -> int:
    """Returns the shared memory of a block: what each warp found, and the block."""
    return 4 * (tile.warps + 1) * shape.group * (shape.width + 2)


def attend(
    qkv: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    filled: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    layer: int,
    tile: AttentionTile | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (bf16[b heads h] in one row each; keys; values), these in the memory of the given ones.

    Args:
      qkv: f32[b (heads + 2 kv_heads) h], of the new tokens: all queries, keys and values, not turned.
      cos: f32[b 1 h/2] of their positions.
      sin: likewise.
      filled: i32[1+b], slots in use, and the first of each sequence; the token is written behind them.
      keys: bf16[layers b kv_heads slots h], turned.
      values: likewise.
      layer: which of them.
      tile: how it is cut; None takes `attention_tile`.

    Raises:
      ConfigError: heads that the kernel does not take.
      KernelError: no compiler.
    """
    _, b, heads, slots, width = keys.shape
    shape = AttentionShape(b, heads, (qkv.shape[1] // width - 2 * heads) // heads, width, slots)
    if not attention_fits(shape):
        raise ConfigError(
            f"the kernel of attention in CUDA C++ does not take {shape}",
            f"take up to {MOST_QUERIES} queries a head, of 16 to 128 numbers, or another way to attend",
        )
    tile = attention_tile(shape) if tile is None else tile
    results = (
        jax.ShapeDtypeStruct((b, shape.group * heads * width), jnp.bfloat16),
        *(jax.ShapeDtypeStruct(part.shape, part.dtype) for part in (keys, values)),
    )
    call = jax.ffi.ffi_call(target.ATTENTION_TARGET, results, input_output_aliases={4: 1, 5: 2})
    mixed, keys, values = call(
        *(qkv, cos, sin, filled, keys, values),
        kernel=kernels.known(SOURCE, defines(shape, tile)),
        layer=np.int64(layer),
        blocks=np.int64(b * heads * tile.blocks),
        threads=np.int64(32 * tile.warps),
        shared=np.int64(shared_bytes(shape, tile)),
        cluster=np.int64(tile.blocks),
    )
    return mixed, keys, values
