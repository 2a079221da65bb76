"""The layers of a Llama-family decoder as numpy functions of float32 arrays."""

import numpy as np
from numpy.typing import NDArray

from lowbit.llama import LINEAR_NORM_EPS

Array = NDArray[np.float32]


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Returns x / sqrt(mean(x**2) + eps) * scale over the last axis."""
    mean_square: Array = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    root: Array = np.sqrt(mean_square + np.float32(eps))
    return x / root * scale


def layer_norm(x: Array) -> Array:
    """Returns (x - mean) / sqrt(variance + `LINEAR_NORM_EPS`) over the last axis: LayerNorm without weights."""
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance: Array = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
    normed: Array = centred / np.sqrt(variance + np.float32(LINEAR_NORM_EPS))
    return normed


def rotation(positions: NDArray[np.integer], inv_freq: Array, attention_factor: float) -> tuple[Array, Array]:
    """Returns cos and sin of position * frequency, each [t head_dim/2], times the attention factor."""
    angles = positions.astype(np.float32)[:, None] * inv_freq
    factor = np.float32(attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turns pairs (i, i + head_dim/2) of x [b t heads head_dim] by the angles of its positions (RoPE)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(queries: Array, keys: Array, values: Array) -> Array:
    """Returns causal attention [b t heads head_dim]; the queries are the last t of the s positions.

    Args:
      queries: [b t heads head_dim].
      keys: [b kv_heads s head_dim]; head h reads keys of head h // (heads / kv_heads).
      values: as keys.
    """
    b, t, heads, head_dim = queries.shape
    _, kv_heads, s, _ = keys.shape
    shared = heads // kv_heads
    # Query heads of one kv head lie below one another: one matrix product for each kv head.
    q = queries.reshape(b, t, kv_heads, shared, head_dim).transpose(0, 2, 3, 1, 4)
    scores = q.reshape(b, kv_heads, shared * t, head_dim) @ keys.swapaxes(-1, -2)
    scores *= np.float32(head_dim**-0.5)
    scores = scores.reshape(b, kv_heads, shared, t, s)
    if t > 1:
        future = np.arange(s)[None, :] > np.arange(s - t, s)[:, None]
        scores = np.where(future, np.float32(-np.inf), scores)
    weights: Array = softmax(scores).reshape(b, kv_heads, shared * t, s)
    mixed: Array = (weights @ values).reshape(b, kv_heads, shared, t, head_dim)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, t, heads, head_dim)


def softmax(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns exp(x) / sum(exp(x)) over the last axis, shifted so that nothing overflows."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    """Returns x * sigmoid(x); exp only ever sees a negative argument."""
    e: Array = np.exp(-np.abs(x))
    numerator: Array = np.where(x >= 0, np.float32(1), e)
    return x * numerator / (np.float32(1) + e)
