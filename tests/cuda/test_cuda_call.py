"""From `pallas.matmul` to the kernel and back, with a driver that runs it on a processor."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import cuda, pallas
from lowbit.bench.random_model import random_model
from lowbit.cuda import CudaTile, compiler, kernels
from lowbit.cuda.product_shapes import resident, shared_bytes, slots
from lowbit.errors import ConfigError
from lowbit.generation import Generator, loop
from lowbit.generation.cache import KVCache
from lowbit.generation.decoder import Decoder
from lowbit.generation.fused_norm import added_and_normed
from lowbit.generation.weights import Weights
from lowbit.pallas import tiles
from lowbit.pallas.tiles import cuda_shape, cuda_tile_for
from lowbit.pallas.weight import GpuWeight, prepack


def _weight(bits: int, n: int, k: int, groups: int = 1, layers: int | None = None) -> GpuWeight:
    key = jax.random.key(bits)
    stack = () if layers is None else (layers,)
    codes = jax.random.randint(key, (*stack, n, k), 0, 1 << bits).astype(jnp.uint8)
    scale = jax.random.uniform(key, (*stack, groups, n), minval=0.5)
    return prepack(codes, scale, tuple(float(2 * i + 1 - (1 << bits)) / 2 for i in range(1 << bits)))


def _near(got: jax.Array, x: jax.Array, w: GpuWeight) -> bool:
    """Whether a product is XLA's: two float sums of k terms, and activations that were rounded to 2**-22 or less."""
    expected = pallas.matmul(x, w, "xla")
    single = w.single()
    largest = jnp.abs(single.rows(jnp.arange(single.n)))
    terms = jnp.abs(x.astype(jnp.float32)) @ largest.T
    rounded = jnp.max(jnp.abs(x)).astype(jnp.float32) * 2.0**-22 * jnp.sum(largest, axis=1)[None]
    return bool(jnp.all(jnp.abs(got - expected) <= 2 * w.k * 2.0**-24 * terms + rounded))


def test_the_kernel_is_chosen_compiled_once_and_right(driver: ctypes.CDLL) -> None:
    w, x = _weight(3, 32, 512), jax.random.normal(jax.random.key(0), (1, 512)).astype(jnp.bfloat16)
    before = driver.loads_so_far()
    multiply = jax.jit(lambda x, w: pallas.matmul(x, w))
    assert "lowbit_cuda_test" in multiply.lower(x, w).as_text()
    assert _near(multiply(x, w), x, w)
    assert _near(multiply(-x, w), -x, w)
    assert _near(pallas.matmul(x, w), x, w)
    assert driver.loads_so_far() == before + 1
    many = jax.vmap(lambda x: pallas.matmul(x, w))(jnp.stack([x, 2 * x]))
    np.testing.assert_array_equal(many[1], 2 * many[0])


@pytest.mark.parametrize(("bits", "groups"), [(1, 4), (3, 1)])
def test_a_layer_of_a_stack_is_found_at_launch(driver: ctypes.CDLL, bits: int, groups: int) -> None:
    stack, x = _weight(bits, 20, 512, groups, layers=3), jnp.ones((1, 512), jnp.bfloat16).at[0, ::3].set(-2)
    for layer in (0, 2):
        multiply = jax.jit(lambda x, w, layer=layer: pallas.matmul(x, w.of_layer(np.int32(layer))))
        assert "lowbit_cuda_test" in multiply.lower(x, stack).as_text()
        assert _near(multiply(x, stack), x, stack.of_layer(jnp.int32(layer)))


def test_gates_are_made_activations_of_inside(driver: ctypes.CDLL) -> None:
    w, both = _weight(4, 16, 512), jax.random.normal(jax.random.key(1), (1, 1024))
    multiply = jax.jit(pallas.matmul_gated)
    text = multiply.lower(both, w).as_text()
    assert "lowbit_cuda_test" in text
    assert "logistic" not in text
    gate, other = (part.astype(jnp.float32) for part in jnp.split(both.astype(jnp.bfloat16), 2, axis=1))
    x = (gate / (1 + jnp.exp(-gate)) * other).astype(jnp.bfloat16)
    assert _near(multiply(both, w), x, w)


def test_a_norm_is_made_inside(driver: ctypes.CDLL) -> None:
    stack = _weight(4, 24, 512, layers=2)
    w = stack.of_layer(np.int32(1))
    x, added, norm = (
        jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(1, 512), (1, 512), (512,)])
    )
    x = x.astype(jnp.bfloat16)
    tile = pallas.norm_tile(w, 1, 1e-5)
    assert tile is not None
    total, y = pallas.matmul_normed(x, added, norm, 1e-5, w, tile)
    expected, inputs = added_and_normed(x, added, norm, 1e-5, interpret=True)
    np.testing.assert_array_equal(total, expected)
    # The mean of the squares is summed in another order, which may turn roundings to bfloat16: 2**-8 of an input each.
    terms = jnp.abs(inputs.astype(jnp.float32)) @ jnp.abs(w.single().rows(jnp.arange(24))).T
    assert jnp.all(jnp.abs(y - pallas.matmul(inputs, w.of_layer(jnp.int32(1)), "xla")) <= 2.0**-8 * terms)


def test_norms_of_other_products_stay_kernels_of_their_own(
    driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several tokens, and of matrices so large that each of many blocks would compute the norm."""
    w = _weight(2, 64, 512)
    assert pallas.norm_tile(w, 1, 1e-5) is not None
    assert pallas.norm_tile(w, 2, 1e-5) is None
    monkeypatch.setattr(tiles, "MOST_NORMED_BYTES", 512 * tiles.NORMED_BYTES)
    assert pallas.norm_tile(w, 1, 1e-5) is None


@pytest.mark.slow  # all parts have tests of their own, and a model decodes by one kernel in another
def test_a_model_decodes_by_these_kernels(driver: ctypes.CDLL) -> None:
    """Layers of a stack, gates and norms inside: what a step of one token is on a GPU."""
    by_xla, packed = (
        Generator.from_packed(random_model("tiny", 3, 8), dtype=jnp.bfloat16, kernels=kernels, cache="bfloat16")
        for kernels in ("xla", "gpu")
    )
    decoder = packed.decoder._replace(unrolled=True, attention="kernel", whole=False)
    token = jnp.asarray([[7]])

    def started() -> KVCache:
        return loop.start(decoder, jnp.zeros(1, jnp.int32), 8)

    # Each layer has two norms in front of products, but the first, in front of which nothing is to be added.
    text = jax.jit(decoder.forward).lower(packed.weights, token, started()).as_text()
    layers = 2
    assert text.count("@lowbit_cuda_normed_test(") == 2 * layers - 1
    assert text.count("@lowbit_cuda_test(") == 4 * layers - (2 * layers - 1)
    assert text.count("@lowbit_cuda_attention_test(") == layers

    def steps(weights: Weights, decoder: Decoder) -> tuple[jax.Array, KVCache]:
        """Two, so that the second one finds the first in the cache."""
        return decoder.forward(weights, token + 1, decoder.forward(weights, token, started())[1])

    got, cache = jax.jit(lambda weights: steps(weights, decoder))(packed.weights)
    expected, plain = steps(by_xla.weights, by_xla.decoder)
    # Numbers in bfloat16, of unlike roundings in two layers.
    for a, b in ((got, expected), (cache.keys.codes, plain.keys.codes), (cache.values.codes, plain.values.codes)):
        a, b = (part.astype(jnp.float32) for part in (a, b))
        assert jnp.max(jnp.abs(a - b)) < 8 * 2.0**-8 * jnp.max(jnp.abs(b))


def test_more_tokens_unknown_layers_and_groups_of_several_tokens_take_the_other_kernels() -> None:
    w, stack = _weight(1, 32, 512), _weight(1, 32, 512, layers=2)
    assert cuda_tile_for(w, 1) is not None
    assert cuda_tile_for(w, 5) is None
    assert cuda_shape(stack.of_layer(jnp.int32(1)), 1) is None
    assert cuda_shape(stack.of_layer(np.int32(1)), 1) is not None
    grouped = _weight(1, 32, 512, groups=4)
    assert cuda_tile_for(grouped, 2) is not None
    assert cuda_tile_for(grouped, 3) is None
    assert cuda_tile_for(_weight(1, 32, 514), 1) is None


def test_codes_come_through_as_many_slots_as_shared_memory_holds() -> None:
    shape = cuda_shape(_weight(2, 64, 32768), 1)
    assert shape is not None
    whole, short, cut = CudaTile(16, 8, 4), CudaTile(64, 8, 4), CudaTile(64, 8, 16)
    assert (slots(shape, whole), slots(shape, short), slots(shape, cut)) == (4, 3, 15)
    for tile in (whole, short, cut):
        assert cuda.fits(shape, tile)
        assert shared_bytes(shape, tile) <= kernels.SHARED
    # A slot of the last one has 16 rows of 512 bytes, and two barriers.
    assert shared_bytes(shape, cut) + 16 * 512 + 16 > kernels.SHARED
    assert not cuda.fits(shape, CudaTile(32, 8, 1))  # of two pieces there is room for one
    assert not cuda.fits(shape._replace(inputs=2 * shape.inputs, blocks=2 * shape.blocks, tokens=2), cut)


def test_groups_are_cut_where_scales_of_four_are() -> None:
    shape = cuda_shape(_weight(2, 16, 4096, groups=32), 1)
    assert shape is not None
    assert [cuda.most_chunks(shape, chunks) for chunks in (1, 2, 4, 8)] == [1, 2, 4, 8]
    few = shape._replace(groups=8)
    assert [cuda.most_chunks(few, chunks) for chunks in (1, 2, 4, 8)] == [1, 2, 2, 2]
    assert not cuda.fits(few, CudaTile(16, 8, 4))
    filled_up = cuda_shape(_weight(2, 16, 768, groups=12), 1)
    assert filled_up is not None
    assert cuda.most_chunks(filled_up._replace(blocks=4, inputs=filled_up.inputs - 8), 2) == 1


@pytest.mark.parametrize(
    ("rows", "warps", "blocks"),
    [(32, 4, 2), (64, 4, 1), (16, 4, 3), (32, 8, 1), (16, 16, 1)],  # by memory twice, by both, by registers twice
)
def test_blocks_of_a_multiprocessor_leave_each_other_registers(rows: int, warps: int, blocks: int) -> None:
    shape = cuda_shape(_weight(2, 64, 8192, groups=64), 1)
    assert shape is not None
    assert resident(shape, CudaTile(rows, warps, 1)) == blocks


def test_refuses_what_it_cannot_compute(driver: ctypes.CDLL) -> None:
    w, x = _weight(2, 32, 512), jnp.ones((1, 512), jnp.bfloat16)
    with pytest.raises(
        ConfigError, match=r"rows=24, warps=1, chunks=1, ahead=0\) does not fit Shape\(.*\n  -> take a tile of"
    ):
        pallas.matmul(x, w, tile=CudaTile(24, 1, 1))
    with pytest.raises(ConfigError, match=r"is of a kernel for a GPU, few tokens, and a layer known in advance\n  ->"):
        pallas.matmul(x, w, "interpreted", CudaTile(16, 1, 1))


def test_says_what_the_driver_says(driver: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compiled", lambda *_: b"/nowhere.so")
    w, x = _weight(1, 16, 512), jnp.ones((1, 512), jnp.bfloat16)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the kernel cannot be loaded: no such image"):
        jax.block_until_ready(pallas.matmul(x, w, tile=CudaTile(16, 3, 1)))
    monkeypatch.setattr(kernels, "known", lambda *_: "f00")
    with pytest.raises(jax.errors.JaxRuntimeError, match="kernel f00 was not compiled in this process: trace"):
        jax.block_until_ready(pallas.matmul(x, w, tile=CudaTile(16, 2, 1)))
