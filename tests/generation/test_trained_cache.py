"""What is trained is what the cache holds: keys and values of a forward pass with hooks, and of generation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ConfigError, FormatError, ModelError, QuantizerError
from lowbit.export.packed import unpack_params
from lowbit.generation import Generator, loop
from lowbit.generation.cache import empty_cache
from lowbit.generation.stored import encode
from lowbit.llama import LINEARS, ActivationRounding, CacheKind, InputRounding, LlamaConfig
from lowbit.llama.activations import to_meta
from lowbit.models import Transformer
from lowbit.models.activations import cache_quantizer, cache_rows, fake_cached, rounding_hooks
from lowbit.models.attention import rotary_at, rotate
from lowbit.tree import unflatten

KINDS = [CacheKind(*settings) for settings in itertools.product((4, 8), (True, False), (True, False))]
CFG = LlamaConfig(
    vocab_size=8, hidden_size=24, intermediate_size=8, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6
)
# As in test_generator.py; what is rounded is a float32 that both sides have computed in another order.
TOLERANCE = 1000 * float(np.finfo(np.float32).eps)


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape, jnp.float32)


def values(operand):
    return operand.numbers * (1.0 if operand.scale is None else operand.scale[..., None])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_codes_scales_and_values_are_those_of_training(kind):
    x = normal(2, 5, 2, 6)
    held, rows, quantizer = encode(x, kind), cache_rows(kind, x), cache_quantizer(kind)
    trained = quantizer.encode(rows, quantizer.init(rows))
    np.testing.assert_array_equal(held.scale, jnp.transpose(trained.scale, (0, 3, 1, 2)))
    assert held.scale.shape == (2, 2 if kind.per_head else 1, 5, 1)
    np.testing.assert_array_equal(values(held.operand(jnp.float32)), jnp.swapaxes(fake_cached(kind, x), 1, 2))


@pytest.mark.parametrize("kind", KINDS[::3], ids=str)
def test_unturned_keys_are_turned_when_they_are_read(kind):
    kind = kind._replace(rotated=False)
    starts = jnp.asarray([0, 2], jnp.int32)
    cache = empty_cache(CFG, kind, starts, 7)
    assert not cache.rotated
    x = normal(2, 7, 2, 6)
    cache = dataclasses.replace(cache, keys=cache.keys.write(jnp.int32(1), jnp.int32(0), x))
    positions = jnp.maximum(jnp.arange(7, dtype=jnp.int32)[None] - starts[:, None], 0)
    trained = rotate(fake_cached(kind, x), *rotary_at(CFG, positions))
    got = values(cache.read_keys(jnp.int32(1), jnp.float32))
    np.testing.assert_array_equal(got, jnp.swapaxes(trained, 1, 2))
    # Beside codes and scales, which are as many as of turned keys, the angles of 2 x 7 slots: cos and sin of 3 pairs.
    assert cache.nbytes == empty_cache(CFG, kind._replace(rotated=True), starts, 7).nbytes + 2 * 7 * 2 * 3 * 4


def pieces(generator, tokens, sizes):
    """Logits [b V] after each piece."""
    cache = loop.start(generator.decoder, jnp.zeros(len(tokens), jnp.int32), 16)
    begin, parts = 0, []
    for size in sizes:
        logits, cache = loop.prefill(generator.decoder, generator.weights, tokens[:, begin : begin + size], cache)
        parts.append(logits)
        begin += size
    return np.stack(parts, axis=1)


ROUNDINGS = {
    "4-bit heads": ActivationRounding(cache=CacheKind(4)),
    "LLM-QAT 8-8": ActivationRounding(
        tuple((path, InputRounding(8)) for path in LINEARS), CacheKind(8, per_head=False, rotated=False)
    ),
    "min-max": ActivationRounding(
        (("layers/mlp/down_proj", InputRounding(8, symmetric=False)),), CacheKind(8, symmetric=False, rotated=False)
    ),
}


@pytest.mark.parametrize("name", [pytest.param("4-bit heads", marks=pytest.mark.slow), "LLM-QAT 8-8", "min-max"])
def test_generation_computes_what_training_does(make, name):
    rounding = ROUNDINGS[name]
    packed = make()
    packed.meta.update(to_meta(rounding, {}))
    cfg = LlamaConfig.from_hf(packed.config)
    params = unflatten(unpack_params(cfg, packed))
    tokens = jnp.asarray([[1, 7, 39, 0, 5, 5, 23], [4, 31, 0, 0, 11, 9, 2]], jnp.int32)
    hooks = rounding_hooks(rounding)
    trained = np.asarray(jax.jit(Transformer(cfg, attention="xla", hooks=hooks).apply)({"params": params}, tokens))
    floats = np.asarray(jax.jit(Transformer(cfg, attention="xla").apply)({"params": params}, tokens))
    assert np.abs(trained - floats).max() > 20 * TOLERANCE * np.abs(floats).max()
    for generator in (Generator.from_packed(packed), Generator.from_params(cfg, params, rounding=rounding)):
        assert generator.decoder.cache == rounding.cache
        got = pieces(generator, tokens, [4, 1, 2])
        assert np.abs(got - trained[:, [3, 4, 6]]).max() <= TOLERANCE * np.abs(trained).max()


def test_a_cache_that_is_asked_for_is_taken(make):
    packed = make()
    packed.meta.update(to_meta(ROUNDINGS["4-bit heads"], {}))
    assert Generator.from_packed(packed, cache="int8").decoder.cache == CacheKind(8)


def test_static_ranges_are_those_of_the_file(make):
    rounding = ActivationRounding((("layers/mlp/down_proj", InputRounding(8, True, "tensor", "static")),))
    ranges = {"layers/mlp/down_proj": {"scale": np.full((2, 1, 1), 0.01, np.float32)}}
    packed = make()
    packed.meta.update(to_meta(rounding, ranges))
    tokens = jnp.asarray([[1, 7, 39, 0]], jnp.int32)
    coarse = pieces(Generator.from_packed(packed), tokens, [4])
    packed.meta.update(to_meta(rounding, {"layers/mlp/down_proj": {"scale": np.full((2, 1, 1), 1e-4, np.float32)}}))
    assert np.abs(pieces(Generator.from_packed(packed), tokens, [4]) - coarse).max() > 1e-3
    packed.meta.update(to_meta(rounding, {}))
    with pytest.raises(FormatError, match=r"how activations are rounded cannot be read \(its parts do not fit"):
        Generator.from_packed(packed)


def test_what_cannot_be_generated_is_refused(make):
    packed = make()
    cfg, four = LlamaConfig.from_hf(packed.config), ActivationRounding((("layers/attn/q_proj", InputRounding(4)),))
    packed.meta.update(to_meta(four, {}))
    with pytest.raises(ConfigError, match="made for 4-bit inputs, which 8-bit activations would round again"):
        Generator.from_packed(packed, activations="int8")
    window = ActivationRounding((("layers/attn/q_proj", InputRounding(8, True, "channel")),))
    with pytest.raises(ModelError, match=r"inputs of layers/attn/q_proj are rounded by ranges of a whole window"):
        Generator.from_params(cfg, unflatten(unpack_params(cfg, packed)), rounding=window)
    packed.meta.update(to_meta(window, {}))
    with pytest.raises(ModelError, match=r"inputs of layers/attn/q_proj are rounded by ranges of a whole window"):
        Generator.from_packed(packed)
    with pytest.raises(QuantizerError, match="cache cannot hold keys and values of 5 bits\n  -> choose 4 or 8"):
        ActivationRounding(cache=CacheKind(5))
    for damage in ({"inputs": {}}, {"inputs": {"x": {"bits": 8}}, "cache": None, "ranges": {}}, "int8"):
        packed.meta["activations"] = damage
        with pytest.raises(FormatError, match="how activations are rounded cannot be read"):
            Generator.from_packed(packed)
