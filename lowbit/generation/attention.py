"""Attention over a cache of whole numbers: scales stay out of the products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Operand(NamedTuple):
    """Keys or values of one layer.

    Attributes:
      numbers: [b kv_heads T h] in the dtype of the products; whole numbers where there is a scale.
      scale: f32[b kv_heads T] by which they are multiplied, or None.
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
    kv_heads = keys.numbers.shape[1]
    grouped = queries.reshape(b, t, kv_heads, heads // kv_heads, h).transpose(0, 2, 3, 1, 4)
    scores = _products(grouped, keys.numbers, 1) * jnp.float32(h**-0.5)
    if keys.scale is not None:
        scores = scores * keys.scale[:, :, None, None, :]
    # A finite number, so that a row that fills up the batch, which sees nothing, stays finite too.
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if values.scale is not None:
        weights = weights * values.scale[:, :, None, None, :]
    mixed = _products(weights.astype(queries.dtype), values.numbers, 0)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape).astype(queries.dtype)


def _products(some: jax.Array, held: jax.Array, axis: int) -> jax.Array:
    """[b n g t k] times [b n m k] (axis 1) or [b n k m] (axis 0): f32[b n g t m].

    What is held is on the right, and in the order of axes in which it lies. einsum would put it where it likes, and a
    compiler then lays out the whole cache so.
    """
    rows = some.reshape(*some.shape[:2], -1, some.shape[-1])
    dimensions = (((3,), (2 + axis,)), ((0, 1), (0, 1)))
    product = jax.lax.dot_general(rows, held, dimensions, preferred_element_type=jnp.float32)
    return product.reshape(*some.shape[:-1], -1)
