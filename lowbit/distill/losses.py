"""Cross entropy mixed with the divergence from a teacher, without ever holding the logits of either.

Positions are visited in chunks. The logits of student and teacher, f32[b t/chunks V] each, live inside one turn of a
scan, where value and gradient are made together, as in `lowbit.train.losses`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lowbit.models.chunks import cut, join, rows


class Outputs(NamedTuple):
    """What a model gives before its logits: `hidden [b t d]` and the head's kernel `[d V]`, in compute dtype."""

    hidden: jax.Array
    head: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def distillation(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "d V"],
    teacher: Outputs,
    targets: Int32[Array, "b t"],
    weight: float,
    temperature: float,
    chunks: int,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Returns `(1-weight) * CE + weight * T^2 * KL(teacher || student)` and the cross entropy alone, nats per token.

    The divergence is between softmax(logits / T) of both (Hinton et al., arXiv 1503.02531); T^2 keeps its gradient's
    size. The gradient goes to `hidden` and `head` of the student, through the first result only:

      d loss / d logits = (1-weight) (p - onehot) + weight * T * (p_T - teacher_T), over b t

    Args:
      hidden: the student's final hidden states.
      head: the student's head.
      teacher: the teacher's; its width may differ, its vocabulary not.
      targets: token ids.
      weight: share of the divergence, 0 to 1.
      temperature: T > 0.
      chunks: how many pieces t is cut into; it must divide t.
    """
    return _forward(hidden, head, teacher, targets, weight, temperature, chunks)[0]


def _forward(
    hidden: jax.Array,
    head: jax.Array,
    teacher: Outputs,
    targets: jax.Array,
    weight: float,
    temperature: float,
    chunks: int,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, Outputs]]:
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
        goal_p = jnp.exp(goal)
        divergence = jnp.sum(goal_p * (goal - soft), axis=-1) * temperature**2
        onehot = jax.nn.one_hot(flat, head.shape[1], dtype=jnp.float32)
        hard = (1 - weight) * (jnp.exp(log_p) - onehot)
        d_logits = (hard + (weight * temperature) * (jnp.exp(soft) - goal_p)).astype(states.dtype)
        d_states = jnp.einsum("rv,dv->rd", d_logits, head, preferred_element_type=jnp.float32)
        d_head += jnp.einsum("rd,rv->dv", rows(states), d_logits, preferred_element_type=jnp.float32)
        d_hidden = (d_states.reshape(states.shape) * share).astype(states.dtype)
        return d_head, (nll.reshape(ids.shape), divergence.reshape(ids.shape), d_hidden)

    pieces = cut(hidden, chunks), cut(teacher.hidden, chunks), cut(targets, chunks)
    d_head, (nll, divergence, d_hidden) = jax.lax.scan(turn, jnp.zeros(head.shape, jnp.float32), pieces)
    cross_entropy = jnp.mean(join(nll))
    loss = (1 - weight) * cross_entropy + weight * jnp.mean(join(divergence))
    return (loss, cross_entropy), (join(d_hidden), d_head * share, teacher)


def _backward(
    weight: float,
    temperature: float,
    chunks: int,
    residuals: tuple[jax.Array, jax.Array, Outputs],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, Outputs, None]:
    d_hidden, d_head, teacher = residuals
    g = cotangents[0]
    zeros = jax.tree.map(jnp.zeros_like, teacher)
    return d_hidden * g.astype(d_hidden.dtype), (d_head * g).astype(d_hidden.dtype), zeros, None


distillation.defvjp(_forward, _backward)
