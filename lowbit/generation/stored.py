"""How keys and values lie in the cache: heads before slots, as floats or as codes in halfwords.

What a token reads of a head is one piece of memory then, in the order in which matrix products and kernels want it:
no program turns the cache around. Each token and head has a scale of its own, rounded by the same quantizers as
weights: a code is written once, when its token is, and never touched again.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lowbit.errors import QuantizerError, nearest
from lowbit.generation.attention import Operand
from lowbit.llama import CacheKind
from lowbit.models.activations import cache_quantizer, cache_rows
from lowbit.pallas.fields import HALFWORD, TURNED

CACHE_KINDS: dict[str, CacheKind] = {
    "float32": CacheKind(32),
    "bfloat16": CacheKind(16),
    "int8": CacheKind(8),
    "int8_minmax": CacheKind(8, symmetric=False),
    "int4": CacheKind(4),
    "int4_minmax": CacheKind(4, symmetric=False),
}
"""By name. Symmetric is LLM-QAT's choice (arXiv 2305.17888); min-max spends two bytes more and uses all 16 levels."""


def cache_kind(name: str) -> CacheKind:
    """Returns the kind of a name.

    Raises:
      QuantizerError: no kind has it.
    """
    if name not in CACHE_KINDS:
        raise QuantizerError(f"the cache cannot hold keys and values as {name!r}", nearest(name, CACHE_KINDS))
    return CACHE_KINDS[name]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """Keys, or values, of every layer and position.

    Attributes:
      codes: floats [L b kv_heads T h], or halfwords i16 [L b kv_heads T s] of 16/bits codes each, s = ceil(h bits/16):
        dimension f*s + w is field f of halfword w, and bit 7 of both bytes is turned over, as `pallas.fields` has it.
      scale: f16 [L b kv_heads T 1], [L b 1 T 1] where heads share it, None for floats.
      zero: like scale, None for floats and where symmetric.
      kind: static.
      width: static, h.
    """

    codes: Any
    scale: Any
    zero: Any
    kind: CacheKind = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})

    def write(self, layer: jax.Array, start: jax.Array, x: jax.Array) -> "Stored":
        """Puts x [b t kv_heads h] at positions from `start` i32[] of one layer."""
        new = encode(x, self.kind)
        zero = jnp.zeros_like(layer)

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(whole, part[None], (layer, zero, zero, start.astype(layer.dtype), zero))

        return jax.tree.map(put, self, new)

    def with_codes(self, codes: jax.Array) -> "Stored":
        """Returns the same with other codes."""
        return dataclasses.replace(self, codes=codes)

    def read(self, layer: jax.Array, dtype: DTypeLike) -> Operand:
        """Returns all positions of one layer, as `attention` takes them."""
        one: Stored = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), self)
        return one.operand(dtype)

    def operand(self, dtype: DTypeLike) -> Operand:
        """Returns whole numbers in `dtype`, which holds them exactly, beside their scale; floats without one."""
        if self.scale is None:
            return Operand(self.codes.astype(dtype), None)
        codes = _fields(self.codes, self.kind.bits)[..., : self.width]
        middle = jnp.float32(2 ** (self.kind.bits - 1)) if self.zero is None else self.zero.astype(jnp.float32)
        scale = jnp.broadcast_to(self.scale.astype(jnp.float32)[..., 0], codes.shape[:-1])
        return Operand((codes.astype(jnp.float32) - middle).astype(dtype), scale)


def encode(x: jax.Array, kind: CacheKind) -> Stored:
    """Rounds [... t kv_heads h] as the cache holds it, [... kv_heads t h], with a scale a token or one a head of it."""
    width = x.shape[-1]
    if kind.bits >= 16:
        floats = x.astype(jnp.float32 if kind.bits == 32 else jnp.bfloat16)
        return Stored(jnp.swapaxes(floats, -2, -3), None, None, kind, width)
    wide = x.astype(jnp.float32)
    quantizer, rows = cache_quantizer(kind), cache_rows(kind, wide)
    rounded: Any = quantizer.encode(rows, quantizer.init(rows))

    def heads_first(of_rows: jax.Array | None) -> jax.Array | None:
        """Of an output of a transposed matrix, which a token's codes and scale are: turned back, then heads first."""
        if of_rows is None:
            return None
        return jnp.swapaxes(jnp.swapaxes(of_rows, -1, -2), -2, -3)

    codes = jnp.swapaxes(rounded.codes, -1, -2).reshape(x.shape)
    words = _halfwords(jnp.swapaxes(codes, -2, -3), kind.bits)
    return Stored(words, heads_first(rounded.scale), heads_first(rounded.zero), kind, width)


def _halfwords(codes: jax.Array, bits: int) -> jax.Array:
    """Codes u8[... h] as i16[... s]; what fills up the last fields is code 0."""
    fields = HALFWORD // bits
    missing = -codes.shape[-1] % fields
    filled = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)]).astype(jnp.uint16)
    words = jnp.full_like(filled[..., : filled.shape[-1] // fields], TURNED)
    for field, part in enumerate(jnp.split(filled, fields, axis=-1)):
        words = words ^ part << jnp.uint16(field * bits)
    return jax.lax.bitcast_convert_type(words, jnp.int16)


def _fields(words: jax.Array, bits: int) -> jax.Array:
    """The codes u16[... 16/bits*s] of i16[... s]."""
    plain = jax.lax.bitcast_convert_type(words, jnp.uint16) ^ jnp.uint16(TURNED)
    mask = jnp.uint16((1 << bits) - 1)
    return jnp.concatenate([plain >> jnp.uint16(at) & mask for at in range(0, HALFWORD, bits)], axis=-1)
