"""Cross entropy mixed with a divergence: one walk over the positions, whatever is known of the teacher.

Positions are visited in chunks. The student's logits, f32[b t/chunks V], live inside one turn of a scan, where value
and gradient are made together, as in `lowbit.train.losses`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowbit.models.chunks import cut, join, rows

Apart = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, jax.Array]]
"""apart(log p f32[r V], what is known of the teacher at these positions, targets i32[r]) -> (D f32[r], its gradient to
the logits of p f32[r V]), with p = softmax(logits / T) of the student."""

Means = tuple[jax.Array, jax.Array, jax.Array]
"""f32[] each: `(1-weight) * CE + weight * T^2 * D`, the cross entropy, D."""


class Slopes(NamedTuple):
    """Gradients of the mixed loss: to the student's `hidden` in its dtype, and to its `head`, f32."""

    hidden: jax.Array
    head: jax.Array

    def times(self, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns both for a cotangent f32[] of the loss, in the compute dtype."""
        dtype = self.hidden.dtype
        return self.hidden * g.astype(dtype), (self.head * g).astype(dtype)


def mixed(
    hidden: jax.Array,
    head: jax.Array,
    known: Any,
    targets: jax.Array,
    weight: float,
    temperature: float,
    chunks: int,
    apart: Apart,
) -> tuple[Means, Slopes]:
    """Returns the mixed loss with its parts, in nats per token, and its gradients.

    Args:
      hidden: the student's final hidden states [b t d].
      head: the student's head [d V].
      known: of the teacher, a tree of [b t ...].
      targets: token ids i32[b t].
      weight: share of the divergence, 0 to 1.
      temperature: T > 0.
      chunks: how many pieces t is cut into; it must divide t.
      apart: the divergence.
    """
    share = 1.0 / targets.size

    def turn(
        d_head: jax.Array, piece: tuple[jax.Array, Any, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        states, known_here, ids = piece
        logits = jnp.matmul(rows(states), head, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        flat = ids.reshape(-1)
        nll = -jnp.take_along_axis(log_p, flat[:, None], axis=-1)[:, 0]
        soft = log_p if temperature == 1.0 else jax.nn.log_softmax(logits / temperature)
        divergence, d_divergence = apart(soft, known_here, flat)
        hard = (1 - weight) * (jnp.exp(log_p) - jax.nn.one_hot(flat, head.shape[1], dtype=jnp.float32))
        d_logits = (hard + (weight * temperature) * d_divergence).astype(states.dtype)
        d_states = jnp.einsum("rv,dv->rd", d_logits, head, preferred_element_type=jnp.float32)
        d_head += jnp.einsum("rd,rv->dv", rows(states), d_logits, preferred_element_type=jnp.float32)
        d_hidden = (d_states.reshape(states.shape) * share).astype(states.dtype)
        return d_head, (nll.reshape(ids.shape), divergence.reshape(ids.shape), d_hidden)

    pieces = cut(hidden, chunks), jax.tree.map(lambda part: cut(part, chunks), known), cut(targets, chunks)
    d_head, (nll, divergence, d_hidden) = jax.lax.scan(turn, jnp.zeros(head.shape, jnp.float32), pieces)
    cross_entropy, mean_divergence = jnp.mean(join(nll)), jnp.mean(join(divergence))
    loss = (1 - weight) * cross_entropy + (weight * temperature**2) * mean_divergence
    return (loss, cross_entropy, mean_divergence), Slopes(join(d_hidden), d_head * share)
