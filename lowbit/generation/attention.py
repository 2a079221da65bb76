"""Attention over a cache of whole numbers: scales stay out of the products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Operand(NamedTuple):
    """Keys or values of one layer.

    Attributes:
      numbers: [b T kv_heads h] in the dtype of the products; whole numbers where there is a scale.
      scale: f32[b T kv_heads] by which they are multiplied, or None.
    """

    numbers: Any
    scale: Any


def attention(queries: jax.Array, keys: Operand, values: Operand, visible: jax.Array) -> jax.Array:
    """Softmax attention scaled by 1/sqrt(h), with shared key-value heads; scores and softmax are float32.

    The scale of a key multiplies its score, that of a value its weight: one product a position and head in place of h,
    and what the matrix units multiply is exact in 16 bits.

    Args:
      queries: [b t heads h].
      keys: of all T positions.
      values: likewise.
      visible: bool[b t T], which positions a query sees.

    Returns:
      [b t heads h] in the dtype of the queries.
    """
    b, t, heads, h = queries.shape
    kv_heads = keys.numbers.shape[2]
    grouped = queries.reshape(b, t, kv_heads, heads // kv_heads, h)
    scores = jnp.einsum("btngh,bsnh->bngts", grouped, keys.numbers, preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(h**-0.5)
    if keys.scale is not None:
        scores = scores * _along_positions(keys.scale)
    # A finite number, so that a row that fills up the batch, which sees nothing, stays finite too.
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if values.scale is not None:
        weights = weights * _along_positions(values.scale)
    mixed = jnp.einsum(
        "bngts,bsnh->btngh", weights.astype(queries.dtype), values.numbers, preferred_element_type=jnp.float32
    )
    return mixed.reshape(queries.shape).astype(queries.dtype)


def _along_positions(scale: jax.Array) -> jax.Array:
    """[b T kv_heads] as [b kv_heads 1 1 T], to meet scores."""
    return scale.transpose(0, 2, 1)[:, :, None, None, :]
