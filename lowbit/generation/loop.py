"""The compiled programs: a piece of the prompts, one token more, and a whole generation on the device.

Caches are donated: a program writes into the one it is given, which cannot be used afterwards.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowbit.generation.cache import KVCache, empty_cache
from lowbit.generation.decoder import Decoder
from lowbit.generation.sampling import sample
from lowbit.generation.weights import Weights
from lowbit.kernels.sampling import Sampling

NO_TOKEN = -1
"""Stands in results where a sequence has ended."""


class Draws(NamedTuple):
    """What decides the next tokens beside the logits.

    Attributes:
      seeds: u32[b].
      stop: i32[s], tokens that end a sequence.
    """

    seeds: Any
    stop: Any


@functools.partial(jax.jit, static_argnames=("decoder", "capacity"))
def start(decoder: Decoder, starts: jax.Array, capacity: int) -> KVCache:
    """Returns an empty cache for sequences whose first tokens will be at slots i32[b]."""
    return empty_cache(decoder.cfg, decoder.cache, starts, capacity, decoder.attention)


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="cache")
def prefill(decoder: Decoder, weights: Weights, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """Returns (logits f32[b V] after the last of tokens i32[b t], cache)."""
    hidden, cache = decoder.forward(weights, tokens, cache)
    return decoder.logits(weights, hidden[:, -1]), cache


@functools.partial(jax.jit, static_argnames="decoder", donate_argnames="cache")
def score(
    decoder: Decoder, weights: Weights, tokens: jax.Array, targets: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    """Returns (nats f32[b t] of each of targets i32[b t] after tokens i32[b t], cache)."""
    hidden, cache = decoder.forward(weights, tokens, cache)
    b, t, d = hidden.shape
    log_probabilities = jax.nn.log_softmax(decoder.logits(weights, hidden.reshape(b * t, d)), axis=-1)
    return -jnp.take_along_axis(log_probabilities, targets.reshape(b * t, 1), axis=-1).reshape(b, t), cache


@functools.partial(jax.jit, static_argnames="sampling")
def draw(sampling: Sampling, logits: jax.Array, draws: Draws, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (tokens i32[b], whether each ends its sequence bool[b]), drawn from logits f32[b V]."""
    token = sample(logits, sampling, draws.seeds, number)
    return token, jnp.any(token[:, None] == draws.stop[None, :], axis=-1)


@functools.partial(jax.jit, static_argnames=("decoder", "sampling"), donate_argnames="cache")
def advance(
    decoder: Decoder,
    sampling: Sampling,
    weights: Weights,
    token: jax.Array,
    cache: KVCache,
    draws: Draws,
    number: jax.Array,
) -> tuple[jax.Array, jax.Array, KVCache]:
    """Returns (tokens i32[b] drawn after `token` i32[b], whether each ends its sequence bool[b], cache)."""
    logits, cache = prefill(decoder, weights, token[:, None], cache)
    return *draw(sampling, logits, draws, number), cache


class _Progress(NamedTuple):
    """What the loop carries; `tokens` i32[b N] and `lengths` i32[b] are the result so far."""

    cache: KVCache
    token: Any
    tokens: Any
    lengths: Any
    ended: Any
    number: Any


@functools.partial(jax.jit, static_argnames=("decoder", "sampling", "max_new_tokens"), donate_argnames="cache")
def generate(
    decoder: Decoder,
    sampling: Sampling,
    max_new_tokens: int,
    weights: Weights,
    logits: jax.Array,
    cache: KVCache,
    draws: Draws,
) -> tuple[jax.Array, jax.Array, KVCache]:
    """Draws tokens until all sequences have ended, without a word to the host.

    Args:
      decoder: static.
      sampling: static.
      max_new_tokens: static, N.
      weights: of the decoder.
      logits: f32[b V] after the prompts.
      cache: of the prompts, with room for N - 1 tokens.
      draws: seeds and stop tokens.

    Returns:
      (tokens i32[b N], `NO_TOKEN` behind a sequence's end; their lengths i32[b], stop tokens left out; the cache).
    """

    def noted(progress: _Progress, token: jax.Array, ends: jax.Array, cache: KVCache) -> _Progress:
        ended = progress.ended | ends
        column = jnp.where(ended, NO_TOKEN, token)[:, None]
        zero = jnp.zeros_like(progress.number)
        tokens = jax.lax.dynamic_update_slice(progress.tokens, column, (zero, progress.number))
        lengths = progress.lengths + (~ended).astype(jnp.int32)
        return _Progress(cache, token, tokens, lengths, ended, progress.number + jnp.int32(1))

    def unfinished(progress: _Progress) -> jax.Array:
        return (progress.number < max_new_tokens) & ~jnp.all(progress.ended)

    def body(progress: _Progress) -> _Progress:
        token, ends, cache = advance(decoder, sampling, weights, progress.token, progress.cache, draws, progress.number)
        return noted(progress, token, ends, cache)

    b = logits.shape[0]
    number = jnp.int32(0)
    token, ends = draw(sampling, logits, draws, number)
    nothing = _Progress(
        cache,
        token,
        jnp.full((b, max_new_tokens), NO_TOKEN, jnp.int32),
        jnp.zeros(b, jnp.int32),
        jnp.zeros(b, bool),
        number,
    )
    first = noted(nothing, token, ends, cache)
    if draws.stop.shape[0]:
        progress = jax.lax.while_loop(unfinished, body, first)
    else:
        # The number of steps is known when the program is compiled: the host starts one after another on a GPU, and
        # does not ask after each whether it was the last.
        progress = jax.lax.fori_loop(0, max_new_tokens - 1, lambda _, progress: body(progress), first)
    return progress.tokens, progress.lengths, progress.cache
