"""Attention of one new token a sequence over a long cache, which bytes alone limit: ways to read them once.

A matrix product wants its operands laid out by heads. Turning a layer of the cache around reads it, writes it and reads
it again, for a few queries a head. The ways here read the cache where it lies.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lowbit.errors import ConfigError, QuantizerError, nearest
from lowbit.generation.attention import Operand
from lowbit.generation.cache import KVCache, Stored

METHODS = ("products", "sums", "kernel")
"""How a token attends: by matrix products as in prompts; by sums that XLA fuses with reading and decoding; by a Triton
kernel that reads filled slots alone, on an NVIDIA GPU."""

QUERIES = 16
"""Rows of a tensor core's tile: the query heads that share a key, filled up with zeros."""
SLOTS = 64
"""Positions that the kernel reads together."""
NEVER = float(jnp.finfo(jnp.float32).min)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepCache(KVCache):
    """A cache whose sequences all begin at slot 0, and grow by a token at a time.

    Attributes:
      method: static.
    """

    method: str = dataclasses.field(default="products", metadata={"static": True})

    def attend(self, layer: Any, queries: Any, keys: Any, values: Any) -> tuple[Any, KVCache]:
        """Stores a token of a layer [b 1 kv_heads h] and mixes values for its queries [b 1 heads h]."""
        if self.method == "products":
            return super().attend(layer, queries, keys, values)
        cache = dataclasses.replace(
            self,
            keys=self.keys.write(layer, self.length, keys),
            values=self.values.write(layer, self.length, values),
        )
        b, _, heads, h = queries.shape
        kv_heads = keys.shape[2]
        grouped = queries.reshape(b, kv_heads, heads // kv_heads, h)
        used = self.length + jnp.int32(1)
        if self.method == "sums":
            dtype = queries.dtype
            mixed = by_sums(grouped, cache.read_keys(layer, dtype), cache.values.read(layer, dtype), used)
        else:
            mixed = by_kernel(grouped, cache.keys, cache.values, layer, used, jax.default_backend() == "cpu")
        return mixed.reshape(queries.shape), cache


def step_cache(cache: KVCache, method: str) -> StepCache:
    """Returns an empty cache as one that grows by single tokens.

    Raises:
      ConfigError: an unknown method.
      QuantizerError: a cache that the kernel cannot read.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown attention {method!r}", nearest(method, METHODS))
    kind = cache.keys.kind
    if method == "kernel" and not (kind.rotated and kind.symmetric and kind.bits >= 8):
        raise QuantizerError(
            f"the kernel of attention cannot read keys and values of {kind.bits} bits held so",
            "take floats or symmetric 8 bits, or another way to attend",
        )
    parts = {field.name: getattr(cache, field.name) for field in dataclasses.fields(cache)}
    return StepCache(**parts, method=method)


def by_sums(queries: jax.Array, keys: Operand, values: Operand, used: jax.Array) -> jax.Array:
    """Attention by elementwise products and sums in float32.

    Args:
      queries: [b kv_heads g h].
      keys: [b T kv_heads h], and their scales.
      values: likewise.
      used: i32[], slots that are seen.

    Returns:
      [b kv_heads g h] in the dtype of the queries.
    """
    wide = queries.astype(jnp.float32) * jnp.float32(queries.shape[-1] ** -0.5)
    seen = (jnp.arange(keys.numbers.shape[1], dtype=jnp.int32) < used)[None, :, None]
    weights = []
    # One sum for each query of a group: alike but for the query, so that XLA can make them in one pass over the keys.
    for g in range(queries.shape[2]):
        scores = jnp.sum(wide[:, None, :, g] * keys.numbers.astype(jnp.float32), axis=-1)
        if keys.scale is not None:
            scores = scores * keys.scale
        shares = jax.nn.softmax(jnp.where(seen, scores, NEVER), axis=1)
        weights.append(shares if values.scale is None else shares * values.scale)
    # Without the barrier, each exponential might be computed anew for all of the h numbers that it weighs.
    weights = jax.lax.optimization_barrier(weights)
    mixed = [jnp.sum(share[..., None] * values.numbers.astype(jnp.float32), axis=1) for share in weights]
    return jnp.stack(mixed, axis=2).astype(queries.dtype)


# A program of its own: what looks for loop invariants (flax's scan) drops an unused jit, and would keep a bare kernel.
@functools.partial(jax.jit, static_argnames=("interpret",))
def by_kernel(
    queries: jax.Array, keys: Stored, values: Stored, layer: jax.Array, used: jax.Array, interpret: bool
) -> jax.Array:
    """Attention by one program for each sequence and key-value head, with a running softmax (arXiv 2205.14135).

    Args:
      queries: [b kv_heads g h].
      keys: of all layers.
      values: likewise.
      layer: i32[], which to read.
      used: i32[], slots that are seen; no others are read.
      interpret: runs the kernel's operations one by one, on any device.

    Returns:
      [b kv_heads g h] in the dtype of the queries.

    Raises:
      ConfigError: more than 16 queries a head, or heads whose width is no power of two of 16 or more.
    """
    b, kv_heads, g, h = queries.shape
    if g > QUERIES or h < QUERIES or h & (h - 1):
        raise ConfigError(
            f"the kernel of attention cannot take {g} queries a head of width {h}",
            f"take up to {QUERIES} of a power of two from {QUERIES} on, or another way to attend",
        )
    if beyond_signed_offsets(keys.codes.size, keys.codes.dtype.itemsize):
        one = functools.partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=True)
        keys, values = jax.tree.map(one, (keys, values))
        layer = jnp.zeros_like(layer)
    filled = jnp.pad(queries, ((0, 0), (0, 0), (0, QUERIES - g), (0, 0)))
    scales = () if keys.scale is None else (keys.scale, values.scale)
    call = pl.pallas_call(
        functools.partial(_attend, keys.kind.per_head),
        out_shape=jax.ShapeDtypeStruct(filled.shape, queries.dtype),
        grid=(b, kv_heads),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="step_attention",
    )
    place = jnp.stack([layer.astype(jnp.int32), used.astype(jnp.int32)])
    mixed: jax.Array = call(place, filled, keys.codes, values.codes, *scales)
    return mixed[:, :, :g]


def beyond_signed_offsets(size: int, itemsize: int) -> bool:
    """Whether an array has places that Pallas counts in 32 bits, and Triton with a sign: 2 to 4 G numbers of a byte.

    A layer by itself is small enough then, at the price of a copy; larger arrays are counted in 64 bits.
    """
    return size > 2**31 and size * itemsize <= 2**32


def _attend(per_head: bool, place_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any) -> None:
    """One program; refs are whole arrays: queries [b kv_heads 16 h], codes [L b T kv_heads h], scales beside them."""
    *scale_refs, o_ref = refs
    row, head = pl.program_id(0), pl.program_id(1)
    layer, used = place_ref[0], place_ref[1]
    width, zero = q_ref.shape[-1], jnp.int32(0)
    q = q_ref[row, head, :, :]

    def numbers(ref: Any, slots: Any, inside: jax.Array) -> jax.Array:
        """[SLOTS h] in the dtype of the queries, which holds whole numbers of 8 bits exactly; 0 where not used."""
        mask = jnp.broadcast_to(inside[:, None], (SLOTS, width))
        codes = plgpu.load(ref.at[layer, row, slots, head, :], mask=mask, other=jnp.zeros((), ref.dtype))
        if not scale_refs:
            return codes.astype(q.dtype)
        return jnp.where(mask, codes.astype(jnp.float32) - 128.0, 0.0).astype(q.dtype)

    def scale(ref: Any, slots: Any, inside: jax.Array) -> jax.Array:
        """[1 SLOTS] in float32."""
        at = ref.at[layer, row, slots, head if per_head else zero, zero]
        return plgpu.load(at, mask=inside, other=jnp.zeros((), ref.dtype)).astype(jnp.float32)[None, :]

    def block(number: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, Any, Any]:
        sums, largest, total = carry
        first = number * SLOTS
        inside = first + jnp.arange(SLOTS, dtype=jnp.int32) < used
        slots = pl.ds(first, SLOTS)
        scores = _product(q, numbers(k_ref, slots, inside), 1) * jnp.float32(width**-0.5)
        if scale_refs:
            scores = scores * scale(scale_refs[0], slots, inside)
        scores = jnp.where(inside[None, :], scores, NEVER)
        now = jnp.maximum(largest, jnp.max(scores, axis=1))
        shares = jnp.exp(scores - now[:, None])
        before = jnp.exp(largest - now)
        total = total * before + jnp.sum(shares, axis=1)
        if scale_refs:
            shares = shares * scale(scale_refs[1], slots, inside)
        new = _product(shares.astype(q.dtype), numbers(v_ref, slots, inside), 0)
        return sums * before[:, None] + new, now, total

    # Slot 0 is always seen: the first block leaves no NEVER behind.
    nothing = jnp.zeros((QUERIES, width), jnp.float32), jnp.full(QUERIES, NEVER), jnp.zeros(QUERIES, jnp.float32)
    sums, _, total = jax.lax.fori_loop(0, pl.cdiv(used, SLOTS), block, nothing)
    o_ref[row, head, :, :] = (sums / total[:, None]).astype(o_ref.dtype)


def _product(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """[m k] times [n k] (axis 1) or [k n] (axis 0), sums in float32."""
    return jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)
