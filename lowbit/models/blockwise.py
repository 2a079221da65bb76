"""One decoder layer by itself: what methods without training run, watch and change, layer by layer."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lowbit.llama import LlamaConfig
from lowbit.models.attention import attention_received, rotary_tables, rotate
from lowbit.models.layers import Dense
from lowbit.models.transformer import Block, Projections

LINEAR_STAGES = (
    ("attn/q_proj/kernel", "attn/k_proj/kernel", "attn/v_proj/kernel"),
    ("attn/o_proj/kernel",),
    ("mlp/gate_proj/kernel", "mlp/up_proj/kernel"),
    ("mlp/down_proj/kernel",),
)
"""The kernels of a layer in the order in which their inputs arise; those of one stage read the same input."""


def apply_block(cfg: LlamaConfig, block: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Runs one layer in float32.

    Args:
      cfg: the model's sizes.
      block: the layer's parameters, without a layer axis.
      x: its inputs f32[b t d], at positions from 0.

    Returns:
      Its outputs f32[b t d].
    """
    return _run(cfg, block, x)


def linear_inputs(cfg: LlamaConfig, block: Mapping[str, Any], x: jax.Array) -> dict[str, jax.Array]:
    """Returns what each kernel of the layer multiplies, `{path in the layer: f32[b t k]}`.

    Under jit, what the chosen inputs do not depend on is never computed. Args: as `apply_block`.
    """
    inputs: dict[str, jax.Array] = {}

    def watch(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            inputs["/".join((*context.module.path, "kernel"))] = args[0]
        return function(*args, **kwargs)

    with nn.intercept_methods(watch):
        _run(cfg, block, x)
    return inputs


def received(cfg: LlamaConfig, block: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Returns how much the layer attends to each position, f32[b t], 1 on average. Args: as `apply_block`."""
    heads: list[tuple[jax.Array, jax.Array]] = []

    def watch(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        found = function(*args, **kwargs)
        if isinstance(context.module, Projections) and context.method_name == "project":
            q, k, _ = found
            heads.append((q, k))
        return found

    with nn.intercept_methods(watch):
        _run(cfg, block, x)
    ((q, k),) = heads
    cos, sin = rotary_tables(cfg, x.shape[1])
    return attention_received(rotate(q, cos, sin), rotate(k, cos, sin))


def _run(cfg: LlamaConfig, block: Mapping[str, Any], x: jax.Array) -> jax.Array:
    cos, sin = rotary_tables(cfg, x.shape[1])
    # Attention in XLA: cuDNN's takes 16-bit floats alone.
    y, _ = Block(cfg, jnp.float32, "xla").apply({"params": block}, x, cos, sin)
    return y
