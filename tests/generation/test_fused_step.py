"""A step in few kernels computes what the layers of the model do, and writes the cache that they write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from test_step_attention import CFG

from lowbit.generation import Generator, fused_step, loop
from lowbit.generation.cache import empty_cache
from lowbit.generation.fused_attention import filled_slots, turned_stored_attended
from lowbit.generation.fused_norm import added_and_normed
from lowbit.generation.step_attention import Tile
from lowbit.generation.stored import CACHE_KINDS, cache_kind
from lowbit.models.attention import rotary_at, rotate
from lowbit.models.layers import RMSNorm

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 3}
EPS = float(np.finfo(np.float32).eps)
SLOTS = 40
STARTS = (0, 7, 35)
LENGTH = 37
LAYER = 1


def generators(packed, **settings):
    """The same model by layers, and in few kernels."""
    plain = Generator.from_packed(packed, kernels="gpu", **settings)
    return plain, Generator(plain.decoder._replace(unrolled=True, attention="kernel"), plain.weights)


def step(generator, prompts=((3, 4, 5, 6), (7, 8, 9, 3)), slots=16):
    """Logits after one token more than a prompt, and the cache."""
    decoder, weights = generator.decoder, generator.weights
    cache = loop.start(decoder, jnp.zeros(len(prompts), jnp.int32), slots)
    _, cache = loop.prefill(decoder, weights, jnp.asarray(prompts), cache)
    return loop.prefill(decoder, weights, jnp.full((len(prompts), 1), 5), cache)


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_logits_and_cache_are_those_of_the_layers(make, activations):
    """In float32: sums of up to 128 products in another order, three layers of them; rounding to 8 bits may turn one
    number by a step of 1/127 of the largest, which few of them do."""
    (expected, by_layers), (got, fused) = (step(one) for one in generators(make(**WIDE), activations=activations))
    assert int(fused.length) == 5
    tolerance = 3 * 2 * 128 * EPS if activations == "float32" else 2 / 127
    for a, b in (
        (expected, got),
        (by_layers.keys.codes, fused.keys.codes),
        (by_layers.values.codes, fused.values.codes),
    ):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(a))))


def test_generates_the_same_text(make):
    prompts = [[3, 4, 5], [6]]
    plain, fused = (one.generate(prompts, 6, stop_tokens=()) for one in generators(make(**WIDE)))
    np.testing.assert_array_equal(fused.tokens, plain.tokens)


def test_is_taken_where_it_fits(make, monkeypatch):
    calls = []
    monkeypatch.setattr(fused_step, "all_layers", lambda *a, **_: calls.append(a) or (a[3], a[6]))
    packed = make(**WIDE)
    plain, fused = generators(packed)
    coded = Generator.from_packed(packed, kernels="gpu", cache="int8", attention="kernel")
    coded = Generator(coded.decoder._replace(unrolled=True), coded.weights)
    apart = Generator(fused.decoder, Generator.from_packed(packed, kernels="xla").weights)
    for one, taken in ((plain, 0), (coded, 0), (apart, 0), (fused, 1)):
        cache = loop.start(one.decoder, jnp.zeros(1, jnp.int32), 8)
        loop.prefill.lower(one.decoder, one.weights, jnp.asarray([[3, 4]]), cache)  # a prompt
        loop.prefill.lower(one.decoder, one.weights, jnp.asarray([[5]]), cache)
        assert len(calls) == taken


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("b", "d", "adds"), [(1, 576, True), (3, 64, True), (2, 100, False)])
def test_a_sum_and_its_norm(b, d, adds):
    x, added, scale = random(0, b, d), random(1, b, d), random(2, d)
    total, normed = added_and_normed(x, added if adds else None, scale, 1e-5, interpret=True)
    expected = x + added if adds else x
    np.testing.assert_array_equal(total, expected)
    norm = RMSNorm(1e-5, jnp.float32).apply({"params": {"scale": scale}}, expected)
    # The mean of d squares is a sum of d terms, in any order; its root halves what is lost.
    np.testing.assert_allclose(normed, norm, rtol=(d + 8) * EPS, atol=0)


def test_the_sum_is_rounded_as_a_layer_rounds_it():
    x, added = random(0, 1, 64).astype(jnp.bfloat16), random(1, 1, 64)
    total, _ = added_and_normed(x, added, jnp.ones(64), 1e-5, interpret=True)
    np.testing.assert_array_equal(total, x + added.astype(jnp.bfloat16))


def filled(kind, length=LENGTH):
    cache = empty_cache(CFG, cache_kind(kind), jnp.asarray(STARTS, jnp.int32), SLOTS, "kernel")
    parts = []
    for seed, part in enumerate((cache.keys, cache.values)):
        whole = random(seed, *part.codes.shape).astype(part.codes.dtype)
        # What lies behind the slots in use must never be read.
        parts.append(part.with_codes(whole.at[:, :, :, length + 1 :].set(jnp.nan)))
    return dataclasses.replace(cache.filled(*parts), length=jnp.int32(length))


@pytest.mark.parametrize(
    ("length", "tile", "splits"), [(37, None, None), (37, Tile(16, 1, 1), 3), (35, Tile(16, 1, 1), 1)]
)
def test_attention_turns_stores_and_mixes(length, tile, splits):
    cache = filled("float32", length)
    heads, kv_heads, h = CFG.num_heads, CFG.num_kv_heads, CFG.head_dim
    qkv = random(5, len(STARTS), (heads + 2 * kv_heads) * h)
    cos, sin = rotary_at(CFG, cache.positions(1))
    mixed, keys, values = turned_stored_attended(
        *(qkv, cos, sin, cache.keys, cache.values, jnp.int32(LAYER), filled_slots(cache.length, cache.start)),
        **{"dtype": jnp.dtype("float32"), "tile": tile, "splits": splits, "interpret": True},
    )
    q, k, v = (
        part.reshape(len(STARTS), 1, -1, h) for part in jnp.split(qkv, [heads * h, (heads + kv_heads) * h], axis=1)
    )
    known = [part.with_codes(jnp.nan_to_num(part.codes)) for part in (cache.keys, cache.values)]
    by_parts = dataclasses.replace(cache.filled(*known), method="products")
    expected, written = by_parts.attend(jnp.int32(LAYER), rotate(q, cos, sin), rotate(k, cos, sin), v)
    # Scores are sums of h products, and weights of up to 40 values; numbers are of order 1.
    tolerance = (h + SLOTS) * EPS * float(jnp.max(jnp.abs(known[1].codes)))
    np.testing.assert_allclose(mixed.reshape(expected.shape), expected, rtol=0, atol=tolerance)
    turned = 4 * EPS * float(jnp.max(jnp.abs(k)))
    np.testing.assert_allclose(jnp.nan_to_num(keys.codes), written.keys.codes, rtol=0, atol=turned)
    np.testing.assert_array_equal(jnp.nan_to_num(values.codes), written.values.codes)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("splits", [1, 2])
def test_the_kernels_are_lowered_for_a_gpu(splits):
    """Into the Triton language, all of it: the last step before the GPU's own compiler."""
    gpu = AbstractMesh((1,), ("x",), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"))
    cache = filled("bfloat16")
    x, scale = jnp.ones((3, 96), jnp.bfloat16), jnp.ones(96)
    qkv = jnp.ones((3, 10 * 64))
    cos, sin = rotary_at(CFG, cache.positions(1))

    def both(x, qkv, cache):
        normed = added_and_normed(x, x.astype(jnp.float32), scale, 1e-5, interpret=False)
        at = jnp.int32(LAYER), filled_slots(cache.length, cache.start)
        options = {"dtype": jnp.dtype("bfloat16"), "splits": splits, "interpret": False}
        return normed, turned_stored_attended(qkv, cos, sin, cache.keys, cache.values, *at, **options)

    with use_abstract_mesh(gpu):
        lowered = jax.jit(both).trace(x, qkv, cache).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "added_and_normed" in text
    assert "turned_stored_attended" in text
    assert text.count("output_operand_aliases") >= 1


def test_floats_of_both_widths_fit():
    assert [name for name, kind in CACHE_KINDS.items() if fused_step.fits(CFG, kind, [])] == ["float32", "bfloat16"]
