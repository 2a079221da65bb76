"""What the cache holds: codes of the quantizers, errors no larger than their rounding, bytes as promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.generation import stored
from lowbit.generation.attention import Operand, attention
from lowbit.generation.cache import bytes_per_token, empty_cache
from lowbit.generation.stored import CACHE_KINDS, cache_kind
from lowbit.llama import LlamaConfig
from lowbit.numerics.quantizers import rtn, transposed

EPS = float(np.finfo(np.float32).eps)
CODED = [name for name, kind in CACHE_KINDS.items() if kind.bits < 16]
CFG = LlamaConfig(
    vocab_size=8, hidden_size=24, intermediate_size=8, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6
)


encode = jax.jit(stored.encode, static_argnums=1)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def values(operand):
    scale = 1.0 if operand.scale is None else operand.scale[..., None]
    return operand.numbers.astype(jnp.float32) * scale


@pytest.mark.parametrize("name", CODED)
def test_a_token_and_head_is_what_the_quantizer_makes_of_it(name):
    kind = cache_kind(name)
    x = normal(2, 5, 2, 6)
    quantizer = transposed(rtn(kind.bits, "channel", symmetric=kind.symmetric, scale_dtype=jnp.float16))
    expected = quantizer.encode(x, quantizer.init(x)).decode()
    np.testing.assert_array_equal(values(encode(x, kind).operand(jnp.float32)), jnp.swapaxes(expected, 1, 2))


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_lie_in_fields_of_halfwords(bits):
    """Dimension f*s + w is field f of halfword w; bit 7 of both bytes is turned over. Width 6 leaves fields unused."""
    x = normal(1, 3, 2, 6)
    kind, fields = cache_kind(f"int{bits}"), 16 // bits
    words = np.asarray(encode(x, kind).codes).view(np.uint16) ^ 0x8080
    span = words.shape[-1]
    assert span == -(-6 // fields)
    got = np.stack([words[..., i % span] >> bits * (i // span) & (1 << bits) - 1 for i in range(6)], axis=-1)
    scale = np.swapaxes(np.abs(np.asarray(x)).max(axis=-1, keepdims=True), 1, 2) / (2 ** (bits - 1) - 1)
    expected = np.swapaxes(np.asarray(x), 1, 2) / scale.astype(np.float16) + 2 ** (bits - 1)
    assert np.abs(got - expected).max() <= 0.5 + 2.0**-10 * 2 ** (bits - 1)  # the scale is rounded to float16 here
    assert got.max() == 2**bits - 1 or got.min() == 1


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_whole_numbers_are_exact_in_16_bits(name, dtype):
    operand = encode(normal(1, 4, 2, 6) * 3, cache_kind(name)).operand(dtype)
    assert operand.numbers.dtype == dtype
    wide = np.asarray(operand.numbers.astype(jnp.float32))
    np.testing.assert_array_equal(wide, np.round(wide))
    np.testing.assert_array_equal(wide, encode(normal(1, 4, 2, 6) * 3, cache_kind(name)).operand(jnp.float32).numbers)


@pytest.mark.parametrize("name", CODED)
def test_rounding_error_is_half_a_step(name):
    x = normal(2, 5, 2, 6)
    operand = encode(x, cache_kind(name)).operand(jnp.float32)
    # The scale is rounded to float16 before codes are taken, so the largest value may lie 2^-11 of itself outside.
    x = jnp.swapaxes(x, 1, 2)  # heads first
    bound = operand.scale[..., None] / 2 + jnp.abs(x) * 2.0**-10
    assert (jnp.abs(values(operand) - x) <= bound).all()


@pytest.mark.parametrize("name", CODED)
def test_attention_errs_by_no_more_than_its_keys_and_values(name):
    """A value's error enters a convex mix; a score's error d changes a weight by a factor within exp(+-2d)."""
    q, k, v = normal(1, 3, 4, 6, seed=1), normal(1, 7, 2, 6, seed=2), normal(1, 7, 2, 6, seed=3)
    visible = jnp.ones((1, 3, 7), bool)
    keys, mixed = (encode(x, cache_kind(name)).operand(jnp.float32) for x in (k, v))
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)  # heads first, as they are held
    exact = attention(q, Operand(k, None), Operand(v, None), visible)
    got = attention(q, keys, mixed, visible)
    score = jnp.max(jnp.sum(jnp.abs(q), axis=-1)) * jnp.max(jnp.abs(values(keys) - k)) * 6**-0.5
    bound = jnp.expm1(2 * score) * jnp.max(jnp.abs(v)) + jnp.max(jnp.abs(values(mixed) - v)) + 100 * EPS
    error = jnp.max(jnp.abs(got - exact))
    assert 0 < error <= bound


def test_scales_outside_of_the_products_change_nothing():
    q, k, v = normal(2, 3, 4, 6, seed=1), normal(2, 7, 2, 6, seed=2), normal(2, 7, 2, 6, seed=3)
    visible = jnp.tril(jnp.ones((3, 7), bool), 4)[None].repeat(2, axis=0)
    keys, mixed = (encode(x, cache_kind("int4")).operand(jnp.float32) for x in (k, v))
    inside = attention(q, Operand(values(keys), None), Operand(values(mixed), None), visible)
    # 7 positions and 6 dimensions, each with a product and a sum rounded once more or less, on numbers below 10.
    np.testing.assert_allclose(attention(q, keys, mixed, visible), inside, rtol=0, atol=10 * 2 * 13 * EPS)


@pytest.mark.parametrize("name", CACHE_KINDS)
def test_writing_fills_the_slots_of_one_layer(name):
    kind = cache_kind(name)
    cache = empty_cache(CFG, kind, jnp.zeros(2, jnp.int32), 5)
    x = normal(2, 2, 2, 6)
    keys = cache.keys.write(jnp.int32(1), jnp.int32(3), x)
    got = values(keys.read(jnp.int32(1), jnp.float32))
    np.testing.assert_array_equal(got[:, :, 3:], values(encode(x, kind).operand(jnp.float32)))
    for layer in (0, 2):
        np.testing.assert_array_equal(
            values(keys.read(jnp.int32(layer), jnp.float32)), values(cache.keys.read(jnp.int32(layer), jnp.float32))
        )


def test_positions_count_from_each_first_token():
    cache = empty_cache(CFG, cache_kind("int8"), jnp.asarray([0, 3], jnp.int32), 8)
    np.testing.assert_array_equal(cache.positions(5), [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(cache.advance(5).positions(1), [[5], [2]])


@pytest.mark.parametrize("name", CACHE_KINDS)
def test_bytes_are_those_of_the_arrays(name):
    cache = empty_cache(CFG, cache_kind(name), jnp.zeros(2, jnp.int32), 5)
    assert cache.capacity == 5
    assert cache.nbytes == 2 * 5 * bytes_per_token(CFG, cache_kind(name))


def test_four_bits_take_less_than_a_third_of_sixteen_for_heads_of_64():
    cfg = LlamaConfig(
        vocab_size=8, hidden_size=64, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64
    )
    wide = bytes_per_token(cfg, cache_kind("bfloat16"))
    assert bytes_per_token(cfg, cache_kind("int4")) == 2 * (32 + 2)
    assert all(3 * bytes_per_token(cfg, cache_kind(name)) < wide for name in ("int4", "int4_minmax"))


def test_a_width_the_cache_cannot_hold_is_refused():
    with pytest.raises(QuantizerError, match=r"the cache cannot hold keys and values as 'int5'\n  -> did you mean"):
        cache_kind("int5")
