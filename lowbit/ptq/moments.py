"""What calibration knows of a kernel's inputs: second moments and magnitudes, summed up batch by batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.llama import LlamaConfig
from lowbit.models.blockwise import apply_block, linear_inputs, received
from lowbit.ptq.programs import jit

Hidden = Float[Array, "batches b t d"]
Weights = Float[Array, "batches b t"]

TOKEN_WEIGHTS = ("even", "attention")
"""How much each token counts: all the same, or by the attention that it gets (`attention_weights`)."""


class Moments(NamedTuple):
    """Of the inputs x [k] of a kernel, over all calibration tokens; means may be weighted.

    The error of a rounded kernel on these inputs is `mean |x (w - w_hat)|^2 = trace((w - w_hat)^T gram (w - w_hat))`:
    no method needs the inputs themselves.

    Attributes:
      gram: mean of x x^T, f32[k k]; x as the layers before, quantized already, give it.
      cross: mean of x y^T, f32[k k], y being the float model's input at the same token; None where nobody asked.
      mean_abs: mean of |x|, f32[k].
      max_abs: maximum of |x|, f32[k].
    """

    # Not annotated as arrays: jax rebuilds tuples around stand-ins for them.
    gram: Any
    cross: Any
    mean_abs: Any
    max_abs: Any


@functools.partial(jit, static_argnames=("cfg", "path"))
def moments(
    cfg: LlamaConfig,
    path: str,
    block: Any,
    hidden: Hidden,
    float_block: Any = None,
    float_hidden: Hidden | None = None,
    weights: Weights | None = None,
) -> Moments:
    """Returns the moments of the inputs of one kernel of a layer; one program a path serves all layers.

    Args:
      cfg: the model's sizes.
      path: of the kernel in the layer, such as `attn/q_proj/kernel`.
      block: the layer as it is now: kernels of earlier stages quantized.
      hidden: the layer's inputs; one batch is at work at a time.
      float_block: the layer of the float model, for `cross`; None where nobody asks.
      float_hidden: its inputs in the float model.
      weights: how much each token counts, 1 on average; None where all count the same. Maxima are of all tokens.
    """
    k = jax.eval_shape(lambda x: linear_inputs(cfg, block, x)[path], hidden[0]).shape[-1]
    square, row = jnp.zeros((k, k), jnp.float32), jnp.zeros((k,), jnp.float32)

    def add(total: Moments, batch: tuple[Any, Any, Any]) -> tuple[Moments, None]:
        x = linear_inputs(cfg, block, batch[0])[path].reshape(-1, k).astype(jnp.float32)
        counted = x if batch[2] is None else x * batch[2].reshape(-1, 1)
        cross = None
        if float_block is not None:
            y = linear_inputs(cfg, float_block, batch[1])[path].reshape(-1, k).astype(jnp.float32)
            cross = total.cross + product(counted.T, y)
        return Moments(
            total.gram + product(counted.T, x),
            cross,
            total.mean_abs + jnp.sum(jnp.abs(counted), axis=0),
            jnp.maximum(total.max_abs, jnp.max(jnp.abs(x), axis=0)),
        ), None

    zero = Moments(square, None if float_block is None else square, row, row)
    total, _ = jax.lax.scan(add, zero, (hidden, float_hidden, weights))
    tokens = hidden.shape[0] * hidden.shape[1] * hidden.shape[2]
    cross = None if total.cross is None else total.cross / tokens
    return Moments(total.gram / tokens, cross, total.mean_abs / tokens, total.max_abs)


@functools.partial(jit, static_argnames=("cfg",))
def attention_weights(cfg: LlamaConfig, block: Any, hidden: Hidden) -> Weights:
    """Returns weights of tokens, 1 on average: the square root of the attention that a token gets in this layer.

    A layer's error at a position is felt wherever the position is attended to. Most of all that is the first one, the
    sink of attention, with a key and a value like no other's: of even moments it is one token in a sequence, and
    compensation for the others' errors ruins it. Source: attention concentration of RSQ (arXiv 2503.01820). The root is
    ours: a sink with half of all attention is to count for a few percent, or its inputs to down_proj, which may be a
    hundred times as large as others', leave the other tokens below the damping.

    Args:
      cfg: the model's sizes.
      block: the layer.
      hidden: its inputs.
    """
    weights = jnp.sqrt(jax.lax.map(lambda x: received(cfg, block, x), hidden))
    return weights / jnp.mean(weights)


@functools.partial(jit, static_argnames=("cfg",), donate_argnames=("hidden",))
def advance(cfg: LlamaConfig, block: Any, hidden: Hidden) -> Hidden:
    """Returns the outputs of a layer, which are the inputs of the next; takes the memory of `hidden` over."""
    return jax.lax.map(lambda x: apply_block(cfg, block, x), hidden)


def product(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """Returns a @ b in full float32, where an accelerator would by default round what it multiplies."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def output_error(gram: Float[Array, "k k"], difference: Float[Array, "k n"]) -> Float[Array, " n"]:
    """Returns the mean squared error of each output, `diag(difference^T gram difference)`."""
    return jnp.sum(difference * product(gram, difference), axis=0)
