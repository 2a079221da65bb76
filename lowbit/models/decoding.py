"""The decoder as it writes text: the same layers and parameters, with the keys and values of earlier tokens in a store.

As the model knows nothing of quantized weights, it knows nothing of how a store holds what it is given.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lowbit.llama import LlamaConfig
from lowbit.models.attention import rotate
from lowbit.models.layers import PACKED, STACKED, UNTOUCHED, ActivationHooks, DotGeneral, RMSNorm
from lowbit.models.transformer import MLP, Projections


@runtime_checkable
class KeyValueStore(Protocol):
    """Keys and values of every layer: a pytree that goes through all layers, since a copy a layer would double it.

    Attributes:
      rotated: whether keys are to be given as their positions have turned them; a store of others turns what it reads.
    """

    @property
    def rotated(self) -> bool:
        """See above."""
        ...

    def attend(self, layer: Any, queries: Any, keys: Any, values: Any) -> tuple[Any, Any]:
        """Adds keys and values [b t kv_heads h] to those of the layer i32[], and mixes all that the queries may see.

        Returns:
          ([b t heads h], the store with the new tokens).
        """
        ...


class CachedAttention(Projections):
    """`Attention` whose earlier positions are in a store."""

    @nn.compact
    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, store: KeyValueStore, layer: jax.Array
    ) -> tuple[jax.Array, KeyValueStore]:
        """Returns ([b t d], store); cos and sin f32[b t h/2]."""
        q, k, v = self.project(x)
        k = rotate(k, cos, sin) if store.rotated else k
        mixed, store = store.attend(layer, rotate(q, cos, sin), k, v)
        return self.combine(mixed), store


class CachedBlock(nn.Module):
    """`Block` whose earlier positions are in a store."""

    cfg: LlamaConfig
    dtype: DTypeLike
    dot_general: DotGeneral
    hooks: ActivationHooks

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, KeyValueStore], layer: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[tuple[jax.Array, KeyValueStore], None]:
        """Returns (([b t d], store), None), from such a pair, the number of the layer, and the angles."""
        cfg, dtype = self.cfg, self.dtype
        x, store = carry
        attention = CachedAttention(cfg, dtype, self.dot_general, self.hooks, name="attn")
        mixed, store = attention(RMSNorm(cfg.rms_norm_eps, dtype, name="attn_norm")(x), cos, sin, store, layer)
        x = x + mixed
        mlp = MLP(cfg, dtype, self.dot_general, self.hooks, name="mlp")
        return (x + mlp(RMSNorm(cfg.rms_norm_eps, dtype, name="mlp_norm")(x)), store), None


class CachedLayers(nn.Module):
    """The layers and the last norm of a `Transformer`; embedding and head are the caller's.

    Parameters are those of the model, "layers" and "norm". A kernel may stand in the collection `layers.PACKED`
    instead, in any form that `dot_general` multiplies by.

    Attributes:
      cfg: sizes and constants.
      dtype: of activations and matmuls.
      dot_general: what multiplies activations with kernels.
      hooks: `around` of them stands around `dot_general`; keys and values are the store's.
    """

    cfg: LlamaConfig
    dtype: DTypeLike
    dot_general: DotGeneral
    hooks: ActivationHooks = UNTOUCHED

    def setup(self) -> None:
        """Names the parts as the model does."""
        scanned = nn.scan(
            CachedBlock,
            variable_axes={"params": 0, "grid": 0, PACKED: 0},
            variable_broadcast=STACKED,
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.cfg.num_layers,
        )
        self.layers = scanned(self.cfg, self.dtype, self.dot_general, self.hooks)
        self.norm = RMSNorm(self.cfg.rms_norm_eps, self.dtype)

    def __call__(
        self, x: jax.Array, cos: jax.Array, sin: jax.Array, store: KeyValueStore
    ) -> tuple[jax.Array, KeyValueStore]:
        """Returns (normed last states [b t d], store) from embedded tokens [b t d] at positions of the given angles."""
        numbers = jnp.asarray(np.arange(self.cfg.num_layers, dtype=np.int32))  # constants, where nothing loops
        (x, store), _ = self.layers((x, store), numbers, cos, sin)
        return self.norm(x), store


def one_after_another(
    block: CachedBlock,
    layers: Sequence[Mapping[str, Any]],
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    store: KeyValueStore,
) -> tuple[jax.Array, KeyValueStore]:
    """Returns what the layers of `CachedLayers` do, written out: (last states [b t d], not normed, store).

    There is no loop: no counter, and nothing to be taken out of a stack by it, each of which is a kernel that a GPU
    starts; and what a layer multiplies by may be an array of its own. But a program as long to compile as there are
    layers.

    Args:
      block: of any layer.
      layers: variables of each.
      x: embedded tokens [b t d].
      cos: f32[b t h/2], of the angles of their positions.
      sin: likewise.
      store: keys and values so far.
    """
    # Jitted, it is traced once for all layers; the compiler writes it out.
    apply = jax.jit(block.apply)
    for number, variables in enumerate(layers):
        result: Any = apply(variables, (x, store), jnp.asarray(number, jnp.int32), cos, sin)
        (x, store), _ = result
    return x, store
