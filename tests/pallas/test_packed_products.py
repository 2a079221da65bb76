"""The GPU's kernel, run by jax.numpy, and its stand-in in plain XLA: what they mean, and what equals what."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import kernels, pallas
from lowbit.errors import ConfigError, DataError, QuantizerError
from lowbit.formats import PackedTensor
from lowbit.generation.packed import quantize_activations
from lowbit.pallas import fields, kernel, tiles, weight
from lowbit.pallas.tiles import Tile

EPS = float(np.finfo(np.float32).eps)
LEVELS = {
    1: np.array([-1, 1], np.float32),
    1.58: np.array([-2 / 3, 0, 2 / 3], np.float32),
    2: np.array([-0.75, -0.25, 0.25, 0.75], np.float32),
    3: np.arange(-4, 4, dtype=np.float32),
    4: np.arange(-8, 8, dtype=np.float32),
    8: np.arange(-128, 128, dtype=np.float32),
}


def tensor(bits, k, n=20, groups=1, zero=False, in_scale=False, seed=0):
    rng = np.random.default_rng(seed)
    levels = LEVELS[bits]
    return PackedTensor.from_codes(
        rng.integers(0, len(levels), (k, n)).astype(np.uint8),
        rng.uniform(0.1, 0.6, (groups, n)).astype(np.float16),
        levels,
        "grid",
        zero=rng.uniform(-1, 1, (groups, n)).astype(np.float16) if zero else None,
        in_scale=rng.uniform(0.5, 2, k).astype(np.float16) if in_scale else None,
    )


def tokens(b, k):
    return jnp.asarray(np.random.default_rng(1).normal(size=(b, k)), jnp.bfloat16)


def exact_and_bound(x, w):
    """The product in float64, and what sums of k float32 terms, some scaling and slack of 2 may differ from it."""
    wide = np.asarray(x, np.float32).astype(np.float64)
    matrix = w.decode().astype(np.float64)
    k = w.shape[0]
    return wide @ matrix, 2 * k * EPS * (np.abs(wide) @ np.abs(matrix))


@pytest.mark.parametrize("bits", LEVELS)
def test_prepacking_keeps_every_code(bits):
    w = tensor(bits, 200)
    assert (np.asarray(weight.codes_of(pallas.from_tensor(w))) == w.codes().T).all()


@pytest.mark.parametrize(("bits", "nbytes"), [(1, 64), (1.58, 128), (2, 128), (3, 192), (4, 256), (8, 512)])
def test_bytes_are_those_of_the_width(bits, nbytes):
    """512 codes an output: ternary ones take 2 bits."""
    laid_out = pallas.from_tensor(tensor(bits, 512, n=4))
    assert sum(words.nbytes for words in laid_out.words) == 4 * nbytes
    assert laid_out.nbytes == 4 * nbytes + 4 * 4  # a float32 scale an output


CASES = [
    *((bits, 1, 512, {}) for bits in LEVELS),
    (2, 1, 1024, {}),  # two slices
    (2, 3, 300, {}),  # columns and inputs that do not fill up
    (3, 9, 512, {}),
    (2, 2, 1024, {"groups": 8}),
    (3, 1, 512, {"groups": 8}),
    (1, 1, 512, {"groups": 2}),
    (4, 1, 256, {"groups": 4, "zero": True}),
    (8, 1, 256, {"in_scale": True}),
    # Groups that are not a chunk of one block: with a block that is filled up, of several blocks, of odd planes.
    *((bits, 1, 576, {"groups": 9}) for bits in (1, 2, 3, 4)),
    *((bits, 2, 2048, {"groups": 2}) for bits in (1, 2, 3, 4)),
    *((bits, 2, 768, {"groups": 8}) for bits in (1, 2, 3, 4)),
    (8, 2, 512, {"groups": 2}),
    (4, 3, 1024, {"groups": 2, "zero": True}),
]


@pytest.mark.parametrize(("bits", "b", "k", "form"), CASES)
def test_both_products_are_those_of_the_decoded_weights(bits, b, k, form):
    w = tensor(bits, k, **form)
    x = tokens(b, k)
    if w.in_scale is not None:  # is applied to activations, which are rounded to bfloat16 then
        x = (x.astype(jnp.float32) * jnp.asarray(w.in_scale, jnp.float32)[None, :]).astype(jnp.bfloat16)
    plain = PackedTensor(w.packed, w.scale, w.zero, w.levels, w.shape, w.grid, w.packing)
    exact, bound = exact_and_bound(x, plain)
    laid_out = pallas.from_tensor(w)
    for implementation in ("interpreted", "xla"):
        got = pallas.matmul(tokens(b, k), laid_out, implementation)
        assert (np.abs(np.asarray(got) - exact) <= bound).all(), implementation


@pytest.mark.parametrize(("bits", "b", "k", "form"), [case for case in CASES if "in_scale" not in case[3]])
def test_integer_products_are_those_of_the_reference(bits, b, k, form):
    w = tensor(bits, k, **form)
    x = np.asarray(tokens(b, k), np.float32)
    expected = kernels.matmul_int8(x, w)
    codes, scale = quantize_activations(jnp.asarray(x))
    size = np.abs(x).max() * np.abs(w.levels).max() * k * np.abs(w.scale).max()
    got = {
        implementation: np.asarray(pallas.matmul_int8(codes, scale, pallas.from_tensor(w), implementation))
        for implementation in ("interpreted", "xla")
    }
    if "groups" in form:
        # The kernel adds a term for each 32 inputs or more, of codes: below twice the size of levels. Converted, scaled
        # and added, half an EPS each: (terms + 2) EPS. The offset and the reference: (groups + 3) EPS / 2 each, as much
        # again for zeros, and 2 EPS to join them all. Groups are no more than terms.
        terms = -(-k // 32)
        for result in got.values():
            assert np.abs(result - expected).max() <= (3 * terms + 10) * EPS * size
    else:
        np.testing.assert_array_equal(got["interpreted"], got["xla"])
        # Three factors, in another order than the reference's where the unit is no power of two.
        np.testing.assert_allclose(got["xla"], expected, rtol=3 * EPS, atol=0)


def test_a_layer_is_read_from_its_stack():
    layers = [pallas.from_tensor(tensor(2, 512, groups=2, zero=True, seed=seed)) for seed in range(2)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    x = tokens(2, 512)
    for implementation in ("interpreted", "xla"):
        for number, layer in enumerate(layers):
            got = pallas.matmul(x, stack.of_layer(jnp.int32(number)), implementation)
            np.testing.assert_array_equal(got, pallas.matmul(x, layer, implementation))


@pytest.mark.parametrize("b", [4, 16])  # fewer tokens than columns, and as many
def test_splits_add_up(b):
    w = tensor(2, 2048, groups=4)
    x = tokens(b, 2048)
    exact, bound = exact_and_bound(x, w)
    got = pallas.matmul(x, pallas.from_tensor(w), "interpreted", Tile(16, 1, 2, 2, splits=2))
    assert (np.abs(np.asarray(got) - exact) <= bound).all()


def test_every_way_to_slice_gives_the_same_integers():
    w = pallas.from_tensor(tensor(2, 4096, n=24))
    codes, scale = quantize_activations(tokens(1, 4096))
    expected = pallas.matmul_int8(codes, scale, w, "xla")
    for slices in (1, 8):
        got = pallas.matmul_int8(codes, scale, w, "interpreted", Tile(16, slices, 1, 2))
        np.testing.assert_array_equal(got, expected)


def test_a_turned_field_is_a_level_again():
    """Every halfword, every field: what the multiply-add makes of it is the level of the code that was stored."""
    halfwords = np.arange(1 << 16, dtype=np.uint16)
    words = jnp.asarray((halfwords ^ fields.TURNED).view(np.int16).reshape(256, 256))
    for bits, levels in ((1, fields.Affine(-1, 2)), (2, fields.Affine(-3, 2)), (2, fields.Affine(-4, 1)),
                         (4, fields.Affine(-8, 1)), (8, fields.Affine(-128, 1)), (8, fields.Affine(0, 1))):  # fmt: skip
        planes = fields.to_bfloat16(words, bits, levels, interpret=True)
        assert len(planes) == 16 // bits
        for number, plane in enumerate(planes):
            codes = (halfwords >> (number * bits)) & (2**bits - 1)
            expected = levels.first + levels.distance * codes.astype(np.float32)
            np.testing.assert_array_equal(np.asarray(plane, np.float32).ravel(), expected)


def test_the_gpu_program_is_lowered_without_a_gpu(monkeypatch):
    """Traces the kernel as a GPU would run it, inline assembly included."""
    x, w = tokens(1, 1024), pallas.from_tensor(tensor(3, 1024))
    text = str(jax.make_jaxpr(lambda x: kernel.product(x, w, tiles.tile_for(w, 1)))(x))
    assert "elementwise_inline_asm" in text
    assert "fma.rn.bf16x2" in text


def test_tiles_of_the_table_fit_every_product():
    for bits in (1, 2, 3, 4, 8):
        for k in (512, 2048, 14_336):
            w = jax.eval_shape(lambda bits=bits, k=k: _laid_out(bits, k))
            for b in (1, 2, 5, 16, 33, 64):
                tile = tiles.tile_for(w, b)
                assert w.blocks % (tile.slices * tile.splits) == 0
                assert tile.slices * tiles.power_of_two(b) <= max(tiles.WIDEST, tiles.power_of_two(b))


def test_tokens_that_were_not_timed_take_the_tile_of_more(monkeypatch):
    """Of two that are as near, and of a nearer one with fewer tokens; more than the most take that of the most."""
    times = {1: Tile(8, 1, 1, 2), 4: Tile(16, 1, 2, 2), 16: Tile(32, 1, 4, 2), 64: Tile(64, 1, 8, 2)}
    rows = tuple(tiles.Measured(2, number, 64, 2048, tile) for number, tile in times.items())
    monkeypatch.setattr(tiles, "table", lambda: rows)
    w = jax.eval_shape(lambda: _laid_out(2, 2048))
    for b, taken in ((1, 1), (2, 4), (3, 4), (4, 4), (5, 16), (8, 16), (17, 64), (64, 64), (100, 64)):
        assert tiles.tile_for(w, b) == times[taken], b


def _laid_out(bits, k):
    levels = tuple(map(float, LEVELS[bits]))
    return pallas.prepack(jnp.zeros((64, k), jnp.uint8), jnp.ones((1, 64), jnp.float16), levels)


def test_refuses_what_the_kernel_does_not_take():
    codes = jnp.zeros((4, 96), jnp.uint8)
    one = jnp.ones((1, 4), jnp.float16)
    with pytest.raises(QuantizerError, match=r"not at equal distances\n  -> take the portable path"):
        pallas.prepack(codes, one, (-2.0, 1.0, 2.0))
    with pytest.raises(QuantizerError, match="24 inputs a scale do not meet a plane of 32"):
        pallas.prepack(codes, jnp.ones((4, 4), jnp.float16), (-1.0, 1.0))
    with pytest.raises(QuantizerError, match="are too large for bfloat16"):
        pallas.prepack(codes, one, (-1.0, 252.0))
    w = pallas.from_tensor(tensor(2, 512))
    with pytest.raises(DataError, match=r"activations are \[1, 4\]\n  -> give \[tokens 512\]"):
        pallas.matmul(jnp.ones((1, 4), jnp.bfloat16), w)
    with pytest.raises(ConfigError, match="unknown implementation 'cuda'"):
        pallas.matmul(tokens(1, 512), w, "cuda")
    with pytest.raises(ConfigError, match="does not cut 1 blocks of inputs evenly"):
        pallas.matmul(tokens(1, 512), w, "interpreted", Tile(16, 2, 2, 2))


def test_a_sum_that_could_overflow_is_refused():
    w = jax.eval_shape(lambda: _laid_out(8, 1 << 18))
    with pytest.raises(QuantizerError, match="may overflow an int32 sum"):
        jax.eval_shape(
            lambda x, s, w: pallas.matmul_int8(x, s, w),
            jax.ShapeDtypeStruct((1, 1 << 18), jnp.int8),
            jax.ShapeDtypeStruct((1, 1), jnp.float32),
            w,
        )


@pytest.mark.parametrize(
    ("platform", "capability", "made_for"),
    [
        ("gpu", "8.9", False),
        ("gpu", "9.0", True),
        ("gpu", "10.3", True),
        ("gpu", "12.0", False),  # a workstation's Blackwell, which has less shared memory
        ("gpu", "gfx942", False),  # ROCm
        ("gpu", None, False),
        ("cpu", "9.0", False),
    ],
)
def test_the_kernel_is_for_gpus_like_the_measured_one(monkeypatch, platform, capability, made_for):
    device = SimpleNamespace(platform=platform)
    if capability is not None:
        device.compute_capability = capability
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert pallas.kernel_runs_here() is made_for


def test_here_the_portable_product_is_chosen():
    assert not pallas.kernel_runs_here()
    w = pallas.from_tensor(tensor(2, 512))
    x = tokens(2, 512)
    np.testing.assert_array_equal(pallas.matmul(x, w), pallas.matmul(x, w, "xla"))
    many = tokens(pallas.MAX_TOKENS + 1, 512)
    exact, bound = exact_and_bound(many, tensor(2, 512))
    assert (np.abs(np.asarray(pallas.matmul(many, w)) - exact) <= bound).all()
