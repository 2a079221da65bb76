"""OneBit: the start, the forward pass and the gradients are those of the reference and of the formulas."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.models.layers import layer_norm
from lowbit.numerics import svid
from lowbit.numerics.quantizers import onebit, paretoq, stored_as, transposed
from lowbit.tree import Rule, bits_report, init_state, start_masters

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "onebit.npz"
EPS = float(jnp.finfo(jnp.float32).eps)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {key: file[key] for key in file}


def heavy_tailed(shape=(3, 40, 24)):
    return jnp.asarray(0.05 * np.random.default_rng(0).standard_t(4, size=shape).astype(np.float32))


@pytest.mark.parametrize("start", [svid.by_svd, svid.by_nmf])
def test_both_starts_find_the_vectors_of_the_references(golden, start):
    magnitude = jnp.abs(jnp.asarray(golden["weight"].T))
    inputs, outputs = start(magnitude)
    root = np.sqrt(golden["svd_s0"])
    # The reference solved in float64; here 96 terms are summed in float32, in each step that an error outlives.
    np.testing.assert_allclose(inputs, np.abs(golden["svd_v0"]) * root, rtol=96 * EPS)
    np.testing.assert_allclose(outputs, np.abs(golden["svd_u0"]) * root, rtol=96 * EPS)
    # Scikit-learn's NMF stops at a tolerance of 1e-4 in its error, and shares the size between the vectors by chance.
    product = np.outer(golden["nmf_g"], golden["nmf_h"])
    np.testing.assert_allclose(np.outer(inputs, outputs), product, rtol=1e-4)


def test_no_pair_of_vectors_near_the_start_has_a_smaller_error():
    w = heavy_tailed((40, 24))
    quantizer = onebit(scale_dtype=jnp.float32)
    state = quantizer.init(w)

    def error(state):
        return jnp.sum(jnp.square(w - quantizer.fake(w, state)))

    slopes = jax.grad(error)(state)
    for key, slope in slopes.items():
        # At the optimum residual and product are orthogonal, up to the rounding of their sum.
        assert float(jnp.abs(jnp.vdot(slope, state[key]))) < 1e-4 * float(error(state))
    assert float(error(state)) < float(jnp.sum(jnp.square(w - paretoq(1).fake(w, paretoq(1).init(w)))))


def test_zeros_and_stacked_layers_have_a_start():
    w = heavy_tailed().at[1].set(0.0).at[0, :, 3].set(0.0).at[0, 5].set(0.0)
    for name in svid.STARTS:
        quantizer = onebit(scale_init=name)
        state = quantizer.init(w)
        assert {key: value.shape for key, value in state.items()} == {"scale": (3, 1, 24), "in_scale": (3, 40, 1)}
        assert all(bool(jnp.all(jnp.isfinite(value))) for value in state.values())
        alone = quantizer.init(w[2])
        jax.tree.map(lambda one, all_of: np.testing.assert_allclose(one, all_of[2], rtol=40 * EPS), alone, state)
        np.testing.assert_array_equal(quantizer.encode(w, state).decode(), quantizer.fake(w, state))


class TestAgainstTheReference:
    """The reference layer: `LayerNorm(((x * g) @ sign(W)^T) * h)`, in float32."""

    def test_forward(self, golden):
        out = _layer(golden)(*_arguments(golden))
        # Sums of 96 terms, then divided by their deviation, which is about a third of the largest.
        np.testing.assert_allclose(out, golden["out"], rtol=1e-5, atol=96 * EPS)

    def test_gradients(self, golden):
        _, vjp = jax.vjp(_layer(golden), *_arguments(golden))
        wanted = (golden["grad_x"], golden["grad_latent"].T, golden["grad_g"][:, None], golden["grad_h"][None])
        for got, want in zip(vjp(jnp.asarray(golden["grad_out"])), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def _layer(golden):
    quantizer = onebit(scale_dtype=jnp.float32)

    def layer(x, w, in_scale, scale):
        kernel = quantizer.fake(w, {"scale": scale, "in_scale": in_scale})
        return layer_norm(jnp.matmul(x, kernel, precision="highest"))

    return layer


def _arguments(golden):
    arrays = golden["x"], golden["latent"].T, golden["nmf_g"][:, None], golden["nmf_h"][None]
    return tuple(map(jnp.asarray, arrays))


def test_the_gradient_to_the_weights_is_the_slope_of_a_tanh_and_that_to_the_vectors_exact():
    w, quantizer = 20 * heavy_tailed((12, 8)), onebit(granularity=4, scale_dtype=jnp.float32)
    state = quantizer.init(w)
    c = jnp.asarray(np.random.default_rng(1).standard_normal(w.shape).astype(np.float32))
    grad_w, grads = jax.grad(lambda w, s: jnp.vdot(quantizer.fake(w, s), c), argnums=(0, 1))(w, state)
    wide, inputs = np.asarray(w, np.float64), np.asarray(state["in_scale"], np.float64)
    outputs = np.repeat(np.asarray(state["scale"], np.float64), 4, axis=0)
    rtol = 4 * EPS / 0.001  # the slope of a large weight is the difference of two numbers near 1
    signs = np.where(wide >= 0, 1.0, -1.0)
    np.testing.assert_allclose(grad_w, c * outputs * inputs * (1.001 - np.tanh(wide) ** 2), rtol=rtol)
    np.testing.assert_allclose(grads["in_scale"], (c * signs * outputs).sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    expected = (c * signs * inputs).reshape(3, 4, 8).sum(1)
    np.testing.assert_allclose(grads["scale"], expected, rtol=1e-4, atol=1e-6)


def test_an_embedding_has_a_value_for_each_row_and_each_dimension():
    w = heavy_tailed((30, 16))
    quantizer = transposed(onebit(latent=0.01))
    state = quantizer.init(w)
    assert {key: value.shape for key, value in state.items()} == {"scale": (1, 30), "in_scale": (16, 1)}
    kept = quantizer.encode(w, state)
    np.testing.assert_array_equal(kept.decode(), quantizer.fake(w, state))
    np.testing.assert_array_equal(jnp.sign(kept.decode()), jnp.where(w >= 0, 1, -1))


def test_masters_start_at_one_magnitude_and_the_vectors_at_the_weights_own():
    params = {"a": {"kernel": heavy_tailed((12, 8))}, "b": heavy_tailed((12, 8))}
    rules = (Rule("a/kernel", onebit(latent=0.01)), Rule(".*", stored_as(jnp.float16)))
    masters = start_masters(rules, params, init_state(rules, params))
    np.testing.assert_array_equal(jnp.abs(masters["a"]["kernel"]), jnp.float32(0.01))
    np.testing.assert_array_equal(jnp.sign(masters["a"]["kernel"]), jnp.sign(params["a"]["kernel"]))
    np.testing.assert_array_equal(masters["b"], params["b"])
    state = init_state(rules, params)["quant"]["a"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, state, onebit().init(params["a"]["kernel"]))


def test_a_matrix_of_4096_costs_one_bit_and_two_vectors():
    w = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    report = bits_report([Rule("w", onebit())], {"w": w})
    assert report.quantized_bits_per_weight == 1 + 32 / 4096  # 1.0078


def test_what_cannot_be_is_refused():
    with pytest.raises(QuantizerError, match=r"unknown start 'svf' of the two value vectors\n  -> did you mean 'svd'"):
        onebit(scale_init="svf")
    with pytest.raises(QuantizerError, match=r"masters cannot start at a magnitude of -1\.0\n  -> give a finite"):
        onebit(latent=-1.0)
    with pytest.raises(QuantizerError, match="a scale cannot be stored as 'int8'"):
        onebit(scale_dtype=jnp.int8)
    with pytest.raises(QuantizerError, match="a group of 5 does not divide the 12 inputs"):
        onebit(granularity=5).init(heavy_tailed((12, 8)))
