"""Cross entropy mixed with a divergence from a teacher, without ever holding the logits of either.

The logits of student and teacher, f32[b t/chunks V] each, live inside one turn of the walk in `lowbit.distill.mixture`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lowbit.distill.mixture import Means, Slopes, mixed
from lowbit.models.chunks import rows

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
) -> tuple[Means, tuple[Slopes, Outputs]]:
    def apart(log_p: jax.Array, wise: jax.Array, flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        taught = jnp.matmul(rows(wise), teacher.head, preferred_element_type=jnp.float32)
        return _divergence(log_p, jax.nn.log_softmax(taught / temperature), flat, divergence)

    means, slopes = mixed(hidden, head, teacher.hidden, targets, weight, temperature, chunks, apart)
    return means, (slopes, teacher)


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
    residuals: tuple[Slopes, Outputs],
    cotangents: Means,
) -> tuple[jax.Array, jax.Array, Outputs, None]:
    slopes, teacher = residuals
    return *slopes.times(cotangents[0]), jax.tree.map(jnp.zeros_like, teacher), None


distillation.defvjp(_forward, _backward)
