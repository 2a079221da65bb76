"""How a step in one kernel is cut, and which models and caches take it."""

import ctypes
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.bench.random_model import random_model
from lowbit.cuda import AttentionShape, Matrices, Shape, StepShape, kernels, step_shapes, step_tile, take_step
from lowbit.errors import ConfigError
from lowbit.generation import Generator, loop, whole_step
from lowbit.generation.decoder import Decoder
from lowbit.generation.weights import Weights
from lowbit.pallas.weight import block, span_for

BLOCKS = 132
MODELS = {
    "smollm2-135m": (30, 576, 1536, 3, 3, 64),
    "llama-1b": (16, 2048, 8192, 8, 4, 64),
    "llama-8b": (32, 4096, 14336, 8, 4, 128),
    "llama-70b": (80, 8192, 28672, 8, 8, 128),
}
"""Layers, states, gates, key-value heads, queries of each, and numbers of a head."""


def _product(bits: int, k: int, n: int, group: int | None) -> Shape:
    groups = 1 if group is None else k // group
    span = span_for(bits, k, k // groups)
    return Shape(1, k, n, groups, bits, span, -(-k // block(bits, span)), -3, 2)


def _step(model: str, bits: int, group: int | None = None, slots: int = 192) -> StepShape:
    layers, d, ff, heads, queries, h = MODELS[model]
    products = [
        _product(bits, k, n, group)
        for k, n in ((d, (queries + 2) * heads * h), (heads * queries * h, d), (d, 2 * ff), (ff, d))
    ]
    qkv, out, up, down = products
    return StepShape(layers, qkv, out, up, down, AttentionShape(1, heads, queries, h, slots), 1e-5)


@pytest.mark.parametrize(
    ("model", "bits", "group"),
    [
        *((model, bits, None) for model in MODELS for bits in (1, 2, 3, 4)),
        *((model, bits, 128) for model in ("llama-1b", "llama-8b") for bits in (2, 4)),
    ],
)
def test_public_models_fit(model: str, bits: int, group: int | None) -> None:
    shape = _step(model, bits, group)
    tile = step_tile(shape, BLOCKS)
    assert tile is not None
    assert step_shapes.FEWEST_SLOTS <= tile.ring <= step_shapes.MOST_SLOTS
    assert step_shapes.shared_bytes(shape, tile) <= kernels.SHARED
    # Another slot would not fit.
    larger = tile._replace(ring=tile.ring + 1)
    assert tile.ring == step_shapes.MOST_SLOTS or step_shapes.shared_bytes(shape, larger) > kernels.SHARED
    for product, chunks in zip(shape.products.values(), tile.chunks, strict=True):
        assert product.blocks % chunks == 0
        assert step_shapes.piece_bytes(product, chunks) <= tile.slot
    attention = shape.attention
    assert attention.heads * attention.group // tile.queries * tile.splits <= BLOCKS


def test_copies_are_long_and_many_are_ahead() -> None:
    tile = step_tile(_step("llama-1b", 2), BLOCKS)
    assert tile is not None
    # Rows of 512 bytes are whole, those of 2,048 halves; eleven slots of 16 halves, each 64 bytes beyond the next.
    assert tile.chunks == (1, 1, 1, 2)
    assert (tile.slot, tile.ring) == (16 * (1024 + 64), 11)
    small = step_tile(_step("smollm2-135m", 2), BLOCKS)
    assert small is not None
    assert small.chunks == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("model", "slots", "expected"),
    [
        ("llama-1b", 128, (1, 1, 1)),  # eight warps read 128 slots at once
        ("llama-1b", 192, (1, 1, 2)),
        (
            "llama-1b",
            1088,
            (2, 2, 5),
        ),  # 16 tasks of two queries; of one, with as many splits, 160 blocks would be needed
        ("llama-8b", 128, (1, 2, 1)),  # 64 slots at once
        ("llama-8b", 1088, (2, 4, 5)),
        ("smollm2-135m", 1088, (1, 1, 9)),  # one query where 128 slots are read: no more are
    ],
)
def test_blocks_have_few_queries_then_few_splits(model: str, slots: int, expected: tuple[int, int, int]) -> None:
    tile = step_tile(_step(model, 2, slots=slots), BLOCKS)
    assert tile is not None
    assert (tile.queries, tile.reads, tile.splits) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": AttentionShape(2, 8, 4, 64, 192)},
        {"attention": AttentionShape(1, 200, 4, 64, 192)},
        {"attention": AttentionShape(1, 8, 1, 16, 192)},  # half a warp has its numbers
        {"out": _product(2, 2048, 2056, None)},
        {"up": _product(2, 2048, 16 * 1025, None)},
        {"qkv": _product(2, 2048, 3072, None)._replace(tokens=2)},
        {"down": _product(2, 8192, 2048, 64)},
        {"down": _product(2, 1 << 17, 2048, None)},
    ],
)
def test_other_steps_do_not_fit(changes: dict[str, object]) -> None:
    shape = _step("llama-1b", 2)
    assert step_tile(shape, BLOCKS) is not None
    assert step_tile(shape._replace(**changes), BLOCKS) is None  # type: ignore[arg-type]


def test_refuses_a_tile_that_does_not_fit() -> None:
    shape = _step("llama-1b", 2)
    tile = step_tile(shape, BLOCKS)
    assert tile is not None
    x, cache = jnp.zeros((1, 2048), jnp.bfloat16), jnp.zeros((16, 1, 8, 192, 64), jnp.bfloat16)
    nothing = Matrices(jnp.zeros((16, 1, 1)), (jnp.zeros((16, 1, 1), jnp.int16),))
    with pytest.raises(ConfigError, match=r"ring=12\) does not fit StepShape\(.*\n  -> take the tile of `step_tile`"):
        take_step(
            *(x, x, x, jnp.zeros(2, jnp.int32), [x, x, x], [nothing] * 4, cache, cache, shape),
            tile._replace(ring=tile.ring + 1),
        )


def test_the_kernel_is_planned_only_for_what_it_takes(driver: ctypes.CDLL) -> None:
    packed = random_model("tiny", 2, 8)
    generator = Generator.from_packed(packed, dtype=jnp.bfloat16, kernels="gpu", cache="bfloat16")
    decoder, weights = generator.decoder, generator.weights

    def planned(weights: Weights = weights, slots: int = 8, sequences: int = 1) -> bool:
        cache = loop.start(decoder, jnp.zeros(sequences, jnp.int32), slots)
        return whole_step.plan(decoder.cfg, decoder.cache, weights, cache) is not None

    assert planned()
    assert not planned(sequences=2)
    assert planned(slots=whole_step.MOST_SLOTS)
    assert not planned(slots=whole_step.MOST_SLOTS + 1)
    factors = jax.tree.map(
        lambda w: dataclasses.replace(w, in_scale=jnp.ones((2, w.k))),
        weights.layers["stacked"],
        is_leaf=lambda w: hasattr(w, "in_scale"),
    )
    assert not planned(weights._replace(layers=weights.layers | {"stacked": factors}))
    by_xla = Generator.from_packed(packed, dtype=jnp.bfloat16, kernels="xla", cache="bfloat16").weights
    assert not planned(by_xla)


def test_only_a_step_of_floats_is_planned(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator.from_packed(random_model("tiny", 2, 8), dtype=jnp.bfloat16, kernels="gpu", cache="bfloat16")
    decoder = generator.decoder._replace(unrolled=True, attention="kernel")
    planned = []
    monkeypatch.setattr(whole_step, "plan", lambda *given: planned.append(given))
    monkeypatch.setattr(kernels, "known", lambda *_: "never started")

    def plans(decoder: Decoder, tokens: int = 1) -> bool:
        planned.clear()
        cache = loop.start(generator.decoder, jnp.zeros(1, jnp.int32), 8)
        jax.eval_shape(decoder.forward, generator.weights, jnp.ones((1, tokens), jnp.int32), cache)
        return bool(planned)

    assert plans(decoder)
    assert not plans(decoder._replace(whole=False))
    assert not plans(decoder._replace(attention="products"))
    assert not plans(decoder._replace(activations="int8"))
    assert not plans(decoder._replace(unrolled=False), tokens=2)


def test_processors_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        core_count = np.int64(78)

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert kernels.processors() == 78
    monkeypatch.setattr(jax, "devices", lambda: [object()])
    assert kernels.processors() == kernels.PROCESSORS
