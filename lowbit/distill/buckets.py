"""Cross entropy mixed with the divergence from a teacher of whom the k likeliest tokens are known, and the rest's mass.

The tokens that are not kept are one bucket, of which both models have a probability.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from lowbit.distill.mixture import Means, Slopes, mixed
from lowbit.models.chunks import rows

_ABSENT = -1e30


class Kept(NamedTuple):
    """What is kept of a teacher's distribution softmax(logits / T) at each position.

    Attributes:
      ids: i32[b t k], different tokens.
      log_probs: f32[b t k], theirs.
      tail: f32[b t], log of the probability of all others together.
    """

    ids: jax.Array
    log_probs: jax.Array
    tail: jax.Array


class Truncation(NamedTuple):
    """What a teacher loses by it, mean over positions.

    Attributes:
      tail_mass: probability of what is not kept.
      tail_information: nats/token that a student who spreads the tail's mass evenly falls short of the teacher by, and
        no longer learns of: tail mass times KL(tail || uniform).
    """

    tail_mass: jax.Array
    tail_information: jax.Array


def keep(logits: Float32[Array, "r V"], k: int, temperature: float) -> tuple[Kept, Truncation]:
    """Returns the k likeliest tokens of each row, `[r k]` and `[r]`, and what the others held, f32[r] each."""
    log_q = jax.nn.log_softmax(logits / temperature)
    log_probs, ids = jax.lax.top_k(log_q, k)
    rest = jnp.where(_is_kept(ids, logits.shape[-1]), _ABSENT, log_q)
    tail = jax.nn.logsumexp(rest, axis=-1)
    even = jnp.log(jnp.float32(logits.shape[-1] - k))
    information = jnp.sum(jnp.exp(rest) * (log_q - tail[:, None] + even), axis=-1)
    return Kept(ids, log_probs, tail), Truncation(jnp.exp(tail), information)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def bucket_distillation(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "d V"],
    kept: Kept,
    targets: Int32[Array, "b t"],
    weight: float,
    temperature: float,
    chunks: int,
) -> tuple[Float32[Array, ""], Float32[Array, ""], Float32[Array, ""]]:
    """Returns `(1-weight) * CE + weight * T^2 * D`, then the cross entropy and D by themselves, in nats per token.

    D = KL(q || p) over k + 1 outcomes: the kept tokens and the tail. It is at most the divergence over the whole
    vocabulary, and equal where p has the teacher's proportions within the tail. With p_tail the student's mass there,

      T^2 d D / d logit = T (p - q) of a kept token, T (p - q_tail p / p_tail) of any other

    Args:
      hidden: the student's final hidden states.
      head: the student's head.
      kept: of the teacher, at the same temperature; its probabilities are brought to a sum of 1.
      targets: token ids.
      weight: share of the divergence, 0 to 1.
      temperature: T > 0.
      chunks: how many pieces t is cut into; it must divide t.
    """
    return _forward(hidden, head, kept, targets, weight, temperature, chunks)[0]


def _forward(
    hidden: jax.Array,
    head: jax.Array,
    kept: Kept,
    targets: jax.Array,
    weight: float,
    temperature: float,
    chunks: int,
) -> tuple[Means, tuple[Slopes, Kept]]:
    def apart(log_p: jax.Array, wise: Kept, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _divergence(log_p, Kept(rows(wise.ids), rows(wise.log_probs), wise.tail.reshape(-1)))

    means, slopes = mixed(hidden, head, kept, targets, weight, temperature, chunks, apart)
    return means, (slopes, kept)


def _divergence(log_p: Float32[Array, "r V"], kept: Kept) -> tuple[Float32[Array, " r"], Float32[Array, "r V"]]:
    """D of each row, and its gradient to the logits of p."""
    ids, vocabulary = kept.ids, log_p.shape[-1]
    total = jnp.logaddexp(jax.nn.logsumexp(kept.log_probs, axis=-1), kept.tail)  # what is stored was rounded
    log_q, q_tail = kept.log_probs - total[:, None], kept.tail - total
    is_kept = _is_kept(ids, vocabulary)
    p_tail = jax.nn.logsumexp(jnp.where(is_kept, _ABSENT, log_p), axis=-1)
    own = jnp.take_along_axis(log_p, ids, axis=-1)
    apart = jnp.sum(jnp.exp(log_q) * (log_q - own), axis=-1) + jnp.exp(q_tail) * (q_tail - p_tail)
    goal = jnp.where(is_kept, 0.0, jnp.exp(log_p + (q_tail - p_tail)[:, None]))
    goal = goal.at[jnp.arange(ids.shape[0])[:, None], ids].add(jnp.exp(log_q))
    return apart, jnp.exp(log_p) - goal


def _is_kept(ids: Int32[Array, "r k"], vocabulary: int) -> jax.Array:
    """bool[r V]."""
    absent = jnp.zeros((ids.shape[0], vocabulary), bool)
    return absent.at[jnp.arange(ids.shape[0])[:, None], ids].set(True)


def _backward(
    weight: float,
    temperature: float,
    chunks: int,
    residuals: tuple[Slopes, Kept],
    cotangents: Means,
) -> tuple[jax.Array, jax.Array, Kept, None]:
    slopes, kept = residuals
    # Of integers there is no gradient at all, of the teacher's probabilities it is not wanted.
    nothing: tuple[None, jax.Array, jax.Array] = (None, jnp.zeros_like(kept.log_probs), jnp.zeros_like(kept.tail))
    return *slopes.times(cotangents[0]), Kept(*nothing), None  # type: ignore[arg-type]


bucket_distillation.defvjp(_forward, _backward)
