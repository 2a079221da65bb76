"""Gradients against their documented formulas, written out a second time in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
