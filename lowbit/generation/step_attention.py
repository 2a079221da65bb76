"""Attention of one new token a sequence over a long cache, which bytes alone limit: ways to read them once.

Matrix products decode a layer of the cache, write it to memory and read it again, for a few queries a head. The ways
here decode what they read where they use it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike

from lowbit.errors import ConfigError, LowbitError, QuantizerError, nearest
from lowbit.generation.attention import Operand
from lowbit.generation.stored import Stored
from lowbit.llama import CacheKind, LlamaConfig
from lowbit.pallas import kernel_runs_here
from lowbit.pallas.fields import HALFWORD, Affine, to_bfloat16

METHODS = ("products", "sums", "kernel")
"""How a token attends: by matrix products as in prompts; by sums that XLA fuses with reading and decoding; by a Triton
kernel that reads filled slots alone, on an NVIDIA GPU."""

QUERIES = 16
"""Rows of a tensor core's tile: the query heads that share a key, filled up with zeros."""
LEAST = 16
"""Shortest side of a tensor core's tile, and so halfwords or floats of a head."""
WIDEST = 256
"""Numbers of a head: wider ones leave no registers for the sums of a tile."""
PROGRAMS = 1024
"""As many as keep the 132 processors of an H100 busy: fewer heads than that are cut along their slots."""
SPLIT_SLOTS = 128
"""Shortest piece that slots are cut into."""
LONG = 1024
"""Slots of a cache whose reading takes longer than what surrounds it."""
NEVER = float(jnp.finfo(jnp.float32).min)


class Tile(NamedTuple):
    """How a program works.

    Attributes:
      slots: that it reads together.
      warps: that share them.
      stages: of reading ahead.
    """

    slots: int
    warps: int
    stages: int


def chosen_method(name: str, cfg: LlamaConfig, kind: CacheKind, dtype: DTypeLike) -> str:
    """Returns which of `METHODS` a name means for a model, a cache and a dtype of activations.

    "auto" is the kernel for bfloat16 on a GPU that `lowbit.pallas` was made for, if it takes model and cache, and
    products otherwise: those of float32 are as exact as jax is told to be, and tensor cores are not.

    Raises:
      ConfigError: an unknown name; if the kernel was asked for, heads that it cannot take, or a device that is neither
        a GPU nor a CPU, which interprets it.
      QuantizerError: a cache that it cannot read, likewise.
    """
    if name == "auto":
        fits = kernel_refusal(cfg, kind) is None
        return "kernel" if fits and jnp.dtype(dtype) == jnp.bfloat16 and kernel_runs_here() else "products"
    check_method(name, cfg, kind, ("auto", *METHODS))
    platform = jax.default_backend()
    if name == "kernel" and platform not in ("gpu", "cpu"):
        raise ConfigError(f"the kernel of attention does not run on a {platform}", "take another way to attend")
    return name


def check_method(name: str, cfg: LlamaConfig, kind: CacheKind, names: tuple[str, ...] = METHODS) -> None:
    """Refuses what is no way to attend, or none for a model and a cache; raises as `chosen_method` does."""
    if name not in names:
        raise ConfigError(f"unknown attention {name!r}", nearest(name, names))
    refused = kernel_refusal(cfg, kind)
    if name == "kernel" and refused is not None:
        raise refused


def kernel_refusal(cfg: LlamaConfig, kind: CacheKind) -> LowbitError | None:
    """Returns why the kernel cannot serve a model with a cache, as an error to raise; None where it can."""
    h, group = cfg.head_dim, cfg.num_heads // cfg.num_kv_heads
    narrowest = LEAST * _planes(kind)
    if not kind.rotated:
        return QuantizerError(
            "the kernel of attention cannot read keys that are turned when they are read",
            "hold keys rotated, or take another way to attend",
        )
    if group > QUERIES or not narrowest <= h <= WIDEST or h & (h - 1):
        return ConfigError(
            f"the kernel of attention cannot take {group} queries a head of width {h} with a cache of {kind.bits} bits",
            f"take up to {QUERIES} of a power of two from {narrowest} to {WIDEST}, or another way to attend",
        )
    return None


def by_sums(queries: jax.Array, keys: Operand, values: Operand, start: jax.Array, used: jax.Array) -> jax.Array:
    """Attention by elementwise products and sums in float32.

    Args:
      queries: [b kv_heads g h].
      keys: [b kv_heads T h], and their scales.
      values: likewise.
      start: i32[b], the first slot of each sequence.
      used: i32[], slots that are in use; those before `start` are not seen.

    Returns:
      [b kv_heads g h] in the dtype of the queries.
    """
    wide = queries.astype(jnp.float32) * jnp.float32(queries.shape[-1] ** -0.5)
    slots = jnp.arange(keys.numbers.shape[2], dtype=jnp.int32)[None, :]
    seen = ((slots < used) & (slots >= start[:, None]))[:, None, :]
    weights = []
    # One sum for each query of a group: alike but for the query, so that XLA can make them in one pass over the keys.
    for g in range(queries.shape[2]):
        scores = jnp.sum(wide[:, :, g, None, :] * keys.numbers.astype(jnp.float32), axis=-1)
        if keys.scale is not None:
            scores = scores * keys.scale
        shares = jax.nn.softmax(jnp.where(seen, scores, NEVER), axis=-1)
        weights.append(shares if values.scale is None else shares * values.scale)
    # Without the barrier, each exponential might be computed anew for all of the h numbers that it weighs.
    weights = jax.lax.optimization_barrier(weights)
    mixed = [jnp.sum(share[..., None] * values.numbers.astype(jnp.float32), axis=2) for share in weights]
    return jnp.stack(mixed, axis=2).astype(queries.dtype)


# A program of its own: what looks for loop invariants (flax's scan) drops an unused jit, and would keep a bare kernel.
@functools.partial(jax.jit, static_argnames=("tile", "splits", "interpret"))
def by_kernel(
    queries: jax.Array,
    keys: Stored,
    values: Stored,
    layer: jax.Array,
    start: jax.Array,
    used: jax.Array,
    *,
    tile: Tile | None = None,
    splits: int | None = None,
    interpret: bool,
) -> jax.Array:
    """Attention by programs for each sequence and key-value head, with a running softmax (arXiv 2205.14135).

    Where those are few, the slots of each sequence are cut into pieces with a program each, whose results are mixed by
    the shares that their scores have of all.

    Args:
      queries: [b kv_heads g h], of heads that `kernel_refusal` lets pass.
      keys: of all layers.
      values: likewise.
      layer: i32[], which to read.
      start: i32[b], the first slot of each sequence.
      used: i32[], slots that are in use; none of the others, nor of those before `start`, are read.
      tile: None takes what suits the bytes of a slot.
      splits: pieces; None takes as many as fill a GPU.
      interpret: runs the kernel's operations one by one, on any device.

    Returns:
      [b kv_heads g h] in the dtype of the queries.
    """
    b, kv_heads, g, h = queries.shape
    planes = _planes(keys.kind)
    tile = tile_for(keys) if tile is None else tile
    splits = pieces_for(b * kv_heads, keys.codes.shape[3]) if splits is None else splits
    filled = jnp.pad(queries, ((0, 0), (0, 0), (0, QUERIES - g), (0, 0)))
    by_plane = jnp.swapaxes(filled.reshape(b, kv_heads, QUERIES, planes, h // planes), 2, 3)
    scales = [part for part in (keys.scale, values.scale, keys.zero, values.zero) if part is not None]
    call = pl.pallas_call(
        functools.partial(_attend, keys.kind, tile, splits, interpret),
        out_shape=(
            jax.ShapeDtypeStruct((b, kv_heads, splits, *by_plane.shape[2:]), jnp.float32),
            jax.ShapeDtypeStruct((b, kv_heads, splits, QUERIES), jnp.float32),
        ),
        grid=(b, kv_heads, splits),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="step_attention",
    )
    # Each number as it lies in memory: to put them into one array would be one kernel more to start.
    numbers = [number.astype(jnp.int32).reshape(1) for number in (layer, used)]
    mixed, weight = call(*numbers, start, by_plane, keys.codes, values.codes, *scales)
    whole = mixed_pieces(jnp.swapaxes(mixed, 3, 4).reshape(b, kv_heads, splits, QUERIES, h), weight)
    return whole[:, :, :g].astype(queries.dtype)


def pieces_for(heads: int, slots: int) -> int:
    """Returns into how many pieces slots are cut for so many key-value heads of all sequences."""
    return max(1, min(-(-PROGRAMS // heads), slots // SPLIT_SLOTS))


def blocks_of_piece(
    start: jax.Array, used: jax.Array, size: int, splits: int, split: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the first block of slots of a piece, and the first behind it, from that of the first slot on."""
    begin = jax.lax.div(start, jnp.int32(size))
    end = pl.cdiv(used, size)
    piece = pl.cdiv(end - begin, splits)
    begin = begin + split * piece
    return begin, jnp.minimum(begin + piece, end)


def mixed_pieces(mixed: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns values f32[b kv_heads q h] from those of pieces, by the shares that their scores have of all.

    Args:
      mixed: f32[b kv_heads splits q h].
      weight: f32[b kv_heads splits q], the logarithm of the sum of exponential scores.
    """
    return jnp.sum(jax.nn.softmax(weight, axis=2)[..., None] * mixed, axis=2)


def _planes(kind: CacheKind) -> int:
    """Codes of a halfword; floats are a plane of their own."""
    return 1 if kind.bits >= HALFWORD else HALFWORD // kind.bits


def tile_for(stored: Stored) -> Tile:
    """Returns the tile for a cache.

    8 KiB of keys and as much of values are read together, which three stages keep coming; up to 128 slots.

    Less where planes are 16 numbers: the compiler shares out rows then, which are one tile, so that each warp makes all
    products. One alone takes half the instructions of two, and for 32 slots its registers suffice. Floats of heads of
    64 have nothing to decode: two warps and half of it are a tenth faster (docs/results/attention_tiles_h100.json), but
    in caches of a few hundred slots, where they take a sixth longer.
    """
    span, slots = stored.codes.shape[-1], stored.codes.shape[3]
    if span == 64 and slots >= LONG and jnp.issubdtype(stored.codes.dtype, jnp.floating):
        return Tile(32, 2, 3)
    if span < 2 * LEAST:
        return Tile(32, 1, 3)
    return Tile(min(128, max(LEAST, 8192 // (span * stored.codes.dtype.itemsize))), 4, 3)


def _attend(
    kind: CacheKind,
    tile: Tile,
    splits: int,
    interpret: bool,
    layer_ref: Any,
    used_ref: Any,
    start_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    *refs: Any,
) -> None:
    """One program, for a piece of the slots of a head of a sequence.

    Queries are [b kv_heads planes 16 s], codes [L b kv_heads T s], scales and zeros beside them. Results are mixed
    values [b kv_heads splits planes 16 s], and [b kv_heads splits 16] the logarithm of the sum of exponential scores.
    """
    *scale_refs, o_ref, weight_ref = refs
    row, head, split = (pl.program_id(axis) for axis in range(3))
    layer, used, start = layer_ref[0], used_ref[0], start_ref[row]
    planes, _, span = q_ref.shape[2:]
    queries = [q_ref[row, head, plane, :, :] for plane in range(planes)]
    dtype = q_ref.dtype
    root = jnp.float32((planes * span) ** -0.5)
    query_sums = _total([jnp.sum(q.astype(jnp.float32), axis=1) for q in queries])
    absent: list[Any] = [None] * (4 - len(scale_refs))
    middle = 1 << (kind.bits - 1)

    def numbers(ref: Any, slots: Any, inside: jax.Array) -> list[jax.Array]:
        """[slots s] of each plane, in the dtype of the queries: floats, or code - middle, exact in 16 bits."""
        mask = jnp.broadcast_to(inside[:, None], (tile.slots, span))
        held = plgpu.load(ref.at[layer, row, head, slots, :], mask=mask, other=jnp.zeros((), ref.dtype))
        if not scale_refs:
            return [held.astype(dtype)]
        return [part.astype(dtype) for part in to_bfloat16(held, kind.bits, Affine(-middle, 1), interpret=interpret)]

    def slots_of(number: jax.Array) -> tuple[Any, jax.Array]:
        first = number * tile.slots
        at = first + jnp.arange(tile.slots, dtype=jnp.int32)
        return pl.ds(first, tile.slots), (at >= start) & (at < used)

    def scales_of(number: jax.Array) -> tuple[jax.Array, ...]:
        """Scales and zeros of a block, [1 slots] in float32."""
        slots, inside = slots_of(number)
        at = (layer, row, head if kind.per_head else jnp.int32(0), slots, jnp.int32(0))
        held = [plgpu.load(ref.at[at], mask=inside, other=jnp.zeros((), ref.dtype)) for ref in scale_refs]
        return tuple(one.astype(jnp.float32)[None, :] for one in held)

    def block(number: jax.Array, carry: Any) -> Any:
        sums, largest, total, scales = carry
        # Stages read codes ahead, but not what is as narrow as scales: those of the next block are asked for by hand.
        ahead = scales_of(number + jnp.int32(1))
        slots, inside = slots_of(number)
        key_scale, value_scale, key_zero, value_zero = list(scales) + absent
        keys = numbers(k_ref, slots, inside)
        scores = _total([product(q, k, 1) for q, k in zip(queries, keys, strict=True)])
        if key_zero is not None:
            scores = scores - query_sums[:, None] * (key_zero - jnp.float32(middle))
        scores = scores * (root if key_scale is None else key_scale * root)
        scores = jnp.where(inside[None, :], scores, NEVER)
        shares, now, before, total = weighed(scores, largest, total)
        if value_scale is not None:
            shares = shares * value_scale
        shares = shares.astype(dtype)
        sums = [one * before[:, None] for one in sums]
        if value_zero is not None:
            away = jnp.sum(shares.astype(jnp.float32) * (value_zero - jnp.float32(middle)), axis=1)[:, None]
            sums = [one - away for one in sums]
        values = numbers(v_ref, slots, inside)
        sums = [one + product(shares, v, 0) for one, v in zip(sums, values, strict=True)]
        return tuple(sums), now, total, ahead

    # Blocks from that of the first slot on: each has a slot that is seen, and leaves no NEVER behind.
    begin, until = blocks_of_piece(start, used, tile.slots, splits, split)
    nothing = (
        tuple(jnp.zeros((QUERIES, span), jnp.float32) for _ in range(planes)),
        jnp.full(QUERIES, NEVER),
        jnp.zeros(QUERIES, jnp.float32),
        scales_of(begin),
    )
    sums, largest, total, _ = jax.lax.fori_loop(begin, until, block, nothing)
    empty = total == 0.0  # a piece without slots
    total = jnp.where(empty, jnp.float32(1), total)
    for plane in range(planes):
        o_ref[row, head, split, plane, :, :] = sums[plane] / total[:, None]
    weight_ref[row, head, split, :] = jnp.where(empty, NEVER, largest + jnp.log(total))


def _total(parts: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, parts)


def weighed(
    scores: jax.Array, largest: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One step of a running softmax (arXiv 2205.14135).

    Args:
      scores: f32[q slots] of a block.
      largest: f32[q] of all before.
      total: f32[q] of their exponentials, over that of the largest.

    Returns:
      (shares f32[q slots] over the largest of all, which comes next; by how much what was mixed before shrinks; total).
    """
    now = jnp.maximum(largest, jnp.max(scores, axis=1))
    shares = jnp.exp(scores - now[:, None])
    before = jnp.exp(largest - now)
    return shares, now, before, total * before + jnp.sum(shares, axis=1)


def product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Returns [m k] times [n k] (axis 1) or [k n] (axis 0), sums in float32."""
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)
