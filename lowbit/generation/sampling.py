"""Choosing next tokens on the device, each row from a seed of its own."""

import jax
import jax.numpy as jnp

from lowbit.kernels.sampling import Sampling

CHUNK = 32
"""Neighbours that `largest` looks at together: near sqrt(V / k) for 50 of 49,152, where its two sorts are smallest."""


def sample(logits: jax.Array, sampling: Sampling, seeds: jax.Array, number: jax.Array) -> jax.Array:
    """Returns tokens i32[b] from logits f32[b V]; top_k is applied first, then top_p to what it left.

    A row's draw depends on its logits, its seed and the number of the draw: not on the rows beside it.

    Args:
      logits: of the next token.
      sampling: as in the numpy runtime; temperature 0 takes the likeliest token, the lowest among equals.
      seeds: u32[b], one a row; unused where greedy.
      number: i32[], how many tokens the rows have drawn before.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits / jnp.float32(sampling.temperature)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(seeds)
    if sampling.top_k is None and sampling.top_p is None:
        return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
    vocabulary = logits.shape[-1]
    kept = vocabulary if sampling.top_k is None else min(sampling.top_k, vocabulary)
    scaled, order = largest(scaled, kept)
    if sampling.top_p is not None:
        probabilities = jax.nn.softmax(scaled, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        scaled = jnp.where(before < sampling.top_p, scaled, -jnp.inf)  # the token that crosses top_p is in
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


def largest(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k largest numbers of each row of f32[b V], descending, and their places: (f32[b k], i32[b k]).

    Equal to `jax.lax.top_k`, of equal numbers the first included, without sorting whole rows, which on a GPU takes
    longer than a small model's step. Of the chunks of a row, the k with the largest maxima hold all k numbers: a number
    outside of them has k numbers before it, the maxima. So one pass over x finds maxima, and what is sorted is one
    number a chunk, then k chunks.
    """
    b, vocabulary = x.shape
    chunks = -(-vocabulary // CHUNK)
    if 2 * k > chunks:  # nearly all chunks would be sorted
        values, places = jax.lax.top_k(x, k)
        return values, places
    # What fills up the last chunk stands behind every number of the row, and k of those are there.
    padded = jnp.pad(x, ((0, 0), (0, chunks * CHUNK - vocabulary)), constant_values=-jnp.inf)
    chunked = padded.reshape(b, chunks, CHUNK)
    _, chosen = jax.lax.top_k(jnp.max(chunked, axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)  # in the order of the row, so that of equal numbers the first comes first
    candidates = jnp.take_along_axis(chunked, chosen[:, :, None], axis=1)
    places = chosen[:, :, None] * jnp.int32(CHUNK) + jnp.arange(CHUNK, dtype=jnp.int32)[None, None, :]
    values, best = jax.lax.top_k(candidates.reshape(b, -1), k)
    return values, jnp.take_along_axis(places.reshape(b, -1), best, axis=-1)
