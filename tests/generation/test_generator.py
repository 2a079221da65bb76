"""The generator: tokens of the numpy runtime, rows as by themselves, one compilation a shape, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import ConfigError, DataError, ModelError, QuantizerError
from lowbit.export.packed import unpack_params
from lowbit.formats import PackedTensor
from lowbit.generation import Generator, Sampling, loop
from lowbit.kernels import Runtime
from lowbit.llama import LlamaConfig
from lowbit.models import Transformer
from lowbit.tree import unflatten

PROMPT = [1, 7, 39, 0, 5, 5, 23]
# All read in one piece of 8, so that few programs are compiled.
PROMPTS = [PROMPT, [4, 31, 0, 0, 11], [3, 9, 3, 9, 3, 9], [9, 8, 7, 6, 5, 4, 3, 1]]
# As in tests/kernels/test_runtime.py: some 500 roundings in a row along the path of a logit, which a norm may double.
TOLERANCE = 1000 * float(np.finfo(np.float32).eps)

VARIANTS = {
    "tied": {"tie_word_embeddings": True},
    "bias": {"model_type": "qwen2"},
    "yarn rope": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
}


def piecewise_logits(generator, tokens, pieces):
    """Logits [b V] after each piece."""
    cache = loop.start(generator.decoder, jnp.zeros(len(tokens), jnp.int32), 16)
    begin, parts = 0, []
    for size in pieces:
        logits, cache = loop.prefill(generator.decoder, generator.weights, tokens[:, begin : begin + size], cache)
        parts.append(logits)
        begin += size
    return np.stack(parts, axis=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_through_the_cache_equal_one_pass_of_the_model(make, variant):
    packed = make(**VARIANTS[variant])
    cfg = LlamaConfig.from_hf(packed.config)
    params = unflatten(unpack_params(cfg, packed))
    tokens = jnp.asarray([PROMPT, PROMPT[::-1]], jnp.int32)
    expected = np.asarray(jax.jit(Transformer(cfg, attention="xla").apply)({"params": params}, tokens))
    ends = [3, 4, 6]
    for generator in (Generator.from_params(cfg, params), Generator.from_packed(packed)):
        got = piecewise_logits(generator, tokens, [4, 1, 2])
        assert np.abs(got - expected[:, ends]).max() <= TOLERANCE * np.abs(expected).max()


def test_logits_move_with_the_step_of_the_cache(tiny):
    """To first order in the step, as rounding errors are; each bound on its own is in test_kv_cache.py."""
    tokens = jnp.asarray([PROMPT], jnp.int32)
    exact = piecewise_logits(Generator.from_packed(tiny), tokens, [4, 1, 2])
    errors = []
    for name in ("int8", "int4"):
        got = piecewise_logits(Generator.from_packed(tiny, cache=name), tokens, [4, 1, 2])
        errors.append(np.sqrt(np.mean(np.square(got - exact))) / np.abs(exact).max())
    # Steps are max|x| / 127 and max|x| / 7. Errors are random in size; twice their ratio is room enough for 120 logits.
    assert 0 < errors[0] < errors[1] < 1
    assert 127 / 7 / 2 < errors[1] / errors[0] < 127 / 7 * 2


@pytest.mark.parametrize("activations", ["float32", "int8"])
def test_greedy_tokens_are_those_of_the_numpy_runtime(make, activations):
    packed = make()
    runtime = Runtime(packed, activations=activations)
    generator = Generator.from_packed(packed, activations=activations)
    got = generator.generate(PROMPTS, 20, stop_tokens=[]).rows()
    for prompt, row in zip(PROMPTS, got, strict=True):
        assert row == list(runtime.generate(prompt, 20, stop_tokens=[]))
    assert len({token for row in got for token in row}) > 10


@pytest.mark.parametrize("cache", ["float32", "int4"])
def test_a_row_of_a_batch_is_what_it_is_alone(tiny, cache):
    generator = Generator.from_packed(tiny, cache=cache)
    sampling = Sampling(1.5, top_k=20, top_p=0.95)
    together = generator.generate(PROMPTS, 12, sampling=sampling, seeds=[5, 6, 7, 8], stop_tokens=[]).rows()
    for prompt, seed, row in zip(PROMPTS, [5, 6, 7, 8], together, strict=True):
        alone = generator.generate([prompt], 12, sampling=sampling, seeds=[seed], stop_tokens=[]).rows()
        assert alone == [row]
    assert len(set(map(tuple, together))) == len(PROMPTS)


def test_a_stream_is_the_whole(tiny):
    generator = Generator.from_packed(tiny)
    for sampling in (Sampling(), Sampling(1.0)):
        whole = generator.generate(PROMPTS, 10, sampling=sampling).tokens
        columns = list(generator.stream(PROMPTS, 10, sampling=sampling))
        assert all(column.dtype == np.int32 for column in columns)
        np.testing.assert_array_equal(np.stack(columns, axis=1), whole[:, : len(columns)])
        assert (whole[:, len(columns) :] == loop.NO_TOKEN).all()


def test_stop_tokens_end_a_row_and_are_left_out(tiny):
    generator = Generator.from_packed(tiny)
    free = generator.generate(PROMPTS, 12, stop_tokens=[]).rows()
    stop = free[0][4]
    made = generator.generate(PROMPTS, 12, stop_tokens=[stop])
    for row, length, expected in zip(made.tokens, made.lengths, free, strict=True):
        end = expected.index(stop) if stop in expected else 12
        assert length == end
        assert row.tolist() == expected[:end] + [loop.NO_TOKEN] * (12 - end)
    assert made.lengths[0] == free[0].index(stop)
    first = [int(column[0]) for column in generator.stream([PROMPT], 12, stop_tokens=[stop])]
    assert first == free[0][: made.lengths[0]]
    assert list(generator.stream([PROMPT], 12, stop_tokens=[free[0][0]])) == []


def test_decoding_compiles_once_a_shape(tiny):
    generator = Generator.from_packed(tiny, cache="int8_minmax")
    before = loop.advance._cache_size(), loop.prefill._cache_size()
    for prompt, seed in ((PROMPT, 0), (PROMPT[:5], 1), ([*PROMPT, 3], 2)):
        assert len(list(generator.stream([prompt], 6, seeds=[seed], stop_tokens=[]))) == 6
    # One of each: prompts of 5 to 8 tokens are one piece of 8, and every step has the same shapes.
    assert loop.advance._cache_size() == before[0] + 1
    assert loop.prefill._cache_size() == before[1] + 1


def test_long_prompts_are_read_in_pieces(make, monkeypatch):
    monkeypatch.setattr("lowbit.generation.generator.PIECE_TOKENS", 4)
    packed = make()
    runtime = Runtime(packed)
    rows = Generator.from_packed(packed).generate(PROMPTS, 5, stop_tokens=[]).rows()
    for row, prompt in zip(rows, PROMPTS, strict=True):
        assert row == list(runtime.generate(prompt, 5, stop_tokens=[]))


def test_the_cache_is_written_in_place(tiny):
    generator = Generator.from_packed(tiny)
    cache = loop.start(generator.decoder, jnp.zeros(1, jnp.int32), 16)
    loop.prefill(generator.decoder, generator.weights, jnp.asarray([PROMPT], jnp.int32), cache)
    assert cache.keys.codes.is_deleted()


def test_weights_stay_packed(tiny):
    cfg = LlamaConfig.from_hf(tiny.config)
    packed = Generator.from_packed(tiny).weights
    decoded = Generator.from_params(cfg, unflatten(unpack_params(cfg, tiny))).weights
    codes = [leaf for leaf in jax.tree.leaves(packed.layers["packed"]) if leaf.dtype == jnp.uint8]
    kernels = [leaf for leaf in jax.tree.leaves(decoded.layers["params"]) if leaf.ndim == 3]
    assert sum(leaf.nbytes for leaf in codes) == sum(leaf.size for leaf in kernels) / 4
    assert packed.nbytes < decoded.nbytes / 3


def test_bfloat16_runs_packed_and_decoded_alike(tiny):
    cfg = LlamaConfig.from_hf(tiny.config)
    params = unflatten(unpack_params(cfg, tiny))
    tokens = jnp.asarray([PROMPT], jnp.int32)
    pair = (
        Generator.from_packed(tiny, dtype=jnp.bfloat16, cache="bfloat16"),
        Generator.from_params(cfg, params, dtype=jnp.bfloat16, cache="bfloat16"),
    )
    packed, decoded = (piecewise_logits(generator, tokens, [7]) for generator in pair)
    assert packed.dtype == np.float32
    # The same 16-bit weights; sums in another order, rounded to 16 bits some 20 times along the way.
    assert np.abs(packed - decoded).max() <= 20 * 2.0**-8 * np.abs(decoded).max()


@pytest.mark.parametrize(
    ("prompts", "new", "options", "message"),
    [
        ([], 4, {}, "there is no prompt, or an empty one"),
        ([[1], []], 4, {}, "there is no prompt, or an empty one"),
        ([[1]], 0, {}, "0 new tokens are an empty generation\n  -> ask for 1 token or more"),
        ([[1, 40]], 4, {}, "token 40 is outside of the vocabulary of 40"),
        ([[-1]], 4, {}, "token -1 is outside of the vocabulary"),
        ([[1] * 60], 5, {}, "a prompt of 60 tokens and 5 new ones do not fit the model's 64 positions"),
        ([[1]], 4, {"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ([[1]], 4, {"seeds": [-1]}, "give one a prompt, from 0 to 4294967295"),
    ],
)
def test_refuses_what_it_cannot_generate(tiny, prompts, new, options, message):
    generator = Generator.from_packed(tiny)
    for method in (generator.generate, generator.stream):
        with pytest.raises(DataError, match=message):
            method(prompts, new, **options)


def test_refuses_more_than_the_cache_holds(tiny):
    generator = Generator.from_packed(tiny, capacity=16)
    assert len(generator.generate([PROMPT], 8, stop_tokens=[]).rows()[0]) == 8
    with pytest.raises(DataError, match="filled up to 8 tokens and 9 new ones do not fit the cache's 16 slots"):
        generator.generate([PROMPT], 9)
    with pytest.raises(ConfigError, match="a cache of 0 slots holds no token"):
        Generator.from_packed(tiny, capacity=0)


def test_refuses_unknown_settings(tiny):
    with pytest.raises(QuantizerError, match="the cache cannot hold keys and values as 'int3'"):
        Generator.from_packed(tiny, cache="int3")
    with pytest.raises(ConfigError, match="unknown activations 'int4'"):
        Generator.from_packed(tiny, activations="int4")


def test_refuses_packed_weights_that_one_program_cannot_run(make):
    lacking = make()
    del lacking.tensors["layers.1.mlp.up_proj.kernel"]
    with pytest.raises(ModelError, match=r"not those of its config: see layers\.1\.mlp\.up_proj\.kernel"):
        Generator.from_packed(lacking)
    turned = make()
    old = turned.tensors["embed.embedding"]
    turned.tensors["embed.embedding"] = PackedTensor.from_codes(
        old.codes().T, np.full((1, 1), 0.01, np.float16), old.levels, "int8"
    )
    with pytest.raises(ModelError, match="embed/embedding is packed across the direction"):
        Generator.from_packed(turned)


@pytest.mark.parametrize(("cache", "width"), [pytest.param("float32", 16, marks=pytest.mark.slow), ("int4_minmax", 64)])
def test_ways_to_attend_write_the_same_greedy_tokens(make, cache, width):
    """Rows of unequal prompts, by the kernel as a CPU runs it; heads are as wide as its tiles ask for."""
    packed = make(head_dim=width)
    cfg = LlamaConfig.from_hf(packed.config)
    params = unflatten(unpack_params(cfg, packed))
    assert Generator.from_packed(packed, cache=cache).decoder.attention == "products"
    assert Generator.from_packed(packed, cache=cache, attention="kernel").decoder.attention == "kernel"
    found = []
    for attention in ("products", "sums", "kernel"):
        generator = Generator.from_params(cfg, params, cache=cache, attention=attention, capacity=24)
        found.append(generator.generate(PROMPTS, 12, stop_tokens=[]).rows())
    assert found[0] == found[1] == found[2]
    assert len({token for row in found[0] for token in row}) > 10


def test_attention_that_does_not_fit_is_refused(tiny):
    with pytest.raises(ConfigError, match="unknown attention 'kernels'\n  -> did you mean 'kernel'"):
        Generator.from_packed(tiny, attention="kernels")
    with pytest.raises(ConfigError, match="kernel of attention cannot take 2 queries a head of width 6"):
        Generator.from_packed(tiny, attention="kernel")
