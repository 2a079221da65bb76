"""The numpy decoder against a slow float64 one, written here from the equations, token by token."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.errors import ConfigError, DataError, FormatError, ModelError
from lowbit.formats import BFloat16, PackedModel, PackedTensor, decode, read, write
from lowbit.kernels import KVCache, Runtime
from lowbit.llama import LlamaConfig, rope_frequencies

MakePacked = Callable[..., PackedModel]
TOKENS = np.array([[1, 7, 39, 0, 5, 5, 23], [3, 4, 4, 31, 2, 0, 12]])

# Along the path of a logit lie 2 layers of 7 products and a head, each a sum of at most 32 terms, so about 500
# roundings in a row. If all of them fell on one side, the error would be 500 eps of the logits' size; a norm may
# double what comes in. An error of the algorithm is of the logits' own size.
TOLERANCE = 1000 * float(np.finfo(np.float32).eps)


def assert_logits_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def slow_logits(packed: PackedModel, tokens: list[int]) -> np.ndarray:
    """Logits [t V] of one sequence in float64, loops over positions and heads."""
    cfg = LlamaConfig.from_hf(packed.config)
    p = {name: decode(tensor).astype(np.float64) for name, tensor in packed.tensors.items()}
    inv_freq, factor = rope_frequencies(cfg)
    half = cfg.head_dim // 2

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x * scale / math.sqrt(sum(v * v for v in x) / len(x) + cfg.rms_norm_eps)

    def turned(head: np.ndarray, position: int) -> np.ndarray:
        out = np.empty_like(head)
        for i in range(half):
            c, s = math.cos(position * inv_freq[i]) * factor, math.sin(position * inv_freq[i]) * factor
            out[i] = head[i] * c - head[i + half] * s
            out[i + half] = head[i + half] * c + head[i] * s
        return out

    xs = [p["embed.embedding"][token] for token in tokens]
    for layer in range(cfg.num_layers):
        at = f"layers.{layer}"
        queries, keys, values = [], [], []
        for position, x in enumerate(xs):
            h = norm(x, p[f"{at}.attn_norm.scale"])
            q, k, v = (h @ p[f"{at}.attn.{n}_proj.kernel"] for n in "qkv")
            if cfg.qkv_bias:
                q, k, v = (y + p[f"{at}.attn.{n}_proj.bias"] for n, y in zip("qkv", (q, k, v), strict=True))
            queries.append([turned(head, position) for head in q.reshape(cfg.num_heads, -1)])
            keys.append([turned(head, position) for head in k.reshape(cfg.num_kv_heads, -1)])
            values.append(v.reshape(cfg.num_kv_heads, -1))
        for position in range(len(xs)):
            mixed = []
            for head in range(cfg.num_heads):
                kv = head // (cfg.num_heads // cfg.num_kv_heads)
                scores = [queries[position][head] @ keys[j][kv] / math.sqrt(cfg.head_dim) for j in range(position + 1)]
                e = [math.exp(score - max(scores)) for score in scores]
                mixed.append(sum(e[j] / sum(e) * values[j][kv] for j in range(position + 1)))
            x = xs[position] + np.concatenate(mixed) @ p[f"{at}.attn.o_proj.kernel"]
            h = norm(x, p[f"{at}.mlp_norm.scale"])
            gate, up = h @ p[f"{at}.mlp.gate_proj.kernel"], h @ p[f"{at}.mlp.up_proj.kernel"]
            xs[position] = x + (gate / (1 + np.exp(-gate)) * up) @ p[f"{at}.mlp.down_proj.kernel"]
    head = p["embed.embedding"].T if cfg.tie_embeddings else p["lm_head.kernel"]
    return np.stack([norm(x, p["norm.scale"]) @ head for x in xs])


def test_logits_equal_those_of_the_slow_decoder(make_packed: MakePacked, variant: dict[str, Any]) -> None:
    packed = make_packed(variant)
    got = Runtime(packed).forward(TOKENS)
    assert got.dtype == np.float32
    expected = np.stack([slow_logits(packed, row) for row in TOKENS.tolist()])
    assert np.abs(expected).max() > 0.5  # the comparison below is relative to this
    assert_logits_close(got, expected)


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [4, 3], [2, 1, 4]])
def test_cached_pieces_equal_one_pass(make_packed: MakePacked, variant: dict[str, Any], pieces: list[int]) -> None:
    runtime = Runtime(make_packed(variant))
    cache = runtime.new_cache(batch=2)
    parts, start = [], 0
    for size in pieces:
        parts.append(runtime.forward(TOKENS[:, start : start + size], cache))
        start += size
        assert cache.length == start
    assert_logits_close(np.concatenate(parts, axis=1), runtime.forward(TOKENS))


def test_decoding_at_every_use_gives_the_same_logits(make_packed: MakePacked, variant: dict[str, Any]) -> None:
    packed = make_packed(variant)
    lazy, eager = Runtime(packed, storage="packed"), Runtime(packed)
    assert_logits_close(lazy.forward(TOKENS), eager.forward(TOKENS))
    assert lazy.weights.nbytes < eager.weights.nbytes / 2


def test_a_head_decoded_in_parts_equals_the_whole(make_packed: MakePacked, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = make_packed()
    monkeypatch.setattr("lowbit.kernels.weights.OUTPUTS_AT_A_TIME", 7)
    assert_logits_close(Runtime(packed, storage="packed").forward(TOKENS), Runtime(packed).forward(TOKENS))


@pytest.mark.parametrize("storage", ["float32", "packed"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "untransposed"])
def test_every_kind_of_embedding_works(make_packed: MakePacked, storage: Any, kind: str) -> None:
    packed = make_packed()
    embedding = packed.tensors["embed.embedding"]
    assert isinstance(embedding, PackedTensor)
    new: Any
    if kind == "untransposed":
        new = PackedTensor.from_codes(
            embedding.codes().T, np.full((1, 1), 0.2, np.float16), embedding.levels, embedding.grid
        )
    else:
        new = embedding.decode()
        new = BFloat16.from_float32(new) if kind == "bfloat16" else new.astype(np.float16)
    changed = replace(packed, tensors=packed.tensors | {"embed.embedding": new})
    got = Runtime(changed, storage=storage).forward(TOKENS[:1])
    assert_logits_close(got[0], slow_logits(changed, TOKENS[0].tolist()))


def test_a_model_read_from_a_file_gives_the_same_logits(tmp_path: Path, make_packed: MakePacked) -> None:
    packed = make_packed()
    write(tmp_path / "model", packed)
    np.testing.assert_array_equal(Runtime(read(tmp_path / "model")).forward(TOKENS), Runtime(packed).forward(TOKENS))


def test_greedy_tokens_are_the_likeliest_of_an_uncached_pass(make_packed: MakePacked) -> None:
    runtime = Runtime(make_packed())
    prompt = [1, 7, 39]
    generated = list(runtime.generate(prompt, 10, stop_tokens=()))
    tokens = list(prompt)
    for token in generated:
        assert token == int(runtime.forward(np.array([tokens]))[0, -1].argmax())
        tokens.append(token)
    assert len(generated) == 10


def test_a_prompt_in_pieces_generates_the_same(make_packed: MakePacked, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(make_packed())
    whole = list(runtime.generate([1, 7, 39, 4, 8], 5))
    monkeypatch.setattr("lowbit.kernels.runtime.PREFILL_TOKENS", 2)
    assert list(runtime.generate([1, 7, 39, 4, 8], 5)) == whole


def test_a_seed_fixes_the_text_and_a_stop_token_ends_it(make_packed: MakePacked) -> None:
    runtime = Runtime(make_packed())

    def text(seed: int, **kwargs: Any) -> list[int]:
        return list(runtime.generate([5], 20, temperature=1.0, seed=seed, **kwargs))

    free = text(0, stop_tokens=())
    assert free == text(0, stop_tokens=())
    assert free != text(1, stop_tokens=())
    assert text(0, stop_tokens=[free[4]]) == free[: free.index(free[4])]


def test_the_eos_token_of_the_config_ends_the_text(make_packed: MakePacked) -> None:
    packed = make_packed()
    first = next(iter(Runtime(packed).generate([1, 7], 1, stop_tokens=())))
    ends = replace(packed, config=packed.config | {"eos_token_id": [3, first]})
    assert list(Runtime(ends).generate([1, 7], 5)) == []


def test_the_context_can_be_filled_and_not_more(make_packed: MakePacked) -> None:
    runtime = Runtime(make_packed())
    assert len(list(runtime.generate([1] * 60, 4, stop_tokens=()))) == 4
    with pytest.raises(DataError, match="prompt of 60 tokens and 5 new ones do not fit the model's 64 positions"):
        runtime.generate([1] * 60, 5)
    cache = runtime.new_cache()
    runtime.forward(np.ones((1, 64), int), cache)
    with pytest.raises(DataError, match="65 tokens do not fit the model's 64 positions"):
        runtime.forward(np.ones((1, 1), int), cache)
    assert cache.length == 64


@pytest.mark.parametrize(
    ("prompt", "kwargs", "error", "message"),
    [
        ([], {}, DataError, "the prompt is empty"),
        ([40], {}, DataError, "token 40 is outside of the vocabulary of 40"),
        ([3, -1], {}, DataError, "token -1 is outside"),
        ([3], {"temperature": -1.0}, ConfigError, "temperature -1.0 is out of range"),
    ],
)
def test_bad_requests_are_refused_before_the_first_token(
    make_packed: MakePacked, prompt: list[int], kwargs: dict, error: type[Exception], message: str
) -> None:
    runtime = Runtime(make_packed())
    with pytest.raises(error, match=message):
        runtime.generate(prompt, 3, **kwargs)  # not iterated: the call itself refuses


@pytest.mark.parametrize("tokens", [np.zeros((1, 0), int), np.zeros(3, int)])
def test_tokens_of_another_shape_are_refused(make_packed: MakePacked, tokens: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"give integers \[batch tokens\]"):
        Runtime(make_packed()).forward(tokens)


def test_a_cache_of_another_batch_is_refused(make_packed: MakePacked) -> None:
    runtime = Runtime(make_packed())
    with pytest.raises(DataError, match="2 sequences for a cache of 1"):
        runtime.forward(TOKENS, runtime.new_cache())


def test_a_model_that_does_not_fit_its_config_is_refused(make_packed: MakePacked) -> None:
    packed = make_packed()
    name = "layers.1.mlp.up_proj.kernel"

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises((FormatError, ModelError), match=message):
            Runtime(replace(packed, **changes))

    tensors = packed.tensors
    refused(f"lacks tensor '{name}'", tensors={n: t for n, t in tensors.items() if n != name})
    refused("holds tensor 'extra', which its config", tensors=tensors | {"extra": tensors["norm.scale"]})
    refused(
        rf"'{name}' has shape \[32, 24\], the config says \[24, 32\]",
        tensors=tensors | {name: tensors["layers.1.mlp.down_proj.kernel"]},
    )
    refused("lacks tensor 'lm_head.kernel'", config=packed.config | {"tie_word_embeddings": False})
    refused("model family 'gpt2' is not supported", config=packed.config | {"model_type": "gpt2"})


def test_a_damaged_tensor_is_named(make_packed: MakePacked) -> None:
    packed = make_packed()
    kernel = packed.tensors["layers.1.mlp.up_proj.kernel"]
    assert isinstance(kernel, PackedTensor)
    damaged = replace(kernel, scale=np.full_like(kernel.scale, np.nan))
    with pytest.raises(FormatError, match=r"tensor 'layers.1.mlp.up_proj.kernel': scale holds NaN"):
        Runtime(replace(packed, tensors=packed.tensors | {"layers.1.mlp.up_proj.kernel": damaged}))


def test_the_cache_grows_by_doubling_and_keeps_what_it_holds(make_packed: MakePacked) -> None:
    runtime = Runtime(make_packed())
    small, large = KVCache(runtime.config, capacity=2), KVCache(runtime.config)
    assert large.capacity == 64  # never more than the model has positions
    capacities = []
    for token in [1, 7, 39, 4, 8, 9]:
        step = np.array([[token]])
        np.testing.assert_array_equal(runtime.forward(step, small), runtime.forward(step, large))
        capacities.append(small.capacity)
    assert capacities == [2, 2, 4, 4, 8, 8]
    # layers, keys and values, kv heads, positions, head_dim, float32
    assert small.nbytes == 2 * 2 * 2 * 8 * 6 * 4
