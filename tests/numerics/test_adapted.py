"""Adapters beside codes: what they compute, bit for bit, what they learn, and what LoftQ's start is worth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.numerics import low_rank
from lowbit.numerics.quantizers import (
    absmean_ternary,
    adapted,
    doubled,
    fixed,
    llmqat,
    nf4,
    onebit,
    paretoq,
    rtn,
    stored_as,
)
from lowbit.numerics.quantizers.adapted import loftq
from lowbit.tree import Rule, bits_report

# A base that is a product is what a compiler could fuse with the addition of the factors: it must be one that fuses.
pytestmark = pytest.mark.usefixtures("optimized")

RANK = 6
BASES = {
    "nf4": nf4(16),
    "rtn3": rtn(3, 16),
    "rtn4_minmax": rtn(4, 16, symmetric=False),
    "paretoq2": paretoq(2, scale_init="max"),
    "paretoq1.58": paretoq(1.58, scale_init="max"),
    "onebit": onebit(scale_init="mean"),
    "absmean_ternary": absmean_ternary(),
    "llmqat4": llmqat(4),
    "nf4_doubled": doubled(nf4(16)),
}


def weights(seed=0, shape=(2, 32, 24)):
    return jnp.asarray(0.05 * np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32))


def learned(quantizer, w, seed=1):
    """(masters, state) after training has moved the factors by about what they are."""
    state, rng = quantizer.init(w), np.random.default_rng(seed)
    moved = {key: state[key] + 0.1 * rng.standard_normal(state[key].shape).astype(np.float32) for key in ("a", "b")}
    return quantizer.masters(w, state), state | moved


@pytest.mark.parametrize("name", BASES)
def test_weights_are_those_that_numpy_makes_of_the_stored_parts(name, optimized):
    quantizer = adapted(BASES[name], RANK, 4.0)
    codes, state = learned(quantizer, weights())
    assert codes.dtype == jnp.uint8
    kept = quantizer.encode(codes, state)
    scale = np.asarray(kept.scale, np.float32)
    levels = kept.grid.table()[np.asarray(kept.codes)].reshape(2, scale.shape[-2], -1, 24)
    if kept.zero is not None:
        levels = levels - np.asarray(kept.zero, np.float32)[..., None, :]
    base = (levels * scale[..., None, :]).reshape(2, 32, 24)
    if kept.in_scale is not None:
        base = base * np.asarray(kept.in_scale, np.float32)
    assert all(factor.dtype == jnp.float16 for factor in kept.adapter)
    a, b = (np.asarray(factor, np.float32) for factor in kept.adapter)
    total = a[..., :1] * b[..., :1, :]
    for r in range(1, RANK):
        total = total + a[..., r : r + 1] * b[..., r : r + 1, :]
    expected = (base + total).view(np.uint32)
    compiled = jax.jit(quantizer.fake, compiler_options=optimized)(codes, state)
    shipped = jax.jit(lambda c, s: quantizer.encode(c, s).decode(), compiler_options=optimized)(codes, state)
    for w_hat in (kept.decode(), compiled, shipped):
        np.testing.assert_array_equal(np.asarray(w_hat).view(np.uint32), expected)


@pytest.mark.parametrize("rank", [1, 2, 17, 24])
def test_a_product_is_one_sum_in_order(rank):
    rng = np.random.default_rng(rank)
    a, b = (rng.standard_normal(shape).astype(np.float16).astype(np.float32) for shape in ((30, rank), (rank, 24)))
    total = np.zeros((30, 24), np.float32)
    for r in range(rank):
        total = total + a[:, r : r + 1] * b[r]
    np.testing.assert_array_equal(low_rank.product(jnp.asarray(a), jnp.asarray(b)), total)


def test_gradients_are_those_of_a_matrix_product():
    quantizer = adapted(nf4(16), RANK, 12.0)
    codes, state = learned(quantizer, weights())
    c = weights(3)
    grads = jax.grad(lambda s: jnp.vdot(quantizer.fake(codes, s), c))(state)
    a, b = (np.asarray(low_rank.half(x), np.float64) for x in (state["a"], state["b"] * 2.0))
    # Sums of up to 32 products of float32: 32 roundings of the sum of their magnitudes.
    for ours, left, right, factor in (("a", c, np.swapaxes(b, -1, -2), 1.0), ("b", np.swapaxes(a, -1, -2), c, 2.0)):
        exact = factor * (np.asarray(left, np.float64) @ np.asarray(right, np.float64))
        size = factor * (np.abs(np.asarray(left, np.float64)) @ np.abs(np.asarray(right, np.float64)))
        assert np.all(np.abs(np.asarray(grads[ours]) - exact) <= 34 * 2.0**-24 * size)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["grid"]))


def test_qlora_starts_where_rounding_left_the_weights():
    w, base = weights(), nf4(16)
    quantizer = adapted(base, RANK, 16.0, seed=3)
    state = quantizer.init(w)
    np.testing.assert_array_equal(quantizer.fake(quantizer.masters(w, state), state), base.fake(w, base.init(w)))
    assert not np.any(state["b"])
    a = np.asarray(state["a"])
    assert np.abs(a).max() <= 1 / np.sqrt(32)
    # Uniform within +-t: variance t^2 / 3. Of 384 draws, its estimate has a standard error of 4.6 %.
    assert np.var(a) == pytest.approx(1 / 32 / 3, rel=0.2)
    assert not np.array_equal(a, adapted(base, RANK, 16.0, seed=4).init(w)["a"])
    assert not np.array_equal(a[0], a[1])


@pytest.mark.parametrize("alpha", [RANK, 16.0])
def test_loftq_starts_nearer_to_the_weights_than_rounding(alpha):
    w, base = weights(), rtn(2, 16)
    rounded = base.fake(w, base.init(w))
    quantizer = adapted(base, RANK, alpha, "loftq", rounds=3)
    state = quantizer.init(w)
    start = quantizer.fake(quantizer.masters(w, state), state)

    def lost(w_hat):
        return float(jnp.linalg.norm(w - w_hat))

    # One round takes the largest 6 of 24 singular values from the error, 1/4 of its square or more.
    found = loftq(base, w, RANK, 3)
    first, _, last = jnp.sqrt(jnp.sum(jnp.square(found.errors), axis=-1))
    assert first < (0.75**0.5) * lost(rounded)
    assert lost(found.kept.decode()) == pytest.approx(float(last), rel=1e-6)
    # b is divided by alpha / r and multiplied again, each of which rounds once before b is rounded to float16.
    assert lost(start) == pytest.approx(float(last), rel=1e-3)
    assert lost(start) < lost(rounded)


def test_bits_per_weight_count_codes_scales_and_factors():
    w = jax.ShapeDtypeStruct((3, 256, 128), jnp.float32)
    report = bits_report([Rule("w", adapted(nf4(64), 8, 16.0))], {"w": w})
    # Codes of 4 bits, a scale of 16 a group, and (256 + 128) 8 numbers of 16 bits for 256 x 128 weights.
    assert report.quantized_bits_per_weight == 4 + 16 / 64 + 16 * 8 * (256 + 128) / (256 * 128)
    of_codes = bits_report([Rule("w", adapted(nf4(64), 8, 16.0))], {"w": jax.ShapeDtypeStruct(w.shape, jnp.uint8)})
    assert of_codes.quantized_bits_per_weight == report.quantized_bits_per_weight


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adapted(nf4(), 0, 1.0), "an adapter of rank 0\n  -> give a whole number of at least 1"),
        (lambda: adapted(nf4(), 4, 0.0), "an adapter with alpha=0.0\n  -> give a finite number above 0"),
        (lambda: adapted(nf4(), 4, float("nan")), "an adapter with alpha=nan"),
        (lambda: adapted(nf4(), 4, 1.0, "loftQ"), "unknown start 'loftQ' of an adapter\n  -> did you mean 'loftq'"),
        (lambda: adapted(nf4(), 4, 1.0, "loftq", 0), "0 rounds of LoftQ\n  -> give a whole number"),
        (lambda: adapted(stored_as(jnp.float16), 4, 1.0), "an adapter stands beside codes, and float16 has none"),
        (lambda: adapted(fixed(rtn(4)), 4, 1.0), "fixed codes under scales that learn.*\n  -> set quant.codes=moving"),
        (lambda: adapted(paretoq((2, 4)), 4, 1.0), "differ in width.*\n  -> give all layers"),
        (lambda: adapted(onebit(latent=0.1), 4, 1.0), "puts other weights in the place.*\n  -> set quant.latent=0"),
        (lambda: adapted(nf4(16), 25, 1.0).init(weights()), "rank 25 does not fit shape .*\n  -> choose .* at most 24"),
    ],
)
def test_adapters_that_cannot_be_are_refused(make, message):
    with pytest.raises(QuantizerError, match=message):
        make()
