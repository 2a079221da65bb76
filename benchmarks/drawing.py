"""Models of random weights that draw tokens greedily, in one program each: what benchmarks of steps time."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.kv_cache import random_weights
from lowbit.bench.random_model import SHAPES, random_model
from lowbit.generation import Decoder, Generator, Sampling, cache_kind, loop
from lowbit.generation.step_attention import chosen_method
from lowbit.generation.weights import Weights
from lowbit.llama import LlamaConfig
from lowbit.pallas import kernel_runs_here

BFLOAT16_BITS = 16
EMBEDDING_BITS = 8
"""Of the tied embedding beside packed layers."""
GREEDY = Sampling()


def make_generator(
    shape: str,
    bits: float,
    layers: int | None = None,
    *,
    cache: str = "bfloat16",
    activations: str = "float32",
    kernels: str = "auto",
    attention: str = "auto",
) -> Generator:
    """Returns a model of random weights, of which matrices have so many bits; 16 are bfloat16.

    Args:
      shape: one of `SHAPES`.
      bits: of matrices.
      layers: how many of them; None for all.
      cache: how keys and values are held.
      activations: what packed matrices are multiplied with.
      kernels: of packed matrices.
      attention: how a single token attends.
    """
    if bits != BFLOAT16_BITS:
        return Generator.from_packed(
            random_model(shape, bits, EMBEDDING_BITS, layers),
            dtype=jnp.bfloat16,
            cache=cache,
            activations=activations,
            kernels=kernels,
            attention=attention,
        )
    cfg, kind = LlamaConfig.from_hf(SHAPES[shape]), cache_kind(cache)
    if layers is not None:
        cfg = dataclasses.replace(cfg, num_layers=layers)
    method = chosen_method(attention, cfg, kind, jnp.bfloat16)
    decoder = Decoder(cfg, "bfloat16", kind, "float32", attention=method, unrolled=kernel_runs_here())
    return Generator(decoder, random_weights(cfg, "bfloat16", 0))


@dataclasses.dataclass
class Drawing:
    """The compiled drawing of tokens after a context of zeros, which no stop ends.

    Attributes:
      decoder: what computes.
      weights: its weights.
      batch: sequences.
      context: tokens before those that are drawn.
      tokens: that are drawn; the first of them needs no step.
    """

    decoder: Decoder
    weights: Weights
    batch: int
    context: int
    tokens: int

    def __post_init__(self) -> None:
        self.program = loop.generate.lower(self.decoder, GREEDY, self.tokens, *self.arguments()).compile()

    def arguments(self) -> tuple[Any, ...]:
        """Returns weights, logits, a cache that claims to hold the context, and draws that never stop."""
        cache = loop.start(self.decoder, jnp.zeros(self.batch, jnp.int32), self.context + self.tokens)
        logits = jnp.zeros((self.batch, self.decoder.cfg.vocab_size), jnp.float32)
        draws = loop.Draws(jnp.zeros(self.batch, jnp.uint32), jnp.zeros(0, jnp.int32))
        return self.weights, logits, cache.advance(self.context), draws

    def step_seconds(self) -> float:
        """Returns the time of a step, in a run of all of them."""
        inputs = jax.block_until_ready(self.arguments())
        began = time.perf_counter()
        jax.block_until_ready(self.program(*inputs))
        return (time.perf_counter() - began) / (self.tokens - 1)
