"""The cache is there once: no program copies it, or turns a layer of it around."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from lowbit.generation import CACHE_KINDS, Decoder, Sampling, cache_kind, from_params, loop
from lowbit.llama import LlamaConfig, param_shapes
from lowbit.tree import unflatten

CFG = LlamaConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=16,
    num_layers=32,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    max_positions=2048,
)
BATCH, SLOTS = 3, 509  # a prime that no other axis has


def programs(kind, cfg=CFG):
    """A step, and a whole generation, lowered; and the bytes of their cache."""
    decoder = Decoder(cfg, "float32", cache_kind(kind), "float32")

    def arguments():
        params = unflatten({path: jnp.zeros(shape, jnp.float32) for path, shape in param_shapes(cfg).items()})
        cache = loop.start(decoder, jnp.zeros(BATCH, jnp.int32), SLOTS)
        draws = loop.Draws(jnp.zeros(BATCH, jnp.uint32), jnp.zeros(0, jnp.int32))
        return from_params(params, "float32"), cache, draws, jnp.zeros((BATCH, cfg.vocab_size), jnp.float32)

    weights, cache, draws, logits = jax.eval_shape(arguments)
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((cache.keys, cache.values)))
    token, number = jax.ShapeDtypeStruct((BATCH,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    step = loop.advance.lower(decoder, Sampling(), weights, token, cache, draws, number)
    return step, loop.generate.lower(decoder, Sampling(), 8, weights, logits, cache, draws), held


@pytest.mark.parametrize("kind", ["float32", "int8", "int4_minmax"])
def test_temporaries_are_a_layer_and_not_a_cache(kind):
    step, whole, held = programs(kind)
    # One layer of 32 as float32, keys or values or both, and some of the codes on their way: at 4 bits 8 times their
    # bytes each, and as much again in halfwords.
    for program in (step, whole):
        memory = program.compile().memory_analysis()
        assert memory.alias_size_in_bytes >= held
        assert memory.temp_size_in_bytes < held * (8 * 2 + 4 * 2) / 32


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_a_step_turns_nothing_around_that_is_as_long_as_the_cache(kind):
    """Where products want another order of axes, a GPU's compiler may keep the whole cache in it, beside the given."""
    step, whole, _ = programs(kind, dataclasses.replace(CFG, num_layers=2))
    for program in (step, whole):
        text = program.as_text()
        assert f"x{SLOTS}x64x" in text  # heads before slots
        assert not re.findall(rf"stablehlo\.transpose.*[<x]{SLOTS}x.*", text)
