"""Gradients against their documented formulas, written out a second time in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.numerics import ste
from lowbit.numerics.grids import paretoq_grid
from lowbit.numerics.quantizers import absmean_ternary, llmqat, paretoq, rtn, stored_as

RNG = np.random.default_rng(0)
FORMULA = {  # width: levels, clip range, edges seen by the scale, reach
    1: ([-1, 1], 1.0, (-1, 1), 1),
    1.58: ([-2 / 3, 0, 2 / 3], 0.99, (-1, 1), 1),
    2: ([-0.75, -0.25, 0.25, 0.75], 0.99, (-0.75, 0.75), 1),
    3: (range(-4, 4), (-4, 3), (-4, 3), 3),
    4: (range(-8, 8), (-8, 7), (-8, 7), 7),
}


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", FORMULA)
def test_learned_scale(bits, groups):
    levels, clip, edges, reach = FORMULA[bits]
    low, high = clip if isinstance(clip, tuple) else (-clip, clip)
    levels = np.asarray(levels, np.float64)
    k, n = 32, 6
    scale = RNG.uniform(0.05, 0.3, (groups, n)).astype(np.float32)
    w = (RNG.standard_normal((k, n)) * 0.3 * max(1, reach)).astype(np.float32)
    c = RNG.standard_normal((k, n)).astype(np.float32)

    wide = np.repeat(scale.astype(np.float64), k // groups, axis=0)
    u = w / wide
    nearest = levels[np.abs(np.clip(u, low, high)[..., None] - levels).argmin(-1)]
    inside = (u >= low) & (u <= high)
    residual = np.sign(u) if bits == 1 else np.where(u < low, edges[0], np.where(u > high, edges[1], nearest - u))
    terms = (c * residual).reshape(groups, k // groups, n)

    _, vjp = jax.vjp(lambda w, s: ste.learned_scale(w, s, paretoq_grid(bits)[1]), jnp.asarray(w), jnp.asarray(scale))
    grad_w, grad_scale = vjp(jnp.asarray(c))
    np.testing.assert_array_equal(grad_w, np.where(inside, c, 0))
    damping = np.sqrt(k * n * reach)
    bound = np.abs(terms).sum(1) / damping * (k // groups) * 2**-23 + 1e-7 * reach
    assert np.all(np.abs(grad_scale - terms.sum(1) / damping) <= bound)


def slope_of_soft_stairs(u, levels, low, high, alpha=0.2):
    """DSQ's derivative between two levels of distance d: s k (1 - tanh(k (u - middle))^2) d/2."""
    d = levels[1] - levels[0]
    k, s = np.log(2 / alpha - 1) / d, 1 / (1 - alpha)
    kept = np.clip(u, levels[0], levels[-1])
    left = np.clip(np.searchsorted(levels, kept, side="right") - 1, 0, len(levels) - 2)
    slope = s * k * (1 - np.tanh(k * (kept - levels[left] - d / 2)) ** 2) * d / 2
    return np.where((u >= low) & (u <= high), slope, 0.0)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", FORMULA)
def test_estimators_differ_in_the_gradient_to_weights_alone(bits, groups):
    levels, clip, _, reach = FORMULA[bits]
    low, high = clip if isinstance(clip, tuple) else (-clip, clip)
    levels = np.asarray(levels, np.float64)
    scale = RNG.uniform(0.05, 0.3, (groups, 6)).astype(np.float32)
    w = (RNG.standard_normal((32, 6)) * 0.3 * max(1, reach)).astype(np.float32)
    c = RNG.standard_normal((32, 6)).astype(np.float32)
    u = w / np.repeat(scale.astype(np.float64), 32 // groups, axis=0)
    wanted = {
        "clipped": np.where((u >= low) & (u <= high), c, 0),
        "identity": c,
        "dsq": c * slope_of_soft_stairs(u, levels, low, high),
    }
    assert set(wanted) == set(ste.ESTIMATORS)
    results = {}
    for name in wanted:
        quantizer = paretoq(bits, scale_dtype=jnp.float32, estimator=name)
        w_hat, vjp = jax.vjp(quantizer.fake, jnp.asarray(w), {"scale": jnp.asarray(scale)})
        grad_w, grad_state = vjp(jnp.asarray(c))
        # u is off by a rounding of its own size, which the slope turns into at most |u| * max |slope'| < 2 |u| of c.
        bound = 2**-23 * np.abs(c) * (4 + 2 * np.abs(u) * reach)
        assert np.all(np.abs(grad_w - wanted[name]) <= (bound if name == "dsq" else 0)), name
        results[name] = (w_hat, grad_state)
    for other in ("identity", "dsq"):
        jax.tree.map(np.testing.assert_array_equal, results[other], results["clipped"])


@pytest.mark.parametrize("bits", FORMULA)
def test_the_soft_staircase_rises_by_one_step_between_two_levels(bits):
    levels = np.asarray(FORMULA[bits][0], np.float64)
    u = np.linspace(levels[0], levels[1], 10_001)
    clip = FORMULA[bits][1]
    slope = slope_of_soft_stairs(u, levels, *(clip if isinstance(clip, tuple) else (-clip, clip)))
    np.testing.assert_allclose(np.trapezoid(slope, u), levels[1] - levels[0], rtol=1e-6)


def test_layers_of_different_widths_share_an_estimator():
    w = jnp.asarray(RNG.standard_normal((2, 16, 3)).astype(np.float32))
    mixed = paretoq((2, 4), estimator="dsq")
    state = mixed.init(w)
    grads = jax.grad(lambda w: jnp.sum(mixed.fake(w, state)))(w)
    for layer, bits in enumerate((2, 4)):
        alone = paretoq(bits, estimator="dsq")
        own = {"scale": state["scale"][layer]}
        wanted = jax.grad(lambda w, alone=alone, own=own: jnp.sum(alone.fake(w, own)))(w[layer])
        # Static and traced grids, in two programs: a rounding of u, and of its slope.
        np.testing.assert_allclose(grads[layer], wanted, rtol=2e-5, atol=1e-6)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(QuantizerError, match="unknown gradient estimator 'dqs'\n  -> did you mean 'dsq'"):
        paretoq(2, estimator="dqs")


def test_scale_gradient_at_a_binary_zero_is_zero():
    quantizer = paretoq(1)
    grads = jax.grad(lambda s: jnp.sum(quantizer.fake(jnp.zeros((4, 2)), s)))({"scale": jnp.ones((1, 2))})
    np.testing.assert_array_equal(grads["scale"], 0.0)


def test_gradient_passes_through_the_rounding_of_the_scale():
    """fp16 rounding has derivative zero nearly everywhere; the scale must learn all the same."""
    w = jnp.asarray(RNG.standard_normal((16, 3)).astype(np.float32))
    state = {"scale": jnp.full((1, 3), 0.30001, jnp.float32)}
    half, full = paretoq(2), paretoq(2, scale_dtype=jnp.float32)
    loss = lambda q, s: jnp.sum(jnp.sin(q.fake(w, s)))  # noqa: E731
    rounded = {"scale": state["scale"].astype(jnp.float16).astype(jnp.float32)}
    at_half, at_full = jax.grad(lambda s: loss(half, s))(state), jax.grad(lambda s: loss(full, s))(rounded)
    np.testing.assert_array_equal(at_half["scale"], at_full["scale"])
    assert np.all(np.asarray(at_half["scale"]) != 0)


@pytest.mark.parametrize("make", [rtn, lambda bits: rtn(bits, symmetric=False)], ids=["symmetric", "minmax"])
def test_rounding_learns_weights_inside_its_range_and_no_scale(make):
    quantizer = make(3)
    w = jnp.asarray(RNG.standard_normal((16, 3)).astype(np.float32))
    state = quantizer.init(w)
    shrunk = {**state, "scale": state["scale"] / 2}
    grad_w, grad_state = jax.grad(lambda w, s: jnp.sum(quantizer.fake(w, s)), argnums=(0, 1))(w, shrunk)
    scale = shrunk["scale"].astype(jnp.float16).astype(jnp.float32)
    low, high = (
        (-4 * scale, 3 * scale) if "zero" not in state else (-state["zero"] * scale, (7 - state["zero"]) * scale)
    )
    np.testing.assert_array_equal(grad_w, (w >= low) & (w <= high))
    assert not np.all(grad_w == 1)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grad_state))


@pytest.mark.parametrize("quantizer", [llmqat(4), absmean_ternary(), stored_as(jnp.float16)], ids=lambda q: q.name)
def test_gradient_passes_everywhere(quantizer):
    w = jnp.asarray(3 * RNG.standard_normal((16, 3)).astype(np.float32))
    grad = jax.grad(lambda w: jnp.sum(quantizer.fake(w, quantizer.state_of(w, None))))(w)
    np.testing.assert_array_equal(grad, 1.0)


def test_llmqat_reference_stops_gradients_at_two():
    quantizer = llmqat(4, variant="reference")
    w = jnp.asarray([[1.9, -1.9, 2.0], [-2.0, 2.1, 0.0]], jnp.float32)
    grad = jax.grad(lambda w: jnp.sum(quantizer.fake(w, quantizer.init(w))))(w)
    np.testing.assert_array_equal(grad, jnp.abs(w) < 2)
