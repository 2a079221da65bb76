"""Hooks that round activations as an `ActivationRounding` says, and hooks that watch what would be rounded."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lowbit.llama.activations import ActivationRounding, CacheKind, InputRounding, Ranges
from lowbit.models.layers import ActivationHooks, DotGeneral
from lowbit.numerics.activations import Range, dynamic, range_of, static
from lowbit.numerics.quantizers import Quantizer
from lowbit.tree import flatten, unflatten

CACHE_SCALE_DTYPE = jnp.float16
"""Of the scales and zero points that the key-value cache holds."""

STATE = "input"
"""Name, in the collection "grid" of a `Dense`, of the calibrated range of its input."""

WATCHED = "input_range"
"""Name, in the collection "intermediates" of a `Dense`, of what `watching` hooks see."""


def rounding_hooks(rounding: ActivationRounding, *, cached: bool = False) -> ActivationHooks:
    """Returns the hooks that round activations by straight-through estimators.

    Keys and values are rounded as the key-value cache will hold them, before attention reads them: whatever computes
    attention reads plain arrays.

    Args:
      rounding: inputs by the path of their linear layer, whose last part is the name of the `Dense`.
      cached: leave keys and values to a cache.

    Raises:
      QuantizerError: a width, granularity, range or variant that does not exist.
    """
    quantizers = {path.rpartition("/")[2]: input_quantizer(one) for path, one in rounding.inputs}
    around = functools.partial(_rounded, tuple(quantizers.items()))
    if rounding.cache is None or cached:
        return ActivationHooks(around)
    on_heads = functools.partial(fake_cached, rounding.cache)
    if rounding.cache.rotated:
        return ActivationHooks(around, rotated_keys=on_heads, values=on_heads)
    return ActivationHooks(around, keys=on_heads, values=on_heads)


def input_quantizer(rounding: InputRounding) -> Quantizer:
    """Returns the quantizer of inputs [t k]; raises QuantizerError as `dynamic` and `static` do."""
    if rounding.range == "dynamic":
        return dynamic(rounding.bits, rounding.granularity, rounding.symmetric, rounding.variant)
    return static(rounding.bits, rounding.granularity, rounding.symmetric)


def cache_quantizer(kind: CacheKind) -> Quantizer:
    """Returns the quantizer of keys and values as `cache_rows` lays them out; the one that the cache uses."""
    return dynamic(kind.bits, "token", kind.symmetric, scale_dtype=CACHE_SCALE_DTYPE)


def cache_rows(kind: CacheKind, x: jax.Array) -> jax.Array:
    """Returns [*b kv_heads h] as rows of one scale each: itself, or [*b 1 kv_heads*h] for all heads together."""
    return x if kind.per_head else x.reshape(*x.shape[:-2], 1, -1)


def fake_cached(kind: CacheKind, x: jax.Array) -> jax.Array:
    """Returns keys or values [b t kv_heads h] as a cache of this kind gives them back; gradients pass unchanged."""
    with jax.named_scope("fake_quant"):  # a name in profiles
        quantizer, rows = cache_quantizer(kind), cache_rows(kind, x)
        return quantizer.fake(rows, quantizer.state_of(rows, None)).reshape(x.shape)


def watching(hooks: ActivationHooks) -> ActivationHooks:
    """Returns hooks that leave inputs as they are and note, for `watched`, the range of each channel."""
    return hooks._replace(around=_watched)


def watched(intermediates: Mapping[str, Any]) -> dict[str, Range]:
    """Returns the ranges f32[L 1 k] that a pass with `watching` hooks has noted, by path of the linear layer."""
    flat = flatten(dict(intermediates))
    return {path.removesuffix(f"/{WATCHED}"): noted for path, (noted,) in flat.items() if path.endswith(WATCHED)}


def range_variables(ranges: Ranges) -> dict[str, Any]:
    """Returns calibrated ranges as a model reads them: the collection "grid"."""
    return unflatten(
        {f"{path}/{STATE}/{key}": jnp.asarray(values) for path, own in ranges.items() for key, values in own.items()}
    )


def _rounded(quantizers: tuple[tuple[str, Quantizer], ...], dense: nn.Module, dot_general: DotGeneral) -> DotGeneral:
    quantizer = dict(quantizers).get(str(dense.name))
    if quantizer is None:
        return dot_general
    state: Any = None if quantizer.dynamic else dense.get_variable("grid", STATE, {})

    def multiply(x: jax.Array, *operands: Any, **options: Any) -> jax.Array:
        with jax.named_scope("fake_quant"):  # a name in profiles
            x_hat = quantizer.fake(x, quantizer.state_of(x, state))
        return dot_general(x_hat, *operands, **options)

    return multiply


def _watched(dense: nn.Module, dot_general: DotGeneral) -> DotGeneral:
    def multiply(x: jax.Array, *operands: Any, **options: Any) -> jax.Array:
        dense.sow("intermediates", WATCHED, range_of(x, "channel"))
        return dot_general(x, *operands, **options)

    return multiply
