"""One token over a cache, three ways: all are the attention of a prompt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from lowbit.errors import ConfigError, QuantizerError
from lowbit.generation.cache import CACHE_KINDS, cache_kind, empty_cache
from lowbit.generation.step_attention import METHODS, StepCache, beyond_signed_offsets, by_kernel, step_cache
from lowbit.llama import LlamaConfig

CFG = LlamaConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 96,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
    }
)
BATCH, CAPACITY = 3, 150


def filled(kind, method, tokens, dtype=jnp.float32):
    """A cache with some random tokens in its second layer, and what the last of them attends to."""
    rng = np.random.default_rng(0)
    cache = step_cache(empty_cache(CFG, cache_kind(kind), jnp.zeros(BATCH, jnp.int32), CAPACITY), method)
    layer = jnp.int32(1)
    if tokens > 1:
        keys, values = jnp.asarray(rng.normal(size=(2, BATCH, tokens - 1, 2, 16)), dtype)
        zero = jnp.int32(0)
        keys, values = cache.keys.write(layer, zero, keys), cache.values.write(layer, zero, values)
        cache = dataclasses.replace(cache, keys=keys, values=values).advance(tokens - 1)
    queries = jnp.asarray(rng.normal(size=(BATCH, 1, 6, 16)), dtype)
    keys, values = jnp.asarray(rng.normal(size=(2, BATCH, 1, 2, 16)), dtype)
    mixed, cache = jax.jit(StepCache.attend)(cache, layer, 3 * queries, keys, values)
    return np.asarray(mixed.astype(jnp.float32)), cache


@pytest.mark.parametrize("tokens", [1, 100])
@pytest.mark.parametrize(
    ("method", "kind"), [*(("sums", kind) for kind in CACHE_KINDS), ("kernel", "float32"), ("kernel", "int8")]
)
def test_ways_to_attend_agree(method, kind, tokens):
    expected, _ = filled(kind, "products", tokens)
    got, cache = filled(kind, method, tokens)
    # Sums of up to 100 products of numbers around 1, in another order; the softmax may double what scores differ by.
    np.testing.assert_allclose(got, expected, rtol=0, atol=400 * np.finfo(np.float32).eps)
    assert np.abs(expected).max() > 0.1
    assert cache.method == method
    assert int(cache.length) == tokens - 1  # all layers first


def test_bfloat16_loses_no_more_than_it_must():
    exact, _ = filled("float32", "products", 100)
    for method in METHODS:
        got, _ = filled("bfloat16", method, 100, jnp.bfloat16)
        # Queries, keys, values, weights and results are rounded, each by 2^-9 at most; values are below 4.
        assert np.abs(got - exact).max() < 0.1, method


def test_the_kernel_reads_the_layer_and_the_slots_that_it_is_asked_for():
    cache = empty_cache(CFG, cache_kind("float32"), jnp.zeros(1, jnp.int32), CAPACITY)
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.normal(size=cache.values.codes.shape), jnp.float32)
    keys = dataclasses.replace(cache.keys, codes=jnp.zeros_like(codes))  # equal weights
    values = dataclasses.replace(cache.values, codes=codes)
    queries = jnp.ones((1, 2, 3, 16), jnp.float32)
    for layer, used in ((0, 1), (1, 70), (0, 128), (1, 150)):
        mixed = by_kernel(queries, keys, values, jnp.int32(layer), jnp.int32(used), True)
        expected = np.asarray(codes)[layer, 0, :used].mean(axis=0)
        for g in range(3):
            np.testing.assert_allclose(mixed[0, :, g], expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_the_kernel_is_lowered_for_a_gpu():
    """Into the Triton language, all of it: the last step before the GPU's own compiler."""
    # jax 0.11 and later ask which GPU it is for.
    gpu = AbstractMesh((1,), ("x",), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"))
    for kind in ("bfloat16", "int8"):
        cache = empty_cache(CFG, cache_kind(kind), jnp.zeros(1, jnp.int32), CAPACITY)
        queries = jnp.ones((1, 2, 3, 16), jnp.bfloat16)

        def attend(queries, cache):
            return by_kernel(queries, cache.keys, cache.values, jnp.int32(0), jnp.int32(70), False)

        with use_abstract_mesh(gpu):
            lowered = jax.jit(attend).trace(queries, cache).lower(lowering_platforms=("cuda",))
        assert "step_attention" in lowered.as_text()


def test_arrays_whose_places_triton_would_miscount_are_cut(monkeypatch):
    assert not beyond_signed_offsets(2**31, 1)
    assert beyond_signed_offsets(2**31 + 1, 1)
    assert beyond_signed_offsets(2**32, 1)
    assert not beyond_signed_offsets(2**32 + 1, 1)  # counted in 64 bits
    assert not beyond_signed_offsets(2**31 + 1, 2)
    whole, _ = filled("int8", "kernel", 70)
    monkeypatch.setattr("lowbit.generation.step_attention.beyond_signed_offsets", lambda *_: True)
    jax.clear_caches()
    np.testing.assert_array_equal(filled("int8", "kernel", 70)[0], whole)


def test_what_a_way_cannot_do_is_refused():
    def empty(kind):
        return empty_cache(CFG, cache_kind(kind), jnp.zeros(1, jnp.int32), 8)

    with pytest.raises(ConfigError, match="unknown attention 'sum'\n  -> did you mean 'sums'"):
        step_cache(empty("float32"), "sum")
    for kind in ("int4", "int8_minmax"):
        with pytest.raises(QuantizerError, match="the kernel of attention cannot read keys and values of"):
            step_cache(empty(kind), "kernel")
    cache = empty("float32")
    with pytest.raises(ConfigError, match="cannot take 17 queries a head of width 16"):
        by_kernel(jnp.ones((1, 2, 17, 16)), cache.keys, cache.values, jnp.int32(0), jnp.int32(1), True)
