"""All that happens to queries, keys and values of one token between two products, in one kernel of a GPU.

It turns queries and keys by their positions, writes keys and values into a cache of floats, and attends to what the
cache had before and to the new token itself: what are six kernels otherwise, each as long as it takes to start.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lowbit import cuda
from lowbit.generation.step_attention import (
    NEVER,
    QUERIES,
    Tile,
    blocks_of_piece,
    mixed_pieces,
    pieces_for,
    product,
    tile_for,
    weighed,
)
from lowbit.generation.stored import Stored

FEW_HEADS = 32
"""Of keys, of all sequences, up to which the kernel in CUDA C++ is taken: each has a cluster of 8 blocks at most."""
FEW_SLOTS = 8192
"""Likewise; it was timed up to half of them. To many more, pieces with a program each keep more of a GPU busy."""


class Shape(NamedTuple):
    """Everything static.

    Attributes:
      group: query heads that share a key.
      kv_heads: of keys.
      h: numbers of a head.
      dtype: of queries, keys and values.
      tile: how a program works.
      splits: pieces of the slots, with a program each.
    """

    group: int
    kv_heads: int
    h: int
    dtype: Any
    tile: Tile
    splits: int

    @property
    def heads(self) -> int:
        """Of queries."""
        return self.group * self.kv_heads


def filled_slots(length: jax.Array, start: jax.Array) -> jax.Array:
    """Returns i32[1+b]: slots in use i32[], and the first of each sequence i32[b].

    To be made once for all layers: a GPU copies what a loop carries, before a kernel may read it, each time.
    """
    return jnp.concatenate([length.astype(jnp.int32).reshape(1), start.astype(jnp.int32)])


# A program of its own: it is traced once for all layers.
@functools.partial(jax.jit, static_argnames=("dtype", "tile", "splits", "interpret"))
def turned_stored_attended(
    qkv: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    keys: Stored,
    values: Stored,
    layer: jax.Array,
    filled: jax.Array,
    *,
    dtype: jnp.dtype,
    tile: Tile | None = None,
    splits: int | None = None,
    interpret: bool,
) -> tuple[jax.Array, Stored, Stored]:
    """Attention of one new token of each sequence, which is stored.

    Args:
      qkv: [b (heads + 2 kv_heads) h]: all queries, keys and values, not turned; rounded to `dtype` first.
      cos: f32[b 1 h/2] of the token's position.
      sin: likewise.
      keys: turned ones of all layers, floats.
      values: likewise.
      layer: i32[], which to use.
      filled: of `filled_slots`; the token is written behind them.
      dtype: of activations.
      tile: None takes what suits the cache.
      splits: pieces; None takes as many as fill a GPU.
      interpret: runs the kernel's operations one by one, on any device.

    Returns:
      ([b heads h] in one row each, in `dtype`; keys; values): these in the memory of the given ones.
    """
    b = qkv.shape[0]
    _, _, kv_heads, slots, h = keys.codes.shape
    group = (qkv.shape[1] // h - 2 * kv_heads) // kv_heads
    splits = pieces_for(b * kv_heads, slots) if splits is None else splits
    shape = Shape(group, kv_heads, h, dtype, tile_for(keys) if tile is None else tile, splits)
    if splits == 1:
        mixed_shapes = [jax.ShapeDtypeStruct((b, group * kv_heads * h), dtype)]
    else:
        pieces = (b, kv_heads, splits, QUERIES)
        mixed_shapes = [jax.ShapeDtypeStruct((*pieces, h), jnp.float32), jax.ShapeDtypeStruct(pieces, jnp.float32)]
    cached = [jax.ShapeDtypeStruct(part.codes.shape, part.codes.dtype) for part in (keys, values)]
    call = pl.pallas_call(
        functools.partial(_kernel, shape),
        out_shape=(*mixed_shapes, *cached),
        grid=(b, kv_heads, splits),
        input_output_aliases={5: len(mixed_shapes), 6: len(mixed_shapes) + 1},
        compiler_params=plgpu.CompilerParams(num_warps=shape.tile.warps, num_stages=shape.tile.stages),
        interpret=interpret,
        name="turned_stored_attended",
    )
    number = layer.astype(jnp.int32).reshape(1)
    *mixed, key_codes, value_codes = call(number, filled, qkv, cos, sin, keys.codes, values.codes)
    if splits > 1:
        whole = mixed_pieces(*mixed)[:, :, :group]
        mixed = [whole.reshape(b, -1).astype(dtype)]
    return mixed[0], keys.with_codes(key_codes), values.with_codes(value_codes)


def takes_cuda(keys: Stored, heads: int, dtype: Any) -> bool:
    """Returns whether the kernel in CUDA C++ attends here: to few heads, in bfloat16, on a GPU that it was made for.

    Args:
      keys: of the cache.
      heads: of queries.
      dtype: of activations.
    """
    _, b, kv_heads, slots, h = keys.codes.shape
    shape = cuda.AttentionShape(b, kv_heads, heads // kv_heads, h, slots)
    few = b * kv_heads <= FEW_HEADS and slots <= FEW_SLOTS
    return few and keys.codes.dtype == dtype == jnp.bfloat16 and cuda.attention_fits(shape) and cuda.available()


def attended_by_cuda(
    qkv: jax.Array, cos: jax.Array, sin: jax.Array, keys: Stored, values: Stored, layer: int, filled: jax.Array
) -> tuple[jax.Array, Stored, Stored]:
    """As `turned_stored_attended`, of a layer that is known; one kernel for any number of slots."""
    mixed, key_codes, value_codes = cuda.attend(qkv, cos, sin, filled, keys.codes, values.codes, layer)
    return mixed, keys.with_codes(key_codes), values.with_codes(value_codes)


def _kernel(
    shape: Shape,
    layer_ref: Any,
    filled_ref: Any,
    qkv_ref: Any,
    cos_ref: Any,
    sin_ref: Any,
    k_ref: Any,
    v_ref: Any,
    *refs: Any,
) -> None:
    *mixed_refs, k_out_ref, v_out_ref = refs
    row, head, split = (pl.program_id(axis) for axis in range(3))
    layer, length, start = layer_ref[0], filled_ref[0], filled_ref[row + 1]
    h, slots = shape.h, shape.tile.slots
    column = jax.lax.broadcasted_iota(jnp.int32, (1, h), 1)
    # Dimension i turns together with i + h/2: one takes the sine of the other with a minus.
    partner = jax.lax.rem(column + jnp.int32(h // 2), jnp.int32(h))
    angle = jnp.full_like(column, row), jnp.zeros_like(column), jax.lax.rem(column, jnp.int32(h // 2))
    cos, sin = plgpu.load(cos_ref.at[angle]), plgpu.load(sin_ref.at[angle])
    sin = jnp.where(column < h // 2, -sin, sin)

    def load(first: Any, own: jax.Array, at: jax.Array) -> jax.Array:
        """Columns of heads from one on, those that are there, as activations are rounded."""
        number = jax.lax.broadcasted_iota(jnp.int32, (own.shape[0], 1), 0)
        place = (first + number) * h + at
        index = qkv_ref.at[jnp.full_like(place, row), place]
        mask = jnp.broadcast_to(own, place.shape)
        return plgpu.load(index, mask=mask, other=jnp.zeros((), qkv_ref.dtype)).astype(shape.dtype)

    def turned(first: Any, own: jax.Array) -> jax.Array:
        plain, other = (load(first, own, at).astype(jnp.float32) for at in (column, partner))
        return (plain * cos + other * sin).astype(shape.dtype)

    query = jax.lax.broadcasted_iota(jnp.int32, (QUERIES, 1), 0)
    own = query < shape.group
    one = jnp.ones((1, 1), bool)
    queries = turned(head * shape.group, own)
    key = turned(shape.heads + head, one)
    value = load(shape.heads + shape.kv_heads + head, one, column)
    root = jnp.float32(h**-0.5)

    # The new token is what the first piece begins with; the cache has it for those that come later.
    first = split == 0
    score = jnp.sum(queries.astype(jnp.float32) * key.astype(jnp.float32), axis=1) * root
    largest = jnp.where(first, score, jnp.full_like(score, NEVER))
    total = jnp.where(first, jnp.ones_like(score), jnp.zeros_like(score))
    sums = jnp.broadcast_to(value.astype(jnp.float32), (QUERIES, h))
    sums = jnp.where(first, sums, jnp.zeros_like(sums))
    for ref, new in ((k_out_ref, key), (v_out_ref, value)):
        index = [jnp.full_like(column, i) for i in (layer, row, head, length)]
        plgpu.store(ref.at[(*index, column)], new.astype(ref.dtype), mask=jnp.full(column.shape, first))

    def block(number: jax.Array, carry: Any) -> Any:
        sums, largest, total = carry
        at = number * slots + jnp.arange(slots, dtype=jnp.int32)
        inside = (at >= start) & (at < length)

        def held(ref: Any) -> jax.Array:
            mask = jnp.broadcast_to(inside[:, None], (slots, h))
            place = ref.at[layer, row, head, pl.ds(number * slots, slots), :]
            return plgpu.load(place, mask=mask, other=jnp.zeros((), ref.dtype)).astype(shape.dtype)

        scores = jnp.where(inside[None, :], product(queries, held(k_ref), 1) * root, NEVER)
        shares, largest, before, total = weighed(scores, largest, total)
        sums = sums * before[:, None] + product(shares.astype(shape.dtype), held(v_ref), 0)
        return sums, largest, total

    begin, until = blocks_of_piece(start, length, slots, shape.splits, split)
    sums, largest, total = jax.lax.fori_loop(begin, until, block, (sums, largest, total))
    if shape.splits == 1:
        place = (head * shape.group + query) * h + column
        mixed = (sums / total[:, None]).astype(shape.dtype)
        index = mixed_refs[0].at[jnp.full_like(place, row), place]
        plgpu.store(index, mixed, mask=jnp.broadcast_to(own, place.shape))
        return
    empty = total == 0.0  # a piece without slots
    total = jnp.where(empty, jnp.float32(1), total)
    mixed_refs[0][row, head, split, :, :] = sums / total[:, None]
    mixed_refs[1][row, head, split, :] = jnp.where(empty, NEVER, largest + jnp.log(total))
