"""Rotary positions and plain causal attention with grouped key-value heads, over a window or inside its documents."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from lowbit.errors import ModelError, nearest
from lowbit.llama import LlamaConfig, rope_frequencies

AttentionKind = Literal["auto", "xla", "cudnn"]

# What cuDNN's fused attention takes in training on every GPU that has it.
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_MAX_HEAD_DIM = 128


def rotary_tables(cfg: LlamaConfig, length: int) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin of the angles of positions 0 to length-1, each f32[t h/2] with h = head_dim."""
    frequencies, attention_factor = rope_frequencies(cfg, length)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * jnp.asarray(frequencies)[None, :]
    return jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor


def rotary_at(cfg: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin of the angles of positions i32[b t], all below `max_positions`, each f32[b t h/2]."""
    frequencies, attention_factor = rope_frequencies(cfg)
    angles = positions.astype(jnp.float32)[:, :, None] * jnp.asarray(frequencies)[None, None, :]
    return jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns dimension i together with i + h/2 by the position's angle; computed in float32.

    Args:
      x: queries or keys [b t heads h].
      cos: f32[t h/2], or f32[b t h/2] where each row has positions of its own.
      sin: of the same shape.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (table.reshape(-1, x.shape[1], 1, table.shape[-1]) for table in (cos, sin))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def resolve_attention(
    kind: str, dtype: DTypeLike, head_dim: int, backend: str | None = None
) -> Literal["xla", "cudnn"]:
    """Returns the implementation that `kind` means for this dtype, head and backend (None: the one that is here).

    "auto" is cuDNN's fused kernel where it runs (a GPU, 16-bit floats, heads of at most 128), XLA elsewhere.

    Raises:
      ModelError: an unknown kind, or "cudnn" where cuDNN cannot run.
    """
    if kind not in get_args(AttentionKind):
        raise ModelError(
            f"attention {kind!r} is unknown: {nearest(kind, get_args(AttentionKind))}",
            "set attention to one of " + ", ".join(get_args(AttentionKind)),
        )
    if kind == "xla":
        return "xla"
    backend = jax.default_backend() if backend is None else backend
    narrow = np.dtype(dtype) in [np.dtype(d) for d in _CUDNN_DTYPES]
    fits = narrow and head_dim % 8 == 0 and head_dim <= _CUDNN_MAX_HEAD_DIM
    if backend == "gpu" and fits:
        return "cudnn"
    if kind == "cudnn":
        raise ModelError(
            f"cuDNN attention cannot run on {backend} with {np.dtype(dtype).name} and heads of {head_dim}",
            "use a GPU, bfloat16 and heads of a multiple of 8 up to 128, or set attention to auto",
        )
    return "xla"


def document_positions(tokens: jax.Array, separator: int) -> tuple[jax.Array, jax.Array]:
    """Returns where each token stands in its document, and which pairs of tokens share one.

    A separator opens the document after it, as a token that begins the text does: the first word of a document is then
    predicted from the separator alone, and nothing that a document predicts depends on another. What stands before the
    first separator of a window is the rest of a document that the window cut, at positions from 0.

    Args:
      tokens: i32[b t].
      separator: id of the token between documents.

    Returns:
      (positions i32[b t], same bool[b 1 t t]); the 1 is for heads.
    """
    opens = tokens == separator
    document = jnp.cumsum(opens, axis=1, dtype=jnp.int32)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    start = jax.lax.cummax(jnp.where(opens, places, 0), axis=1)
    return places - start, document[:, None, :, None] == document[:, None, None, :]


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    implementation: Literal["xla", "cudnn"],
    mask: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention over positions up to one's own, scaled by 1/sqrt(h); the softmax is float32.

    Key-value heads are shared by groups of query heads and never repeated in memory. Both implementations take a mask
    beside causality; cuDNN's reads it as a 16-bit bias, and trains with it at even t alone.

    Args:
      q: [b t heads h].
      k: [b t kv_heads h].
      v: [b t kv_heads h].
      implementation: as `resolve_attention` returns it.
      mask: bool[b 1 t t], where a query (second last axis) may see a key; None lets it see all up to its own.

    Returns:
      [b t heads h] in the dtype of `q`.
    """
    # jax's own XLA path promotes 16-bit scores to float32 implicitly, which a caller may have forbidden.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=implementation)


def attention_received(q: jax.Array, k: jax.Array) -> jax.Array:
    """Returns how much of all queries' attention each position gets: 1 on average, and more for a sink.

      a[s] = mean over heads of sum over t >= s of softmax_s(q[t] k[s] / sqrt(h))

    A position of little use to the text, most often the first, takes what the others need not attend to (attention
    sinks, arXiv 2309.17453).

    Args:
      q: turned queries [b t heads h].
      k: turned keys [b t kv_heads h].

    Returns:
      f32[b t]; each row sums to t.
    """
    b, t, heads, size = q.shape
    grouped = q.astype(jnp.float32).reshape(b, t, k.shape[2], heads // k.shape[2], size)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k.astype(jnp.float32)) * size**-0.5
    causal = jnp.tril(jnp.ones((t, t), bool))[None, None, None]
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return jnp.mean(jnp.sum(weights, axis=-2), axis=(1, 2))
