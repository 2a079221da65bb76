"""A step of one token a sequence in few kernels: five to eight a layer, four of them products.

A step of a small model takes as long as its kernels take to start. Compiled from the layers of the model, a norm is two
kernels and attention six beside its own; here each is one. What is computed is the same, up to the order of float sums.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowbit.generation.cache import KVCache
from lowbit.generation.fused_attention import attended_by_cuda, filled_slots, takes_cuda, turned_stored_attended
from lowbit.generation.fused_norm import added_and_normed
from lowbit.generation.joined import SIBLINGS, Columns
from lowbit.generation.stored import Stored
from lowbit.llama import LAYER_PREFIX, CacheKind, LlamaConfig
from lowbit.models.layers import PACKED
from lowbit.pallas.fields import HALFWORD


class Products(NamedTuple):
    """What multiplies by matrices of any form, f32[b n].

    Attributes:
      plain: activations [b k].
      gated: silu(gate) * other of both f32[b 2k], one after the other, in the dtype of activations.
      normed: the norm of the sum of a residual stream [b k] and f32[b k] or None, and its scale f32[k]; the sum is
        returned as well, first.
    """

    plain: Callable[[jax.Array, Any], jax.Array]
    gated: Callable[[jax.Array, Any], jax.Array]
    normed: Callable[[jax.Array, jax.Array | None, jax.Array, Any], tuple[jax.Array, jax.Array]]


def takes_layers(cfg: LlamaConfig, kind: CacheKind) -> bool:
    """Returns whether kernels of a step compute such layers: no biases or norms behind products, turned floats cached.

    Args:
      cfg: sizes and constants.
      kind: of the cache.
    """
    return not (cfg.qkv_bias or cfg.linear_norm) and kind.bits >= HALFWORD and kind.rotated


def fits(cfg: LlamaConfig, kind: CacheKind, layers: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether layers can be computed so: no biases or norms behind products, joined matrices, floats cached.

    Args:
      cfg: sizes and constants.
      kind: of the cache, which the kernel of attention can read.
      layers: variables of each.
    """
    return takes_layers(cfg, kind) and all(
        isinstance(_kernel(layer, family[0]), Columns) for layer in layers for family in SIBLINGS
    )


def all_layers(
    cfg: LlamaConfig,
    layers: Sequence[Mapping[str, Any]],
    norm: jax.Array,
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    cache: KVCache,
    products: Products,
) -> tuple[jax.Array, KVCache]:
    """Returns (normed last states [b d], cache) of layers that it `fits`.

    Args:
      cfg: sizes and constants.
      layers: variables of each.
      norm: f32[d], scale of the last norm.
      x: embedded tokens [b d].
      cos: f32[b 1 h/2], of the angles of their positions.
      sin: likewise.
      cache: with room for a token.
      products: what multiplies.
    """
    interpret = jax.default_backend() == "cpu"
    dtype = x.dtype
    added = None
    keys, values = cache.keys, cache.values
    filled = filled_slots(cache.length, cache.start)
    by_cuda = takes_cuda(keys, cfg.num_heads, dtype)

    def attended(qkv: jax.Array, keys: Stored, values: Stored, number: int) -> tuple[jax.Array, Stored, Stored]:
        if by_cuda:
            return attended_by_cuda(qkv, cos, sin, keys, values, number, filled)
        at = jnp.int32(number), filled
        return turned_stored_attended(qkv, cos, sin, keys, values, *at, dtype=dtype, interpret=interpret)

    for number, layer in enumerate(layers):
        x, qkv = products.normed(x, added, layer["params"]["attn_norm"]["scale"], _whole(layer, SIBLINGS[0]))
        mixed, keys, values = attended(qkv, keys, values, number)
        added = products.plain(mixed, _kernel(layer, f"{LAYER_PREFIX}attn/o_proj"))
        x, both = products.normed(x, added, layer["params"]["mlp_norm"]["scale"], _whole(layer, SIBLINGS[1]))
        added = products.gated(both, _kernel(layer, f"{LAYER_PREFIX}mlp/down_proj"))
    _, hidden = added_and_normed(x, added, norm, cfg.rms_norm_eps, interpret=interpret)
    return hidden, cache.filled(keys, values)


def _kernel(layer: Mapping[str, Any], path: str) -> Any:
    """The matrix of a linear layer, or the part of a joined one."""
    part, name = path.removeprefix(LAYER_PREFIX).split("/")
    held = layer[PACKED].get(part, {}).get(name)
    return None if held is None else held["kernel"]


def _whole(layer: Mapping[str, Any], family: Sequence[str]) -> Any:
    """The joined matrix of linear layers."""
    return _kernel(layer, family[0]).whole
