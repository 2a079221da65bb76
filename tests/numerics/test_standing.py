"""What quantizers tell of themselves: codes that are those of the file, clipping, and scales against the best ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import every_case_with_groups, weights

from lowbit.numerics.quantizers import paretoq, rtn, stored_as, transposed


@every_case_with_groups  # those of weights: the recorder does not look at activations
def test_codes_are_those_of_the_file_and_clipped_is_what_no_gradient_reaches(make):
    q, w = make(), weights()
    state = jax.tree.map(lambda leaf: 0.6 * leaf, q.init(w))  # a scale too small: something is clipped
    codes, clipped = jax.jit(lambda w, state: q.standing(w, state)[:2])(w, state)
    np.testing.assert_array_equal(codes, q.encode(w, state).codes)
    # A product of two vectors bounds no weight: every sign has a gradient, however large the weight.
    assert jnp.any(clipped) == (not q.name.startswith("onebit"))
    if not q.dynamic and q.name != "nf4":  # where the scale follows the weights, and on codebooks, gradients pass
        (reached,) = jax.vjp(lambda w: q.fake(w, state), w)[1](jnp.ones_like(w))
        np.testing.assert_array_equal(clipped, reached == 0)


@pytest.mark.parametrize("granularity", ["tensor", 8])
def test_every_granularity_has_its_drift(granularity):
    q, w = paretoq(3, granularity), weights()
    standing = jax.jit(q.standing)(w, q.init(w))
    np.testing.assert_array_equal(standing.codes, q.encode(w, q.init(w)).codes)
    assert standing.drift.shape == ((1, 1) if granularity == "tensor" else (4, 12))


def test_layers_of_different_widths_have_codes_of_their_own():
    widths, w = (1, 4, 1.58), weights((3, 32, 12))
    mixed = paretoq(widths, scale_init="max")
    state = mixed.init(w)
    standing = jax.jit(mixed.standing)(w, state)
    for layer, own in enumerate(widths):
        alone, scale = paretoq(own), {"scale": state["scale"][layer]}
        wanted = jax.jit(alone.standing)(w[layer], scale)
        np.testing.assert_array_equal(standing.codes[layer], alone.encode(w[layer], scale).codes)
        np.testing.assert_array_equal(standing.clipped[layer], wanted.clipped)
        np.testing.assert_array_equal(standing.drift[layer], wanted.drift)


@pytest.mark.parametrize("bits", [1, 2])
def test_drift_is_one_at_the_best_scale_and_follows_the_scale(bits):
    q, w = paretoq(bits, scale_init="mse"), weights((32, 96))
    state = q.init(w)
    drift_at = jax.jit(lambda state: q.standing(w, state).drift)
    drift = drift_at(state)
    assert drift.shape == (1, 32)  # every third channel
    # Two programs may sum the same numbers in another order, and then store the scale one step of float16 apart.
    np.testing.assert_allclose(drift, np.ones((1, 32)), rtol=2.0**-10)
    # A power of two changes neither rounding; the channel of zeros stays at the floor of all scales.
    doubled = drift_at({"scale": 2 * state["scale"]})
    np.testing.assert_array_equal(doubled / drift, np.where(np.all(w == 0, axis=0)[None, ::3], 1.0, 2.0))


def test_a_transposed_parameter_stands_as_its_transpose():
    w = weights()
    state = rtn(3).init(w)
    wanted, got = jax.jit(rtn(3).standing)(w, state), jax.jit(transposed(rtn(3)).standing)(w.T, state)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_floats_and_zero_points_have_no_more_than_they_can():
    assert stored_as(jnp.float16).standing is None
    assert transposed(stored_as(jnp.float16)).standing is None
    q, w = rtn(3, symmetric=False), weights()
    assert q.standing(w, q.init(w)).drift is None
