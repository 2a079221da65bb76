"""Cross entropy from hidden states and the head, without ever holding logits [b t V].

The sequence is cut into chunks of positions; for each one the logits f32[b t/chunks V] live only inside one
turn of a scan. The gradient is made in the same turn, while the logits are there: this costs three
matrix products of 2 b t d V FLOPs, where recomputing the logits in a backward pass costs four.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lowbit.models.chunks import cut, join, rows


def token_nll(
    hidden: Float[Array, "b t d"], head: Float[Array, "d V"], targets: Int32[Array, "b t"], chunks: int = 8
) -> Float32[Array, "b t"]:
    """Returns each target's negative log-likelihood in nats.

    Args:
      hidden: final hidden states, in compute dtype.
      head: the head's kernel, in the same dtype. Products are summed in float32.
      targets: token ids.
      chunks: how many pieces t is cut into; it must divide t. At once in memory: f32[b t/chunks V].

    Raises:
      ValueError: `chunks` does not divide t.
    """
    pieces = cut(hidden, chunks), cut(targets, chunks)
    nll = jax.lax.map(lambda piece: _logits_and_nll(piece[0], head, piece[1])[2], pieces)
    return join(nll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(
    hidden: Float[Array, "b t d"], head: Float[Array, "d V"], targets: Int32[Array, "b t"], chunks: int
) -> Float32[Array, ""]:
    """Returns the mean of `token_nll` (same arguments), in nats per token, with a gradient as frugal as its value.

    d loss / d logits = (softmax - onehot) / (b t) is rounded once to the compute dtype before it meets the
    hidden states and the head; both products are summed in float32.
    """
    return jnp.mean(token_nll(hidden, head, targets, chunks))


def _forward(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, chunks: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    share = 1.0 / targets.size

    def turn(d_head: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        states, ids = piece
        logits, log_norm, nll = _logits_and_nll(states, head, ids)
        onehot = jax.nn.one_hot(ids, head.shape[1], dtype=jnp.float32)
        # Left unscaled by `share`, so that its rounding to the compute dtype loses nothing at the small end.
        d_logits = (jnp.exp(logits - log_norm[..., None]) - onehot).astype(states.dtype)
        d_states = jnp.einsum("rv,dv->rd", rows(d_logits), head, preferred_element_type=jnp.float32)
        d_head += jnp.einsum("rd,rv->dv", rows(states), rows(d_logits), preferred_element_type=jnp.float32)
        return d_head, (nll, (d_states.reshape(states.shape) * share).astype(states.dtype))

    zeros = jnp.zeros(head.shape, jnp.float32)
    d_head, (nll, d_hidden) = jax.lax.scan(turn, zeros, (cut(hidden, chunks), cut(targets, chunks)))
    return jnp.mean(join(nll)), (join(d_hidden), d_head * share)


def _backward(chunks: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    d_hidden, d_head = residuals
    # Head and hidden states share the compute dtype.
    return d_hidden * g.astype(d_hidden.dtype), (d_head * g).astype(d_hidden.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _logits_and_nll(states: jax.Array, head: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    product = jnp.matmul(rows(states), head, preferred_element_type=jnp.float32)
    logits = product.reshape(*ids.shape, head.shape[1])
    log_norm = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return logits, log_norm, log_norm - chosen
