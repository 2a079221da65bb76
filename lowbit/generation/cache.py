"""The key-value cache: keys and values of all tokens so far, as floats or as 8- or 4-bit codes, in one pytree.

Its arrays are allocated once and written in place. Each token and head has a scale of its own, rounded by the same
quantizers as weights: a code is written once, when its token is, and never touched again.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lowbit.errors import QuantizerError, nearest
from lowbit.generation.attention import Operand, attention
from lowbit.llama import CacheKind, LlamaConfig
from lowbit.models.activations import cache_quantizer, cache_rows
from lowbit.models.attention import rotary_at, rotate

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
      codes: floats or u8 codes [L b T kv_heads h]; at 4 bits u8 [L b T kv_heads h/2], dimension i in the low half of
        byte i, i + h/2 in the high half.
      scale: f16 [L b T kv_heads 1], [L b T 1 1] where heads share it, None for floats.
      zero: like scale, None for floats and where symmetric.
      kind: static.
    """

    codes: Any
    scale: Any
    zero: Any
    kind: CacheKind = dataclasses.field(metadata={"static": True})

    def write(self, layer: jax.Array, start: jax.Array, x: jax.Array) -> "Stored":
        """Puts x [b t kv_heads h] at positions from `start` i32[] of one layer."""
        new = encode(x, self.kind)

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            at = (layer, jnp.zeros_like(layer), start.astype(layer.dtype), *[jnp.zeros_like(layer)] * 2)
            return jax.lax.dynamic_update_slice(whole, part[None], at)

        return jax.tree.map(put, self, new)

    def read(self, layer: jax.Array, dtype: DTypeLike) -> Operand:
        """Returns all positions of one layer, as `attention` takes them."""
        one: Stored = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), self)
        return one.operand(dtype)

    def operand(self, dtype: DTypeLike) -> Operand:
        """Returns whole numbers in `dtype`, which holds them exactly, beside their scale; floats without one."""
        if self.scale is None:
            return Operand(self.codes.astype(dtype), None)
        codes = self.codes
        if self.kind.bits == 4:
            codes = jnp.concatenate([codes & jnp.uint8(15), codes >> jnp.uint8(4)], axis=-1)
        middle = jnp.float32(2 ** (self.kind.bits - 1)) if self.zero is None else self.zero.astype(jnp.float32)
        scale = jnp.broadcast_to(self.scale.astype(jnp.float32)[..., 0], codes.shape[:-1])
        return Operand((codes.astype(jnp.float32) - middle).astype(dtype), scale)


def encode(x: jax.Array, kind: CacheKind) -> Stored:
    """Rounds [... kv_heads h] as the cache holds it: a scale for each head of each token, or for each token."""
    if kind.bits >= 16:
        return Stored(x.astype(jnp.float32 if kind.bits == 32 else jnp.bfloat16), None, None, kind)
    wide = x.astype(jnp.float32)
    quantizer, rows = cache_quantizer(kind), cache_rows(kind, wide)
    rounded: Any = quantizer.encode(rows, quantizer.init(rows))
    # A token's scale is that of an output of a transposed matrix: codes and scales are turned back.
    codes = jnp.swapaxes(rounded.codes, -1, -2).reshape(x.shape)
    if kind.bits == 4:
        low, high = jnp.split(codes, 2, axis=-1)
        codes = low | high << jnp.uint8(4)
    zero = None if rounded.zero is None else jnp.swapaxes(rounded.zero, -1, -2)
    return Stored(codes, jnp.swapaxes(rounded.scale, -1, -2), zero, kind)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """The cache of a batch of sequences that end at the same slot: shorter ones begin later.

    Attributes:
      keys: turned by their positions, unless `kind.rotated` says that reading turns them.
      values: as they are.
      start: i32[b], the slot of each sequence's first token; what lies before is never seen.
      length: i32[], slots in use.
      angles: cos and sin of the position of every slot, f32[b T h/2] each, by which unturned keys are read; or None.
    """

    keys: Stored
    values: Stored
    start: Any
    length: Any
    angles: Any = None

    @property
    def rotated(self) -> bool:
        """Whether `attend` takes keys that their positions have turned."""
        return self.keys.kind.rotated

    @property
    def capacity(self) -> int:
        """Slots of a sequence, T."""
        return int(self.keys.codes.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and their scales, and of the angles where keys are turned when they are read."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.keys, self.values, self.angles)))

    def attend(self, layer: Any, queries: Any, keys: Any, values: Any) -> tuple[Any, "KVCache"]:
        """Stores t new tokens of a layer and mixes values for their queries, as `KeyValueStore` says.

        All slots are read, also those that are still empty: shapes cannot depend on how many are filled.
        """
        cache = dataclasses.replace(
            self,
            keys=self.keys.write(layer, self.length, keys),
            values=self.values.write(layer, self.length, values),
        )
        slots = jnp.arange(self.capacity, dtype=jnp.int32)[None, None, :]
        newest = (self.length + jnp.arange(queries.shape[1], dtype=jnp.int32))[None, :, None]
        visible = (slots <= newest) & (slots >= self.start[:, None, None])
        dtype = queries.dtype
        mixed = attention(queries, cache.read_keys(layer, dtype), cache.values.read(layer, dtype), visible)
        return mixed, cache

    def read_keys(self, layer: jax.Array, dtype: DTypeLike) -> Operand:
        """Returns the keys of all positions of one layer, turned; where reading turns them, as floats of `dtype`."""
        if self.angles is None:
            return self.keys.read(layer, dtype)
        numbers, scale = self.keys.read(layer, jnp.float32)
        whole = numbers if scale is None else numbers * scale[..., None]
        return Operand(rotate(whole, *self.angles).astype(dtype), None)

    def positions(self, tokens: int) -> jax.Array:
        """Returns where the next tokens stand in their sequences, i32[b t]; 0 for what fills up before the first."""
        slots = self.length + jnp.arange(tokens, dtype=jnp.int32)
        return jnp.maximum(slots[None, :] - self.start[:, None], 0)

    def advance(self, tokens: int) -> "KVCache":
        """Counts tokens that all layers have stored."""
        return dataclasses.replace(self, length=self.length + jnp.int32(tokens))


def empty_cache(cfg: LlamaConfig, kind: CacheKind, start: jax.Array, capacity: int) -> KVCache:
    """Returns a cache without tokens for sequences whose first tokens will be at slots i32[b]."""
    shape = (cfg.num_layers, start.shape[0], capacity, cfg.num_kv_heads, cfg.head_dim)

    def zeros() -> Stored:
        like = jax.eval_shape(lambda: encode(jnp.zeros(shape, jnp.float32), kind))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    if kind.rotated:
        return KVCache(zeros(), zeros(), start, jnp.int32(0))
    slots = jnp.arange(capacity, dtype=jnp.int32)
    angles = rotary_at(cfg, jnp.maximum(slots[None, :] - start[:, None], 0))
    return KVCache(zeros(), zeros(), start, jnp.int32(0), angles)


def bytes_per_token(cfg: LlamaConfig, kind: CacheKind) -> int:
    """Returns what a token takes in the caches of all layers."""
    one = jax.eval_shape(lambda: encode(jnp.zeros((cfg.num_kv_heads, cfg.head_dim), jnp.float32), kind))
    return 2 * cfg.num_layers * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
