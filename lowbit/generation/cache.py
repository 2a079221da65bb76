"""The key-value cache of a batch: keys and values of all tokens so far, in one pytree, and how new tokens attend to it.

Its arrays are allocated once and written in place.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lowbit.generation.attention import Operand, attention
from lowbit.generation.step_attention import by_kernel, by_sums, check_method
from lowbit.generation.stored import Stored, encode
from lowbit.llama import CacheKind, LlamaConfig
from lowbit.models.attention import rotary_at, rotate


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
      method: static, how a single token attends: a name of `step_attention.METHODS`.
    """

    keys: Stored
    values: Stored
    start: Any
    length: Any
    angles: Any = None
    method: str = dataclasses.field(default="products", metadata={"static": True})

    @property
    def rotated(self) -> bool:
        """Whether `attend` takes keys that their positions have turned."""
        return self.keys.kind.rotated

    @property
    def capacity(self) -> int:
        """Slots of a sequence, T."""
        return int(self.keys.codes.shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and their scales, and of the angles where keys are turned when they are read."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.keys, self.values, self.angles)))

    def attend(self, layer: Any, queries: Any, keys: Any, values: Any) -> tuple[Any, "KVCache"]:
        """Stores t new tokens of a layer and mixes values for their queries, as `KeyValueStore` says.

        All slots are read, also those that are still empty, since shapes cannot depend on how many are filled; but by
        the kernel, which reads those of each sequence alone.
        """
        cache = dataclasses.replace(
            self,
            keys=self.keys.write(layer, self.length, keys),
            values=self.values.write(layer, self.length, values),
        )
        if queries.shape[1] > 1 or self.method == "products":
            return cache._attend_by_products(layer, queries), cache
        used = self.length + jnp.int32(1)
        grouped = queries.reshape(queries.shape[0], keys.shape[2], -1, queries.shape[-1])
        if self.method == "kernel":
            mixed = by_kernel(
                grouped, cache.keys, cache.values, layer, self.start, used, interpret=jax.default_backend() == "cpu"
            )
        else:
            dtype = queries.dtype
            mixed = by_sums(grouped, cache.read_keys(layer, dtype), cache.values.read(layer, dtype), self.start, used)
        return mixed.reshape(queries.shape), cache

    def _attend_by_products(self, layer: jax.Array, queries: jax.Array) -> jax.Array:
        """Mixes values for queries [b t heads h] of the tokens that were stored last."""
        slots = jnp.arange(self.capacity, dtype=jnp.int32)[None, None, :]
        newest = (self.length + jnp.arange(queries.shape[1], dtype=jnp.int32))[None, :, None]
        visible = (slots <= newest) & (slots >= self.start[:, None, None])
        dtype = queries.dtype
        return attention(queries, self.read_keys(layer, dtype), self.values.read(layer, dtype), visible)

    def read_keys(self, layer: jax.Array, dtype: DTypeLike) -> Operand:
        """Returns the keys of all positions of one layer, turned; where reading turns them, as floats of `dtype`."""
        if self.angles is None:
            return self.keys.read(layer, dtype)
        numbers, scale = self.keys.read(layer, jnp.float32)
        whole = numbers if scale is None else numbers * scale[..., None]
        turned = rotate(jnp.swapaxes(whole, 1, 2), *self.angles)
        return Operand(jnp.swapaxes(turned, 1, 2).astype(dtype), None)

    def positions(self, tokens: int) -> jax.Array:
        """Returns where the next tokens stand in their sequences, i32[b t]; 0 for what fills up before the first."""
        slots = self.length + jnp.arange(tokens, dtype=jnp.int32)
        return jnp.maximum(slots[None, :] - self.start[:, None], 0)

    def filled(self, keys: Stored, values: Stored) -> "KVCache":
        """Returns the cache with other keys and values, of which it has as many."""
        return dataclasses.replace(self, keys=keys, values=values)

    def advance(self, tokens: int) -> "KVCache":
        """Counts tokens that all layers have stored."""
        return dataclasses.replace(self, length=self.length + jnp.int32(tokens))


def empty_cache(
    cfg: LlamaConfig, kind: CacheKind, start: jax.Array, capacity: int, method: str = "products"
) -> KVCache:
    """Returns a cache without tokens for sequences whose first tokens will be at slots i32[b].

    Raises:
      ConfigError: an unknown method, or heads that it cannot take.
      QuantizerError: a kind that it cannot read.
    """
    check_method(method, cfg, kind)
    shape = (cfg.num_layers, start.shape[0], capacity, cfg.num_kv_heads, cfg.head_dim)

    def zeros() -> Stored:
        like = jax.eval_shape(lambda: encode(jnp.zeros(shape, jnp.float32), kind))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    if kind.rotated:
        return KVCache(zeros(), zeros(), start, jnp.int32(0), None, method)
    slots = jnp.arange(capacity, dtype=jnp.int32)
    angles = rotary_at(cfg, jnp.maximum(slots[None, :] - start[:, None], 0))
    return KVCache(zeros(), zeros(), start, jnp.int32(0), angles, method)


def bytes_per_token(cfg: LlamaConfig, kind: CacheKind) -> int:
    """Returns what a token takes in the caches of all layers."""
    one = jax.eval_shape(lambda: encode(jnp.zeros((1, cfg.num_kv_heads, cfg.head_dim), jnp.float32), kind))
    return 2 * cfg.num_layers * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
