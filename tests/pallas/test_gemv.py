"""The kernel for few tokens, run by jax.numpy: which numbers it rounds, and that it adds up all others exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import pallas
from lowbit.errors import ConfigError
from lowbit.formats import PackedTensor
from lowbit.pallas import gemv, product, tiles
from lowbit.pallas.fixed_point import fixed_point
from lowbit.pallas.tiles import GemvTile

WHOLE = {
    1: np.array([-1, 1], np.float32),
    1.58: np.array([-1, 0, 1], np.float32),
    2: np.array([-3, -1, 1, 3], np.float32),
    3: np.arange(-4, 4, dtype=np.float32),
    4: np.arange(-8, 8, dtype=np.float32),
    8: np.arange(-128, 128, dtype=np.float32),
}
EPS = float(np.finfo(np.float32).eps)


def tensor(bits, k, n=6, groups=1, seed=0):
    """Scales are powers of two, so that nothing rounds products of small whole numbers."""
    rng = np.random.default_rng(seed)
    levels = WHOLE[bits]
    codes = rng.integers(0, len(levels), (k, n)).astype(np.uint8)
    scale = (2.0 ** rng.integers(-3, 3, (groups, n))).astype(np.float16)
    return PackedTensor.from_codes(codes, scale, levels, "grid")


def rounded(planes):
    return fixed_point([tuple(jnp.asarray(half) for half in plane) for plane in planes], interpret=True)


def test_activations_lose_nothing_but_what_is_far_below_the_largest():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(8, 2, 1, 64)) * 2.0 ** rng.integers(-30, 3, (8, 2, 1, 64))
    wide[..., 0] = 0
    planes = jnp.asarray(wide, jnp.bfloat16)
    fixed = rounded(planes)
    x, unit = np.asarray(planes, np.float64), np.asarray(fixed.unit, np.float64)
    largest = np.abs(x).max(axis=(0, 1))
    assert ((largest < unit * 2**15) & (unit * 2**14 <= largest))[largest > 0].all()
    lower = np.stack([np.asarray(low).view(np.uint8).reshape(1, 64, 4) for low in fixed.low])
    upper = np.stack([np.asarray(high).view(np.int8).reshape(1, 64, 4) for high in fixed.high])
    numbers = (256 * upper.astype(np.int64) + lower).reshape(4, 1, 64, 2, 2)  # pair of planes, word, half, plane
    values = numbers.transpose(0, 4, 3, 1, 2).reshape(8, 2, 1, 64) * unit
    assert (np.abs(values - x) <= unit / 2).all()
    near = np.abs(x) >= largest / 128
    np.testing.assert_array_equal(values[near], x[near])
    assert not near.all()
    np.testing.assert_array_equal(np.stack(fixed.sums), numbers.sum(axis=(3, 4)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_hidden(value):
    x = np.ones((1, 512), np.float32)
    x[0, 100] = value
    y = pallas.matmul(jnp.asarray(x), pallas.from_tensor(tensor(2, 512)), "interpreted", GemvTile(2, 64, 1, True))
    assert np.isnan(y).all()


@pytest.mark.parametrize(
    ("bits", "b", "k", "groups", "tile"),
    [
        *((bits, 1, 512, 1, GemvTile(4, 32, 1, True)) for bits in WHOLE),
        (2, 3, 300, 1, GemvTile(4, 32, 1, True)),  # tokens that share codes; inputs that do not fill blocks
        (2, 1, 576, 1, GemvTile(2, 128, 1, True)),  # words that do not fill the tile
        (2, 1, 2048, 1, GemvTile(8, 16, 1, True)),  # more passes than are written out
        (2, 1, 1024, 8, GemvTile(4, 32, 1, True)),  # a pair of planes a scale
        (1, 1, 1024, 2, GemvTile(4, 32, 1, True)),  # a block a scale
        pytest.param(3, 1, 1024, 8, GemvTile(4, 32, 1, True), marks=pytest.mark.slow),  # both of these at once
        (4, 1, 1024, 4, GemvTile(4, 32, 1, True)),
    ],
)
def test_sums_of_whole_numbers_are_exact(bits, b, k, groups, tile):
    """Numbers up to 8 times levels times scales: below 2**24 units of a scale, which float32 adds up exactly."""
    w = tensor(bits, k, groups=groups)
    x = np.random.default_rng(1).integers(-8, 9, (b, k)).astype(np.float32)
    laid_out = pallas.from_tensor(w)
    assert gemv.takes(laid_out)
    got = pallas.matmul(jnp.asarray(x), laid_out, "interpreted", tile)
    np.testing.assert_array_equal(got, x.astype(np.float64) @ w.decode().astype(np.float64))


def test_an_outlier_costs_its_word_alone():
    """Inputs of its word are rounded by 2**-15 of it at most; float32 sums of n terms add n + 3 roundings each."""
    w = tensor(2, 1024, groups=1)
    x = np.random.default_rng(2).normal(size=(1, 1024)).astype(np.float32)
    x[0, 5] = 3e4
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    laid_out, matrix = pallas.from_tensor(w), w.decode().astype(np.float64)
    in_word = [plane * laid_out.span + half for plane in range(8) for half in (4, 5)]
    got = np.asarray(pallas.matmul(jnp.asarray(x, jnp.float32), laid_out, "interpreted", GemvTile(2, 64, 1, True)))
    words = 64
    bound = x[0, 5] * 2.0**-15 * np.abs(matrix[in_word]).sum(axis=0) + (words + 3) * EPS * (np.abs(x) @ np.abs(matrix))
    assert (np.abs(got - x @ matrix) <= bound).all()


def test_a_layer_is_read_from_its_stack():
    layers = [pallas.from_tensor(tensor(2, 512, seed=seed)) for seed in range(2)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    x, tile = jnp.asarray(np.random.default_rng(3).normal(size=(1, 512)), jnp.bfloat16), GemvTile(4, 64, 1, True)
    for number, layer in enumerate(layers):
        got = gemv.gemv(x, stack.of_layer(jnp.int32(number)), tile, interpret=True)
        np.testing.assert_array_equal(got, gemv.gemv(x, layer, tile, interpret=True))


def test_the_gpu_program_has_no_matrix_product():
    w = pallas.from_tensor(tensor(3, 512))
    x = jnp.ones((1, 512), jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda x: gemv.gemv(x, w, GemvTile(4, 32, 1, True)))(x))
    assert "dp4a.u32.s32" in text
    assert "dp4a.u32.u32" in text
    assert "dot_general" not in text


def test_is_taken_where_it_was_faster(monkeypatch):
    slow, fast = tiles.Tile(8, 1, 1, 2), GemvTile(8, 128, 1, True)
    rows = [tiles.Measured(2, 1, 64, 2048, slow), tiles.Measured(2, 1, 64, 2048, fast)]
    rows += [tiles.Measured(bits, tokens, 64, 2048, slow) for bits, tokens in ((2, 4), (2, 64), (4, 1))]
    monkeypatch.setattr(tiles, "table", lambda: tuple(rows))
    two, four, grouped = (pallas.from_tensor(tensor(b, 512, groups=g)) for b, g in ((2, 1), (4, 1), (2, 4)))
    assert tiles.gemv_tile_for(two, 1) == fast
    assert tiles.tile_for(two, 1) == slow  # of integer products, which have no other kernel
    for w, tokens in ((two, 2), (two, 64), (four, 1), (grouped, 1)):
        assert tiles.gemv_tile_for(w, tokens) is None
    x = jnp.ones((1, 512), jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda x: pallas.matmul(x, two, "kernel"))(x))
    assert "dp4a" in text


def test_refuses_what_it_does_not_take():
    x, w = jnp.ones((1, 512), jnp.bfloat16), pallas.from_tensor(tensor(2, 512))
    for tile in (GemvTile(3, 32, 1, True), GemvTile(4, 48, 1, True)):
        with pytest.raises(ConfigError, match=r"has sizes that are no powers of two\n  -> take the tile of"):
            pallas.matmul(x, w, "interpreted", tile)
    with pytest.raises(ConfigError, match=r"32 inputs a scale do not meet pairs of planes of 32\n  -> take a `Tile`"):
        pallas.matmul(x, pallas.from_tensor(tensor(2, 512, groups=16)), "interpreted", GemvTile(4, 32, 1, True))


def test_makes_its_inputs_of_gates():
    """Gates that are 0 or far from it leave nothing to round, and others are whole numbers: sums are exact."""
    w, rng = tensor(2, 300), np.random.default_rng(5)
    gate = rng.choice([-200.0, 0.0, 128.0], (2, 300))
    other = rng.integers(-1, 2, (2, 300))
    both = jnp.asarray(np.concatenate([gate, other], axis=1), jnp.bfloat16)
    got = gemv.gemv(both, pallas.from_tensor(w), GemvTile(4, 32, 1, True), interpret=True, gated=True)
    np.testing.assert_array_equal(got, np.maximum(gate, 0) * other @ w.decode().astype(np.float64))


def test_gates_are_silu():
    laid_out = pallas.from_tensor(tensor(4, 300))
    both = jnp.asarray(np.random.default_rng(6).normal(size=(1, 600)), jnp.float32)
    got = gemv.gemv(both, laid_out, GemvTile(4, 32, 1, True), interpret=True, gated=True)
    # Rounded once, where matmul_gated on a CPU rounds silu, and then its product: 2**-8 of each of 300 inputs.
    rounded = both.astype(jnp.bfloat16)
    assert jnp.all(got == gemv.gemv(rounded, laid_out, GemvTile(4, 32, 1, True), interpret=True, gated=True))
    gate, other = jnp.split(rounded.astype(jnp.float32), 2, axis=1)
    most = jnp.abs(jax.nn.silu(gate) * other) @ jnp.abs(laid_out.rows(jnp.arange(laid_out.n))).T
    assert jnp.all(jnp.abs(got - pallas.matmul_gated(both, laid_out)) <= 2.0**-7 * most)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_the_gated_kernel_is_taken_for_one_token(monkeypatch):
    monkeypatch.setattr(product, "kernel_runs_here", lambda: True)

    def text(tokens, **options):
        w, both = pallas.from_tensor(tensor(2, **options)), jnp.ones((tokens, 2 * options["k"]), jnp.bfloat16)
        return str(jax.make_jaxpr(lambda both: pallas.matmul_gated(both, w))(both))

    assert "ex2.approx" in text(1, k=512)
    assert "ex2.approx" not in text(2, k=512)
    assert "ex2.approx" not in text(1, k=4096)
    assert "ex2.approx" not in text(1, k=512, groups=4)
