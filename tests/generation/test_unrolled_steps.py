"""Layers that are written out one after another compute what the loop over them does, in the cache that is there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.generation import Generator, Sampling, loop

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def generators(packed, **settings):
    """The same model with and without a loop over its layers."""
    looped = Generator.from_packed(packed, **settings)
    assert not looped.decoder.unrolled  # on a CPU
    return looped, Generator(looped.decoder._replace(unrolled=True), looped.weights)


def lowered(generator, tokens=1, slots=32):
    """The program of a piece of a prompt, or of a step."""
    cache = loop.start(generator.decoder, jnp.zeros(1, jnp.int32), slots)
    return loop.prefill.lower(generator.decoder, generator.weights, jnp.ones((1, tokens), jnp.int32), cache)


@pytest.mark.parametrize("settings", [{"cache": "int8"}, {"kernels": "gpu"}], ids=str)
def test_tokens_are_those_of_the_loop(make, settings):
    prompts, draws = [[3, 4, 5], [6]], {"sampling": Sampling(0.8, top_k=8), "stop_tokens": ()}
    looped, unrolled = (one.generate(prompts, 5, **draws) for one in generators(make(**WIDE), **settings))
    np.testing.assert_array_equal(unrolled.tokens, looped.tokens)


def test_only_a_step_is_written_out(make):
    looped, unrolled = generators(make())
    assert [lowered(one).as_text().count("stablehlo.while") for one in (looped, unrolled)] == [1, 0]
    assert [lowered(one, tokens=4).as_text().count("stablehlo.while") for one in (looped, unrolled)] == [1, 1]


def test_the_cache_is_there_once(make):
    """A layer's update that did not happen in place would need a second cache."""
    packed = make(num_hidden_layers=6, max_position_embeddings=4096)
    _, unrolled = generators(packed)
    held = dataclasses.replace(loop.start(unrolled.decoder, jnp.zeros(1, jnp.int32), 4096), start=0, length=0).nbytes
    memory = lowered(unrolled, slots=4096).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= held
    # Keys and values of a layer, of 6, on their way to the products, and scores.
    assert memory.temp_size_in_bytes < held / 2


def test_a_layer_reads_its_own_weights(make):
    """All layers stand in one program: a number of the wrong one would be another model."""
    packed = make(**WIDE, num_hidden_layers=3)
    looped, unrolled = generators(packed, kernels="gpu", activations="int8")
    logits = []
    for one in (looped, unrolled):
        cache = loop.start(one.decoder, jnp.zeros(1, jnp.int32), 8)
        logits.append(loop.prefill(one.decoder, one.weights, jnp.asarray([[7]]), cache)[0])
    # Sums of up to 128 products; XLA may order those of either program as it likes.
    tolerance = 2 * 128 * float(jnp.finfo(jnp.float32).eps) * float(jnp.max(jnp.abs(logits[0])))
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=tolerance)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.shape[0] == 3, unrolled.weights.layers["stacked"]))
