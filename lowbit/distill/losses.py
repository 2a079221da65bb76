"""Cross entropy mixed with a divergence from a teacher, without ever holding the logits of either.

Positions are visited in chunks. The logits of student and teacher, f32[b t/chunks V] each, live inside one turn of a
scan, where value and gradient are made together, as in `lowbit.train.losses`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lowbit.models.chunks import cut, join, rows

DIVERGENCES = ("forward", "reverse", "confidence")
"""Of the student from the teacher, by the name that a config gives."""


class Outputs(NamedTuple):
    """What a model gives before its logits: `hidden [b t d]` and the head's kernel `[d V]`, in compute dtype."""

    hidden: jax.Array
    head: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def distillation(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "d V"],
    teacher: Outputs,
    targets: Int32[Array, "b t"],
    weight: float,
    temperature: float,
    chunks: int,
    divergence: str = "forward",
) -> tuple[Float32[Array, ""], Float32[Array, ""], Float32[Array, ""]]:
    """Returns `(1-weight) * CE + weight * T^2 * D`, then the cross entropy and D by themselves, in nats per token.

    D is between softmax(logits / T) of both, q the teacher's and p the student's (Hinton et al., arXiv 1503.02531);
    T^2 keeps its gradient's size:

      forward:     KL(q || p), which covers whatever the teacher finds possible
      reverse:     KL(p || q), which avoids what the teacher finds unlikely
      confidence:  b KL(p || q) + (1-b) KL(q || p), with b = q(target) at each position (CAKLD of BitDistiller, arXiv
                   2402.10631, where b is the mean of that probability over the data)

    The gradient goes to `hidden` and `head` of the student, through the first result only; over b t and per logit,

      d CE = p_1 - onehot,  T^2 d KL(q || p) = T (p - q),  T^2 d KL(p || q) = T p (log p - log q - KL(p || q))

    Args:
      hidden: the student's final hidden states.
      head: the student's head.
      teacher: the teacher's; its width may differ, its vocabulary not.
      targets: token ids.
      weight: share of the divergence, 0 to 1.
      temperature: T > 0.
      chunks: how many pieces t is cut into; it must divide t.
      divergence: one of `DIVERGENCES`.
    """
    return _forward(hidden, head, teacher, targets, weight, temperature, chunks, divergence)[0]


def _forward(
    hidden: jax.Array,
    head: jax.Array,
    teacher: Outputs,
    targets: jax.Array,
    weight: float,
    temperature: float,
    chunks: int,
    divergence: str,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, Outputs]]:
    share = 1.0 / targets.size

    def turn(
        d_head: jax.Array, piece: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        states, wise, ids = piece
        logits = jnp.matmul(rows(states), head, preferred_element_type=jnp.float32)
        taught = jnp.matmul(rows(wise), teacher.head, preferred_element_type=jnp.float32)
        log_p = jax.nn.log_softmax(logits)
        flat = ids.reshape(-1)
        nll = -jnp.take_along_axis(log_p, flat[:, None], axis=-1)[:, 0]
        soft = log_p if temperature == 1.0 else jax.nn.log_softmax(logits / temperature)
        goal = jax.nn.log_softmax(taught / temperature)
        apart, d_apart = _divergence(soft, goal, flat, divergence)
        onehot = jax.nn.one_hot(flat, head.shape[1], dtype=jnp.float32)
        hard = (1 - weight) * (jnp.exp(log_p) - onehot)
        d_logits = (hard + (weight * temperature) * d_apart).astype(states.dtype)
        d_states = jnp.einsum("rv,dv->rd", d_logits, head, preferred_element_type=jnp.float32)
        d_head += jnp.einsum("rd,rv->dv", rows(states), d_logits, preferred_element_type=jnp.float32)
        d_hidden = (d_states.reshape(states.shape) * share).astype(states.dtype)
        return d_head, (nll.reshape(ids.shape), apart.reshape(ids.shape), d_hidden)

    pieces = cut(hidden, chunks), cut(teacher.hidden, chunks), cut(targets, chunks)
    d_head, (nll, apart, d_hidden) = jax.lax.scan(turn, jnp.zeros(head.shape, jnp.float32), pieces)
    cross_entropy, mean_apart = jnp.mean(join(nll)), jnp.mean(join(apart))
    loss = (1 - weight) * cross_entropy + (weight * temperature**2) * mean_apart
    return (loss, cross_entropy, mean_apart), (join(d_hidden), d_head * share, teacher)


def _divergence(
    log_p: Float32[Array, "r V"], log_q: Float32[Array, "r V"], targets: Int32[Array, " r"], kind: str
) -> tuple[Float32[Array, " r"], Float32[Array, "r V"]]:
    """The divergence of p from the teacher's q in each row, and its gradient to the logits of p."""
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    forward, d_forward = jnp.sum(q * (log_q - log_p), axis=-1), p - q
    if kind == "forward":
        return forward, d_forward
    ratio = log_p - log_q
    reverse = jnp.sum(p * ratio, axis=-1)
    d_reverse = p * (ratio - reverse[:, None])
    if kind == "reverse":
        return reverse, d_reverse
    b = jnp.take_along_axis(q, targets[:, None], axis=-1)
    return b[:, 0] * reverse + (1 - b[:, 0]) * forward, b * d_reverse + (1 - b) * d_forward


def _backward(
    weight: float,
    temperature: float,
    chunks: int,
    divergence: str,
    residuals: tuple[jax.Array, jax.Array, Outputs],
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, Outputs, None]:
    d_hidden, d_head, teacher = residuals
    g = cotangents[0]
    zeros = jax.tree.map(jnp.zeros_like, teacher)
    return d_hidden * g.astype(d_hidden.dtype), (d_head * g).astype(d_hidden.dtype), zeros, None


distillation.defvjp(_forward, _backward)
