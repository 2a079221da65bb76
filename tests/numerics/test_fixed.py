"""Codes that stay while scales and zero points learn: what is shipped, its gradients, what is refused."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import bits_of, weights

from lowbit.errors import QuantizerError
from lowbit.numerics import ste
from lowbit.numerics.quantizers import absmean_ternary, fixed, llmqat, onebit, paretoq, rtn, stored_as, transposed

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GRIDS = {
    **{f"paretoq{b}": lambda granularity, b=b: paretoq(b, granularity, "max") for b in (1.58, 2, 4)},
    "rtn3": lambda granularity: rtn(3, granularity),
    **{f"rtn{b}_minmax": lambda granularity, b=b: rtn(b, granularity, symmetric=False) for b in (2, 4)},
}
every_grid = pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS.keys())


def learned(state, seed=0):
    """The state after training: every scale and zero point elsewhere, what made the codes where it was."""
    rng = np.random.default_rng(seed)
    moved = {
        "scale": lambda leaf: leaf * rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32),
        "zero": lambda leaf: leaf + rng.uniform(-1.0, 1.0, leaf.shape).astype(np.float32),
    }
    return {key: leaf if key == "grid" else moved[key](leaf) for key, leaf in state.items()}


@pytest.mark.parametrize("granularity", ["channel", 8])
@every_grid
def test_what_learns_changes_no_code_and_is_shipped(make, granularity):
    base, w = make(granularity), weights()
    quantizer, start = fixed(base), base.init(w)
    state = quantizer.init(w)
    np.testing.assert_array_equal(bits_of(quantizer.fake(w, state)), bits_of(base.fake(w, start)))
    now = learned(state)
    kept = quantizer.encode(w, now)
    np.testing.assert_array_equal(kept.codes, base.encode(w, start).codes)
    np.testing.assert_array_equal(kept.scale, jnp.maximum(now["scale"], 1e-5).astype(jnp.float16))
    assert (kept.zero is None) == ("zero" not in now)
    for fake in (quantizer.fake, jax.jit(quantizer.fake)):
        np.testing.assert_array_equal(bits_of(fake(w, now)), bits_of(kept.decode()))
    codes, clipped, _ = jax.jit(quantizer.standing)(w, now)
    np.testing.assert_array_equal(codes, kept.codes)
    np.testing.assert_array_equal(clipped, jax.jit(lambda w, s: base.standing(w, s).clipped)(w, start))


@pytest.mark.parametrize("groups", [1, 4])
@every_grid
def test_gradients_are_those_of_the_formula(make, groups):
    quantizer, w = fixed(make("channel" if groups == 1 else 8)), weights()
    state = learned(quantizer.init(w))
    c = np.random.default_rng(1).standard_normal(w.shape).astype(np.float32)
    grad_w, grads = jax.jit(lambda w, s: jax.vjp(quantizer.fake, w, s)[1](jnp.asarray(c)))(w, state)
    assert not np.any(grad_w)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["grid"]))

    kept = quantizer.encode(w, state)
    size = w.shape[0] // groups
    zero = 0.0 if kept.zero is None else np.repeat(np.asarray(kept.zero, np.float64), size, axis=0)
    scale = np.repeat(np.asarray(kept.scale, np.float64), size, axis=0)
    terms = {"scale": c * (np.asarray(kept.grid.levels)[kept.codes] - zero), "zero": -c * scale}
    assert set(grads) - {"grid"} == set(state) - {"grid"}
    for name in set(state) - {"grid"}:
        grouped = terms[name].reshape(groups, size, -1)
        # `size` float32 terms, each rounded twice, summed in any order.
        bound = np.abs(grouped).sum(axis=1) * (size + 2) * 2.0**-24
        assert np.all(np.abs(grads[name] - grouped.sum(axis=1)) <= bound + 1e-12), name


def test_the_gradient_is_the_slope():
    """Fixed codes make `fake` linear in each scale, but for the rounding of what is stored: float32 here."""
    quantizer, w = fixed(paretoq(2, scale_dtype=jnp.float32)), weights()
    state = quantizer.init(w)
    c = jnp.asarray(np.random.default_rng(2).standard_normal(w.shape).astype(np.float32))

    def loss(scale):
        return jnp.vdot(quantizer.fake(w, {**state, "scale": scale}), c)

    slope = (loss(2 * state["scale"]) - loss(state["scale"])) / jnp.float32(1)
    along = jnp.vdot(jax.grad(loss)(state["scale"]), state["scale"])
    np.testing.assert_allclose(slope, along, rtol=1e-4)


def test_layers_of_different_widths_keep_their_codes():
    widths, w = (2, 4, 1.58), weights((3, 32, 12))
    mixed = fixed(paretoq(widths, scale_init="max"))
    state = learned(mixed.init(w))
    together = mixed.fake(w, state)
    for layer, bits in enumerate(widths):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], state)
        kept = mixed.layer(layer).encode(w[layer], own)
        assert kept.grid == paretoq(bits).grid
        np.testing.assert_array_equal(bits_of(together[layer]), bits_of(kept.decode()))


def test_rows_of_an_embedding_are_fixed_as_columns_are():
    w = weights((12, 32))
    rows = transposed(fixed(rtn(4, symmetric=False)))
    state = learned(rows.init(w))
    np.testing.assert_array_equal(bits_of(rows.fake(w, state)), bits_of(rows.encode(w, state).decode()))
    assert rows.fixed


@pytest.mark.parametrize(
    "quantizer", [onebit(), llmqat(4), absmean_ternary(), stored_as(jnp.float16), fixed(rtn(4))], ids=lambda q: q.name
)
def test_what_has_no_codes_to_fix_is_refused(quantizer):
    message = rf"{quantizer.name} has no codes that could be fixed.*\n  -> take paretoq or rtn; the signs of onebit"
    with pytest.raises(QuantizerError, match=message):
        fixed(quantizer)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_zero_points_learn_as_in_the_reference(bits):
    """EfficientQAT's quantizer of Block-AP: values and all three gradients."""
    with np.load(GOLDEN / f"efficientqat_w{bits}g64.npz") as file:
        golden = {key: file[key] for key in file}
    groups = golden["weight"].shape[1] // 64
    w, out, c = (jnp.asarray(golden[key].T) for key in ("weight", "out", "grad_out"))
    scale, zero = (jnp.asarray(golden[key].reshape(-1, groups).T) for key in ("scale", "zero_point"))
    quantizer = rtn(bits, 64, symmetric=False, scale_dtype=jnp.float32, learns=True)
    w_hat, vjp = jax.vjp(quantizer.fake, w, {"scale": scale, "zero": zero})
    grad_w, grads = vjp(c)
    np.testing.assert_allclose(w_hat, out, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(grad_w, golden["grad_weight"].T, rtol=1e-6)
    # Sums of 64 terms, each |c| times at most 2^bits steps, or one scale, and rounded twice, in another order.
    size = np.abs(golden["grad_out"]).reshape(-1, groups, 64).sum(axis=2).T * 66 * 2.0**-24
    for name, most in (("scale", 2.0**bits), ("zero", np.asarray(scale))):
        wanted = golden[f"grad_{name}"].reshape(-1, groups).T
        assert np.all(np.abs(grads[name] - wanted) <= size * most), name


def test_zero_points_learn_from_what_is_clipped():
    """No weight of the reference's figures is: the formula a second time, in float64."""
    rng = np.random.default_rng(3)
    w, c = (rng.standard_normal((32, 6)).astype(np.float32) for _ in range(2))
    scale, zero = np.full((4, 6), 0.5, np.float32), rng.integers(0, 4, (4, 6)).astype(np.float32)
    _, vjp = jax.vjp(lambda *of: ste.learned_zero(*of, 3.0), *map(jnp.asarray, (w, scale, zero)))
    grad_w, grad_scale, grad_zero = vjp(jnp.asarray(c))
    wide_scale, wide_zero = (np.repeat(leaf, 8, axis=0).astype(np.float64) for leaf in (scale, zero))
    codes = np.round(w / wide_scale) + wide_zero
    outside = (codes < 0) | (codes > 3)
    assert 0.2 < outside.mean() < 0.8
    np.testing.assert_array_equal(grad_w, np.where(outside, 0, c))
    offset = np.clip(codes, 0, 3) - wide_zero - np.where(outside, 0, w / wide_scale)
    for found, terms in ((grad_scale, c * offset), (grad_zero, np.where(outside, -c * wide_scale, 0))):
        grouped = terms.reshape(4, 8, 6)
        bound = np.abs(grouped).sum(axis=1) * 10 * 2.0**-24
        assert np.all(np.abs(found - grouped.sum(axis=1)) <= bound)
