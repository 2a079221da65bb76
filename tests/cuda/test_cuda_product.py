"""The CUDA kernel, compiled for a processor: its results are those of whole numbers, bit for bit."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processor import boxes_of, run_here

from lowbit import cuda
from lowbit.cuda import CudaTile, kernels, product_shapes
from lowbit.cuda import product as cuda_product
from lowbit.pallas.tiles import cuda_shape
from lowbit.pallas.weight import GpuWeight, prepack

LEVELS = {
    1: (-1, 1),
    1.58: (-1, 0, 1),
    2: (-1.5, -0.5, 0.5, 1.5),
    3: range(-4, 4),
    4: range(-8, 8),
    8: range(-128, 128),
}
CASES = [
    # bits, tokens, outputs, inputs, tile: padded inputs, a last tile that is cut, chunks, digits kept and read anew
    (1, 1, 20, 576, CudaTile(16, 1, 1)),
    (1, 1, 70, 2048, CudaTile(48, 2, 2)),  # two tiles at once, and one that is left
    pytest.param(*(1.58, 2, 16, 512, CudaTile(16, 2, 1)), marks=pytest.mark.slow),
    (2, 1, 40, 1024, CudaTile(32, 2, 2, ahead=2)),
    (2, 3, 33, 324, CudaTile(16, 1, 1)),
    (3, 1, 32, 1000, CudaTile(32, 1, 2, ahead=1)),
    pytest.param(*(4, 1, 16, 576, CudaTile(16, 2, 1)), marks=pytest.mark.slow),
    (4, 4, 17, 256, CudaTile(16, 1, 1)),
    (8, 1, 18, 128, CudaTile(16, 1, 1)),
]


def _weight(bits: float, n: int, k: int, groups: int = 1) -> tuple[GpuWeight, np.ndarray]:
    """A matrix, and its whole levels [n k]."""
    levels = tuple(float(level) for level in LEVELS[bits])
    rng = np.random.default_rng(int(10 * bits) + n)
    codes = rng.integers(0, len(levels), (n, k)).astype(np.uint8)
    scale = jnp.asarray(rng.uniform(0.5, 1.5, (groups, n)), jnp.float32)
    w = prepack(jnp.asarray(codes), scale, levels)
    return w, codes.astype(np.int64) * w.levels.distance + w.levels.first


def _expected(x: np.ndarray, levels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What the kernel promises: exact sums of activations in units of 2**-21, rounded once, then scaled."""
    exponent = np.frexp(np.abs(x).max(axis=1, keepdims=True))[1] - 1
    whole = np.rint(np.ldexp(x.astype(np.float64), 21 - exponent)).astype(np.int64)
    return (whole @ levels.T).astype(np.float32) * (scale.T * np.ldexp(np.float32(1), exponent - 21))


class Norm(NamedTuple):
    """What a residual stream is added to, the scale of its norm, where the sums are to go, and what keeps it finite."""

    added: np.ndarray
    scale: np.ndarray
    total: np.ndarray
    eps: float


def _run(
    folder: Path, x: jax.Array, w: GpuWeight, tile: CudaTile, norm: Norm | None = None, *, nested: bool = False
) -> np.ndarray:
    """Activations bf16[b k], or gates and others f32[b 2k]. Codes are NESTED in steps by one kernel."""
    gated = x.dtype == jnp.float32
    shape = cuda_shape(w, len(x), gated, None if norm is None else norm.eps)
    assert shape is not None
    assert cuda.fits(shape, tile)
    y = np.full((shape.tokens, shape.outputs), np.nan, np.float32)
    own = x if gated else jax.lax.bitcast_convert_type(x, jnp.uint16)
    own, scale, first, last = (np.asarray(a) for a in (own, w.scale, w.words[0], w.words[-1]))
    boxes = [boxes_of(first, 64, tile.chunks), boxes_of(last, 64, tile.chunks)]
    boxes.append(boxes_of(scale, 16, tile.chunks) if w.groups > 1 else boxes[0])
    defines = cuda_product.defines(shape, tile) | {"NEST": int(nested)}
    sizes = defines["GRID"], 1, 32 * (tile.warps + 1), defines["SHARED"]
    arrays = [own, scale, y, *((None,) * 3 if norm is None else norm[:3])]
    run_here(cuda_product.SOURCE, defines, folder, arrays, sizes, boxes)
    return y


@pytest.mark.parametrize(("bits", "tokens", "n", "k", "tile"), CASES)
def test_results_are_those_of_whole_numbers(
    tmp_path: Path, bits: float, tokens: int, n: int, k: int, tile: CudaTile
) -> None:
    w, levels = _weight(bits, n, k)
    # An outlier, beside which small numbers lose their last bits: those of the reference lose the same.
    x = jax.random.normal(jax.random.key(n), (tokens, k)).astype(jnp.bfloat16).at[:, 5].set(300.0)
    y = _run(tmp_path, x, w, tile)
    np.testing.assert_array_equal(y, _expected(np.asarray(x, np.float32), levels, np.asarray(w.scale)))


@pytest.mark.parametrize(
    ("bits", "n", "tile", "slots"),
    [(1, 100, CudaTile(64, 2, 2), 3), (3, 70, CudaTile(48, 2, 2), 2)],  # 1 bit: two tiles at once, in an odd ring
)
def test_slots_are_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: float, n: int, tile: CudaTile, slots: int
) -> None:
    w, levels = _weight(bits, n, 2048)
    shape = cuda_shape(w, 1)
    assert shape is not None
    alone = product_shapes.shared_bytes(shape, tile) - product_shapes.pieces(tile) * (
        slot := product_shapes.slot_bytes(shape, tile)
    )
    monkeypatch.setattr(kernels, "SHARED", alone + slots * slot)
    assert cuda_product.defines(shape, tile)["RING"] == slots < product_shapes.pieces(tile)
    x = jax.random.normal(jax.random.key(n), (1, 2048)).astype(jnp.bfloat16)
    y = _run(tmp_path, x, w, tile)
    np.testing.assert_array_equal(y, _expected(np.asarray(x, np.float32), levels, np.asarray(w.scale)))


@pytest.mark.parametrize(("bits", "k"), [(1, 576), (2, 1024), (3, 1000), (4, 576), (8, 128)])
def test_codes_with_those_below_them_give_the_same(tmp_path: Path, bits: float, k: int) -> None:
    w, levels = _weight(bits, 40, k)
    x = jax.random.normal(jax.random.key(k), (1, k)).astype(jnp.bfloat16)
    y = _run(tmp_path, x, w, CudaTile(32, 1, 1), nested=True)
    np.testing.assert_array_equal(y, _expected(np.asarray(x, np.float32), levels, np.asarray(w.scale)))


def test_sums_of_many_inputs_stay_within_32_bits(tmp_path: Path) -> None:
    """The largest codes, and lowest bytes of -128: as far from zero as a sum of bytes of one sign comes."""
    n, k, levels = 16, 40960, tuple(map(float, LEVELS[1]))
    w = prepack(jnp.ones((n, k), jnp.uint8), jnp.ones((1, n), jnp.float32), levels)
    x = jnp.full((1, k), 2.0**-14, jnp.bfloat16).at[0, 0].set(1)
    y = _run(tmp_path, x, w, CudaTile(16, 10, 1), nested=True)
    whole = np.ones((n, k), np.int64) * w.levels.distance + w.levels.first
    np.testing.assert_array_equal(y, _expected(np.asarray(x, np.float32), whole, np.asarray(w.scale)))


def test_what_is_not_finite_spoils_its_token_alone(tmp_path: Path) -> None:
    w, levels = _weight(2, 16, 512)
    x = jnp.ones((3, 512), jnp.bfloat16).at[0, 7].set(jnp.inf).at[2].set(0)
    y = _run(tmp_path, x, w, CudaTile(16, 1, 1))
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], levels.sum(axis=1).astype(np.float32) * np.asarray(w.scale)[:, 0])
    assert not y[2].any()


GROUPED = [
    # bits, tokens, outputs, inputs, groups, tile
    (2, 1, 20, 1024, 8, CudaTile(32, 2, 2, ahead=3)),
    (3, 2, 16, 512, 4, CudaTile(16, 1, 1)),
    (4, 1, 32, 1536, 12, CudaTile(32, 3, 1)),
    (2, 1, 16, 768, 12, CudaTile(16, 1, 3)),
    pytest.param(*(1, 3, 16, 768, 4, CudaTile(16, 2, 1)), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("bits", "tokens", "n", "k", "groups", "tile"), GROUPED)
def test_groups_have_scales_of_their_own(
    tmp_path: Path, bits: float, tokens: int, n: int, k: int, groups: int, tile: CudaTile
) -> None:
    _check_groups(tmp_path, bits, tokens, n, k, groups, tile)


@pytest.mark.parametrize("bits", [2, 3])
def test_groups_of_codes_with_those_below_them(tmp_path: Path, bits: float) -> None:
    _check_groups(tmp_path, bits, 1, 16, 1024, 8, CudaTile(16, 2, 2), nested=True)


def _check_groups(
    folder: Path, bits: float, tokens: int, n: int, k: int, groups: int, tile: CudaTile, *, nested: bool = False
) -> None:
    w, levels = _weight(bits, n, k, groups)
    x = jax.random.normal(jax.random.key(n), (tokens, k)).astype(jnp.bfloat16)
    exponent = np.frexp(np.abs(np.asarray(x, np.float64)).max(axis=1, keepdims=True))[1] - 1
    rounded = np.ldexp(np.rint(np.ldexp(np.asarray(x, np.float64), 21 - exponent)), exponent - 21)
    by_group = rounded.reshape(tokens, 1, groups, -1), levels.reshape(1, n, groups, -1)
    scale = np.asarray(w.scale, np.float64)
    expected = ((by_group[0] * by_group[1]).sum(axis=-1) * scale).sum(axis=-1)
    # Codes and what code 0 stands for are added apart: terms of up to twice the largest level. Each is rounded when it
    # is scaled, and added to at most as many as there are pairs of planes, warps and digits.
    largest = 2 * np.abs(levels).max()
    if nested:
        # With those of the fields below them codes are less than one more, and these, less than one, are terms too.
        fields = sum(part.weight * (2**part.bits + 1) for part in w.parts)
        largest = w.levels.distance * fields + abs(w.levels.first)
    terms = (np.abs(by_group[0]).sum(axis=-1) * scale).sum(axis=-1) * largest
    allowed = (k / w.span + tile.warps + 8) * 2.0**-24 * terms
    y = _run(folder, x, w, tile, nested=nested)
    assert (np.abs(y - expected) <= allowed).all()
    assert (np.abs(expected) > 100 * allowed).mean() > 0.5


@pytest.mark.parametrize(("bits", "k", "tile"), [(2, 324, CudaTile(16, 1, 1)), (4, 512, CudaTile(16, 2, 1))])
def test_makes_activations_of_gates(tmp_path: Path, bits: float, k: int, tile: CudaTile) -> None:
    """Gates that are 0 or far from it leave nothing to round but other numbers: results are exact."""
    w, levels = _weight(bits, 20, k)
    rng = np.random.default_rng(k)
    gate = rng.choice([-200.0, 0.0, 128.0], (1, k))
    other = rng.normal(size=(1, k))
    x = jnp.asarray(np.maximum(gate, 0) * np.asarray(other, jnp.bfloat16).astype(np.float64), jnp.float32)
    y = _run(tmp_path, jnp.asarray(np.concatenate([gate, other], axis=1), jnp.float32), w, tile)
    np.testing.assert_array_equal(y, _expected(np.asarray(x), levels, np.asarray(w.scale)))


def _stream(rng: np.random.Generator, k: int) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """A residual stream bf16[1 k], what is added to it f32[1 k], and their sum as bfloat16."""
    x = jnp.asarray(rng.normal(size=(1, k)), jnp.bfloat16)
    added = rng.normal(size=(1, k)).astype(np.float32)
    return x, added, np.asarray(x + jnp.asarray(added).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("bits", "k", "groups", "tile"),
    [(2, 324, 1, CudaTile(16, 1, 1)), (3, 1024, 8, CudaTile(32, 3, 1)), (4, 640, 1, CudaTile(16, 2, 1))],
)
def test_makes_activations_of_the_norm_of_a_sum(
    tmp_path: Path, bits: float, k: int, groups: int, tile: CudaTile
) -> None:
    rng = np.random.default_rng(k)
    w, levels = _weight(bits, 40, k, groups)
    x, added, total = _stream(rng, k)
    norm = Norm(added, rng.normal(size=k).astype(np.float32), np.zeros((1, k), np.uint16), 1e-2)
    y = _run(tmp_path, x, w, tile, norm)
    np.testing.assert_array_equal(norm.total, total.view(np.uint16))
    wide = total.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean() + norm.eps) * norm.scale
    terms = (levels * normed).reshape(len(levels), groups, -1) * np.asarray(w.scale, np.float64)[:, :, None]
    # Activations are rounded to bfloat16, by 2**-9 of each at most, in sums of a few thousand roundings to float32.
    allowed = (2.0**-9 + 2**12 * 2.0**-24) * np.abs(terms).sum(axis=(1, 2))
    expected = terms.sum(axis=(1, 2))
    assert (np.abs(y[0] - expected) <= allowed).all()
    assert (np.abs(expected) > 5 * allowed).mean() > 0.5


def test_a_norm_without_roundings_is_exact(tmp_path: Path) -> None:
    """A stream of ones has a mean square of 1: activations are the scale of the norm, largest ones of 2**21 units."""
    w, levels = _weight(2, 20, 576)
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (1, 576))
    x = jnp.asarray(signs / 2, jnp.bfloat16)
    scale = np.asarray(jnp.asarray(rng.uniform(0.1, 3, 576), jnp.bfloat16), np.float32)
    norm = Norm((signs / 2).astype(np.float32), scale, np.zeros((1, 576), np.uint16), 0.0)
    y = _run(tmp_path, x, w, CudaTile(16, 2, 1), norm)
    np.testing.assert_array_equal(y, _expected((signs * scale).astype(np.float32), levels, np.asarray(w.scale)))


def test_a_norm_that_rounds_up_to_a_power_of_two_keeps_its_bytes(tmp_path: Path) -> None:
    """The largest is below 2 before it is rounded to bfloat16: 2**22 units of the power of two below it."""
    w, levels = _weight(2, 16, 512)
    scale = np.full(512, 1.0, np.float32)
    scale[3] = np.nextafter(np.float32(2), np.float32(0))
    x, nothing = jnp.ones((1, 512), jnp.bfloat16), np.zeros((1, 512), np.float32)
    y = _run(tmp_path, x, w, CudaTile(16, 1, 1), Norm(nothing, scale, np.zeros((1, 512), np.uint16), 0.0))
    expected = levels.sum(axis=1) + levels[:, 3]
    np.testing.assert_array_equal(y[0], expected.astype(np.float32) * np.asarray(w.scale)[:, 0])


@pytest.mark.parametrize("spoiled", [np.inf, np.nan])
def test_a_norm_of_what_is_not_finite_is_none(tmp_path: Path, spoiled: float) -> None:
    w, _ = _weight(2, 16, 512)
    x, scale = jnp.ones((1, 512), jnp.bfloat16).at[0, 9].set(spoiled), np.ones(512, np.float32)
    norm = Norm(np.zeros((1, 512), np.float32), scale, np.zeros((1, 512), np.uint16), 1e-5)
    assert np.isnan(_run(tmp_path, x, w, CudaTile(16, 1, 1), norm)).all()
