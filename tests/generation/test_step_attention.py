"""One token over a cache, three ways: all are the attention of a prompt."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from lowbit.errors import ConfigError, QuantizerError
from lowbit.generation import step_attention
from lowbit.generation.cache import KVCache, empty_cache
from lowbit.generation.step_attention import METHODS, Tile, by_kernel, by_sums, chosen_method, kernel_refusal
from lowbit.generation.stored import CACHE_KINDS, cache_kind
from lowbit.llama import CacheKind, LlamaConfig

CFG = LlamaConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 96,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
    }
)
CAPACITY = 150
STARTS = (0, 20, 98)  # sequences of 100, 80 and 2 tokens
EPS = float(np.finfo(np.float32).eps)
LAYER = 1


@functools.cache
def written(kind, tokens, dtype):
    """A cache with some random tokens in its second layer."""

    def write(new):
        start = jnp.minimum(jnp.asarray(STARTS, jnp.int32), tokens)
        cache, layer, zero = empty_cache(CFG, kind, start, CAPACITY), jnp.int32(LAYER), jnp.int32(0)
        if tokens == 0:
            return cache
        keys, values = (part.write(layer, zero, x) for part, x in zip((cache.keys, cache.values), new, strict=True))
        return dataclasses.replace(cache, keys=keys, values=values).advance(tokens)

    return jax.jit(write)(random(0, dtype, 2, len(STARTS), tokens, 2, 64))


def random(seed, dtype, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.cache
def attended(kind, method, tokens, dtype="float32"):
    """What the last of some tokens attends to, f32[b 1 6 64], and the cache."""
    cache = dataclasses.replace(written(kind, tokens - 1, dtype), method=method)
    queries, new = random(1, dtype, len(STARTS), 1, 6, 64), random(2, dtype, 2, len(STARTS), 1, 2, 64)
    mixed, cache = jax.jit(KVCache.attend)(cache, jnp.int32(LAYER), queries, new[0], new[1])
    return np.asarray(mixed.astype(jnp.float32)), cache


SHARED = CacheKind(4, symmetric=False, per_head=False)
KINDS = [*CACHE_KINDS.values(), SHARED]


@pytest.mark.parametrize(
    ("method", "kind", "tokens"),
    [*itertools.product(["sums", "kernel"], KINDS, [100]), ("sums", KINDS[0], 1), ("kernel", SHARED, 1)],
    ids=str,
)
def test_ways_to_attend_agree(method, kind, tokens):
    expected, _ = attended(kind, "products", tokens)
    got, cache = attended(kind, method, tokens)
    # Scores are sums of 64 products, up to 15 times as large where a zero point is taken off after them; the softmax
    # may double what they differ by, and mixes up to 100 values below 5.
    np.testing.assert_allclose(got, expected, rtol=0, atol=5 * 2 * (15 * 64 + 100) * EPS)
    assert np.abs(expected).max() > 0.1
    assert cache.method == method
    assert int(cache.length) == tokens - 1  # all layers first


@functools.cache
def in_pieces(name, tile, splits):
    """What other queries attend to among 90 tokens, f32[b 2 3 64]."""
    cache = written(cache_kind(name), 90, "float32")
    where = cache.keys, cache.values, jnp.int32(LAYER), cache.start, jnp.int32(90)
    queries = random(1, "float32", 3, 2, 3, 64)
    return np.asarray(by_kernel(queries, *where, tile=tile, splits=splits, interpret=True))


@pytest.mark.parametrize("kind", ["float32", "int4_minmax"])
@pytest.mark.parametrize(("slots", "splits"), [(16, 1), (16, 3), (32, 5), (128, 2)])
def test_tiles_and_pieces_change_nothing(kind, slots, splits):
    """Also pieces without any slot: sequences are 1 to 6 blocks long here."""
    whole = in_pieces(kind, Tile(128, 4, 3), 1)
    assert np.abs(whole).max() > 0.1
    # As above, without the zero points' part: it is the same in both.
    got = in_pieces(kind, Tile(slots, 4, 3), splits)
    np.testing.assert_allclose(got, whole, rtol=0, atol=5 * 2 * (15 * 64 + 100) * EPS)


@pytest.mark.parametrize(("heads", "group", "width", "name"), [(1, 16, 32, "int8_minmax"), (3, 1, 128, "int4")])
def test_other_heads_and_a_full_cache(heads, group, width, name):
    """One key for as many queries as there may be, a key for each; and a last slot in the middle of a block."""
    cfg = dataclasses.replace(CFG, head_dim=width, num_heads=heads * group, num_kv_heads=heads)
    queries, used = random(1, "float32", 1, heads, group, width), jnp.int32(45)
    start, layer = jnp.asarray([33], jnp.int32), jnp.int32(LAYER)

    def both(new):
        cache = empty_cache(cfg, cache_kind(name), start, 45)
        held = [part.write(layer, jnp.int32(0), x) for part, x in zip((cache.keys, cache.values), new, strict=True)]
        summed = by_sums(queries, *(part.read(layer, jnp.float32) for part in held), start, used)
        return by_kernel(queries, *held, layer, start, used, tile=Tile(16, 4, 3), splits=2, interpret=True), summed

    got, expected = jax.jit(both)(random(0, "float32", 2, 1, 45, heads, width))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, rtol=0, atol=5 * 2 * (15 * width + 100) * EPS)


def test_bfloat16_loses_no_more_than_it_must():
    exact, _ = attended(cache_kind("float32"), "products", 100)
    for method in METHODS:
        got, _ = attended(cache_kind("bfloat16"), method, 100, "bfloat16")
        # Queries, keys, values, weights and results are rounded, each by 2^-9 at most; values are below 5.
        assert np.abs(got - exact).max() < 0.1, method


@pytest.mark.parametrize("kind", ["int8", "int8_minmax", "int4", "int4_minmax"])
def test_bfloat16_queries_meet_codes_that_are_exact(kind):
    exact, _ = attended(cache_kind(kind), "products", 100, "bfloat16")
    got, _ = attended(cache_kind(kind), "kernel", 100, "bfloat16")
    # Both round a weight of a value (times its scale) and the result, by 2^-9 each, on values below 5.
    assert np.abs(got - exact).max() < 4 * 5 * 2**-9
    assert np.abs(exact).max() > 0.5


def test_the_kernel_reads_the_layer_and_the_slots_that_it_is_asked_for():
    cache = empty_cache(CFG, cache_kind("float32"), jnp.zeros(1, jnp.int32), CAPACITY)
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.normal(size=cache.values.codes.shape), jnp.float32)
    keys = dataclasses.replace(cache.keys, codes=jnp.zeros_like(codes))  # equal weights
    queries = jnp.ones((1, 2, 3, 64), jnp.float32)
    for layer, start, used in ((0, 0, 1), (1, 0, 70), (0, 65, 128), (1, 149, 150), (1, 3, 150)):
        # What is not seen may be anything, even no number.
        own = np.asarray(codes)[layer, 0, :, start:used]
        unseen = jnp.full_like(codes, jnp.nan).at[layer, 0, :, start:used].set(own)
        values = dataclasses.replace(cache.values, codes=unseen)
        at = jnp.int32(layer), jnp.asarray([start], jnp.int32), jnp.int32(used)
        mixed = by_kernel(queries, keys, values, *at, interpret=True)
        for g in range(3):
            np.testing.assert_allclose(mixed[0, :, g], own.mean(axis=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "narrowest"), [("float32", 16), ("bfloat16", 16), ("int8_minmax", 32), ("int4_minmax", 64)]
)
def test_what_threads_hold_of_a_block_leaves_registers_for_the_rest(name, narrowest):
    """32 threads a warp have 255 each. Compiled for an H100, tiles that held 192 spilled, those with 96 did not."""
    for width in (16, 32, 64, 128, 256):
        if width < narrowest:
            continue
        cfg = dataclasses.replace(CFG, head_dim=width)
        stored = jax.eval_shape(lambda cfg=cfg: empty_cache(cfg, cache_kind(name), jnp.zeros(1, jnp.int32), CAPACITY))
        tile = step_attention.tile_for(stored.keys)
        # Planes of 16 numbers are made anew by every warp, others once by all.
        sharing = 32 * (1 if stored.keys.codes.shape[-1] == 16 else tile.warps)
        scores, keys = 16 * tile.slots, tile.slots * width // 2  # float32, and two bfloat16 in a register
        assert (scores + keys) / sharing <= 96


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int8_minmax", "int4", "int4_minmax"])
def test_the_kernel_is_lowered_for_a_gpu(kind):
    """Into the Triton language, all of it: the last step before the GPU's own compiler."""
    # jax 0.11 and later ask which GPU it is for.
    gpu = AbstractMesh((1,), ("x",), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"))
    cache = empty_cache(CFG, cache_kind(kind), jnp.zeros(1, jnp.int32), CAPACITY)
    queries = jnp.ones((1, 2, 3, 64), jnp.bfloat16)

    def attend(queries, cache):
        at = jnp.int32(0), cache.start, jnp.int32(70)
        return by_kernel(queries, cache.keys, cache.values, *at, splits=2, interpret=False)

    with use_abstract_mesh(gpu):
        lowered = jax.jit(attend).trace(queries, cache).lower(lowering_platforms=("cuda",))
    assert "step_attention" in lowered.as_text()


def test_the_kernel_is_chosen_where_it_runs(monkeypatch):
    int4 = cache_kind("int4")
    assert chosen_method("auto", CFG, int4, "bfloat16") == "products"  # on a CPU
    monkeypatch.setattr(step_attention, "kernel_runs_here", lambda: True)
    assert chosen_method("auto", CFG, int4, "bfloat16") == "kernel"
    assert chosen_method("auto", CFG, int4, "float32") == "products"
    assert chosen_method("sums", CFG, int4, "bfloat16") == "sums"
    for kind in (int4._replace(rotated=False), cache_kind("bfloat16")):
        narrow = dataclasses.replace(CFG, head_dim=64 if kind == int4._replace(rotated=False) else 48)
        assert chosen_method("auto", narrow, kind, "bfloat16") == "products"


def test_what_a_way_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="unknown attention 'sum'\n  -> did you mean 'sums'"):
        chosen_method("sum", CFG, cache_kind("float32"), jnp.float32)
    with pytest.raises(QuantizerError, match="the kernel of attention cannot read keys that are turned"):
        chosen_method("kernel", CFG, CacheKind(8, rotated=False), jnp.float32)
    for change, kind, message in [
        ({"num_heads": 34}, "float32", "cannot take 17 queries a head of width 64 with a cache of 32 bits"),
        ({"head_dim": 32}, "int4", "width 32 with a cache of 4 bits\n  -> take up to 16 of a power of two from 64 to"),
        ({"head_dim": 16}, "int8", "width 16 with a cache of 8 bits"),
        ({"head_dim": 512}, "bfloat16", "width 512 with a cache of 16 bits"),
        ({"head_dim": 80}, "bfloat16", "width 80 with a cache of 16 bits"),
    ]:
        with pytest.raises(ConfigError, match=message):
            chosen_method("kernel", dataclasses.replace(CFG, **change), cache_kind(kind), jnp.bfloat16)
    assert kernel_refusal(dataclasses.replace(CFG, head_dim=256), cache_kind("float32")) is None


def test_the_kernel_is_refused_where_nothing_runs_it(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ConfigError, match="the kernel of attention does not run on a tpu\n  -> take another way"):
        chosen_method("kernel", CFG, cache_kind("int8"), jnp.float32)
    assert chosen_method("sums", CFG, cache_kind("int8"), jnp.float32) == "sums"


def test_no_cache_is_made_that_would_be_read_wrongly():
    """A decoder may name any method: "auto" is none, and turned keys would be read as if they were not."""
    starts = jnp.zeros(1, jnp.int32)
    with pytest.raises(ConfigError, match="unknown attention 'auto'"):
        empty_cache(CFG, cache_kind("int8"), starts, 8, "auto")
    with pytest.raises(QuantizerError, match="the kernel of attention cannot read keys that are turned"):
        empty_cache(CFG, CacheKind(8, rotated=False), starts, 8, "kernel")
