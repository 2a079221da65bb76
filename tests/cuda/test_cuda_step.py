"""A step in one kernel, compiled for a processor: what kernels of single products and XLA compute."""

import ctypes
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import cuda
from lowbit.bench import random_model as random_models
from lowbit.bench.random_model import SHAPES, random_model
from lowbit.cuda import step_shapes
from lowbit.generation import Generator, loop, whole_step
from lowbit.generation.cache import KVCache
from lowbit.generation.decoder import Decoder
from lowbit.generation.weights import Weights
from lowbit.models.attention import rotary_at

SLOTS = 300
"""Of a cache: more than two blocks read at once. Three that there are here have a head each, or share one."""
PARTS = 5
"""Of a layer."""
GROUPED = SHAPES["tiny"] | {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
}
"""Large enough for groups of 128 inputs, those of the last product in two chunks, and one head for all blocks."""
WIDE = GROUPED | {
    "hidden_size": 640,
    "intermediate_size": 1088,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
"""Threads have two and three quads of activations of a product, the last of which are not all there; with an odd number
of queries, what splits found is no whole 16 bytes; and each block has a head."""


def _generator(kernels: str, bits: float, shape: str) -> Generator:
    packed = random_model(shape, bits, 8)
    return Generator.from_packed(packed, dtype=jnp.bfloat16, kernels=kernels, cache="bfloat16")


def _decoder(generator: Generator, whole: bool) -> Decoder:
    return generator.decoder._replace(unrolled=True, attention="kernel", whole=whole)


def _steps(decoder: Decoder, weights: Weights, length: int) -> tuple[jax.Array, KVCache]:
    """Two steps behind a cache of so many tokens, so that the second finds the first."""
    cache = loop.start(decoder, jnp.zeros(1, jnp.int32), SLOTS)
    keys = jax.random.split(jax.random.key(length), 2)
    held = []
    for key, part in zip(keys, (cache.keys, cache.values), strict=True):
        numbers = jax.random.normal(key, part.codes.shape).astype(part.codes.dtype)
        seen = jnp.arange(SLOTS)[:, None] < length
        held.append(part.with_codes(jnp.where(seen, numbers, 1e4).astype(part.codes.dtype)))
    cache = cache.filled(*held).advance(length)
    first, cache = decoder.forward(weights, jnp.asarray([[7]]), cache)
    second, cache = decoder.forward(weights, jnp.asarray([[8]]), cache)
    return jnp.concatenate([first, second]), cache


def _written(cache: KVCache, length: int) -> list[np.ndarray]:
    """What the steps left in the cache."""
    return [np.asarray(part.codes[:, :, :, : length + 2].astype(jnp.float32)) for part in (cache.keys, cache.values)]


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is one of the system's here."""
    monkeypatch.setattr(step_shapes, "WARPS", 2)
    monkeypatch.setattr(step_shapes, "TEAM", 1)
    monkeypatch.setattr(step_shapes, "PASS", 2)


def _compare(bits: float, length: int, shape: str, ways: tuple[bool, ...]) -> None:
    """Steps by one kernel beside those by kernels of single products, if these are among the ways, and by XLA."""
    packed, by_xla = (_generator(kernels, bits, shape) for kernels in ("gpu", "xla"))
    results = []
    for whole in ways:
        run = jax.jit(lambda weights, whole=whole: _steps(_decoder(packed, whole), weights, length))
        assert ("lowbit_cuda_step_test" in run.lower(packed.weights).as_text()) == whole
        results.append(run(packed.weights))
    (hidden, cache), *apart = results
    by_plain = _steps(by_xla.decoder, by_xla.weights, length)
    # The same whole numbers and roundings, but for float sums in another order, which may turn a rounding to bfloat16
    # in each part of a layer; XLA rounds nothing to whole numbers, which may turn one more.
    for (expected, other), roundings in (*((one, PARTS) for one in apart), (by_plain, 2 * PARTS)):
        _near(hidden, expected, roundings * packed.decoder.cfg.num_layers)
        for a, b in zip(_written(cache, length), _written(other, length), strict=True):
            _near(jnp.asarray(a), jnp.asarray(b), roundings * packed.decoder.cfg.num_layers)


@pytest.mark.parametrize(
    ("bits", "length", "shape"),
    [(3, 0, "wide"), pytest.param(2, 260, "tiny", marks=pytest.mark.slow)],  # an empty cache; more than is read at once
)
def test_a_step_is_that_of_xla(
    driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, bits: float, length: int, shape: str
) -> None:
    monkeypatch.setitem(SHAPES, "wide", WIDE)
    _compare(bits, length, shape, (True,))


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_what_is_not_finite_ends_in_none(driver: ctypes.CDLL, spoiled: float) -> None:
    """Blocks wait for words until they are there: no NaN that products make may look as if it were not."""
    generator = _generator("gpu", 3, "tiny")
    decoder, weights = generator.decoder, generator.weights
    cache = loop.start(decoder, jnp.zeros(1, jnp.int32), SLOTS)
    plan = whole_step.plan(decoder.cfg, decoder.cache, weights, cache)
    assert plan is not None
    x = jnp.ones((1, 64), jnp.bfloat16).at[0, 5].set(spoiled)
    cos, sin = rotary_at(decoder.cfg, cache.positions(1))
    hidden, after = jax.jit(lambda x: whole_step.all_layers(plan, weights, x, cos, sin, cache))(x)
    assert jnp.isnan(hidden).all()
    assert jnp.isnan(after.values.codes[:, :, :, 0]).all()


@pytest.mark.slow
def test_a_step_is_that_of_single_kernels(driver: ctypes.CDLL) -> None:
    _compare(1, 40, "tiny", (True, False))


def test_blocks_share_a_head_and_groups_come_in_chunks(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = random_models.random_tensor

    def grouped(k: int, n: int, bits: float, rng: np.random.Generator) -> Any:
        return plain(k, n, bits, rng, k // 128 if bits < 8 else 1)

    monkeypatch.setattr(random_models, "random_tensor", grouped)
    monkeypatch.setitem(SHAPES, "grouped", GROUPED)
    monkeypatch.setattr(step_shapes, "SLOT_LIMITS", (6 << 10,))
    tiles = []
    made = cuda.step_tile
    monkeypatch.setattr(cuda, "step_tile", lambda *given: tiles.append(made(*given)) or tiles[-1])
    _compare(4, 140, "grouped", (True,))
    assert {(tile.chunks, tile.splits) for tile in tiles if tile} == {((1, 1, 1, 2), 3)}


def _near(got: jax.Array, expected: jax.Array, roundings: int) -> None:
    a, b = (part.astype(jnp.float32) for part in (got, expected))
    assert jnp.isfinite(a).all()
    assert jnp.max(jnp.abs(a - b)) <= roundings * 2.0**-9 * jnp.max(jnp.abs(b))


def _group(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Has matrices of random models scales for so many inputs."""
    plain = random_models.random_tensor

    def grouped(k: int, n: int, bits: float, rng: np.random.Generator) -> Any:
        return plain(k, n, bits, rng, k // size if bits < 8 else 1)

    monkeypatch.setattr(random_models, "random_tensor", grouped)
