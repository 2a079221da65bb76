"""Choosing next tokens on the device, each row from a seed of its own."""

import jax
import jax.numpy as jnp

from lowbit.kernels.sampling import Sampling


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
    scaled, order = jax.lax.top_k(scaled, kept)
    if sampling.top_p is not None:
        probabilities = jax.nn.softmax(scaled, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        scaled = jnp.where(before < sampling.top_p, scaled, -jnp.inf)  # the token that crosses top_p is in
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)
