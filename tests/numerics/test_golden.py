"""Forward values, codes and gradients equal those of the reference implementations."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.numerics.activations import dynamic
from lowbit.numerics.quantizers import llmqat, paretoq

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"

# float32 sums over at most 96 terms in two orders differ by less than this, relative to the sum of the terms' sizes.
RELATIVE = 1e-6


def _load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: jnp.asarray(file[key].T) for key in file}


@pytest.mark.parametrize("case", ["init", "trained"])
@pytest.mark.parametrize("bits", [1, 1.58, 2, 3, 4])
class TestParetoQ:
    def test_scale_init(self, bits, case):
        golden = _load(f"paretoq_w{bits}_{case}")
        quantizer = paretoq(bits, scale_init="reference", scale_dtype=jnp.float32)
        np.testing.assert_allclose(quantizer.init(golden["weight"])["scale"], golden["alpha_init"], rtol=RELATIVE)

    def test_forward_and_codes(self, bits, case):
        golden = _load(f"paretoq_w{bits}_{case}")
        w, state = golden["weight"], {"scale": golden["alpha"]}
        quantizer = paretoq(bits, scale_dtype=jnp.float32)
        out = np.asarray(quantizer.fake(w, state))
        # One bit cannot hold the reference's sign(0) = 0: zeros ship as +scale, and only they differ.
        comparable = np.asarray(w) != 0 if bits == 1 else np.ones(w.shape, bool)
        np.testing.assert_allclose(out[comparable], np.asarray(golden["out"])[comparable], rtol=RELATIVE)
        if bits == 1:
            floored = np.broadcast_to(np.maximum(golden["alpha"], np.float32(1e-5)), w.shape)
            np.testing.assert_array_equal(out[~comparable], floored[~comparable])
        levels = np.asarray(quantizer.grid.levels)
        alpha = np.maximum(np.asarray(golden["alpha"], np.float64), 1e-5)
        expected = np.abs(np.asarray(golden["out"])[..., None] / alpha[..., None] - levels).argmin(-1)
        codes = np.asarray(quantizer.encode(w, state).codes)
        np.testing.assert_array_equal(codes[comparable], expected[comparable])

    def test_gradients(self, bits, case):
        golden = _load(f"paretoq_w{bits}_{case}")
        w, alpha, c = golden["weight"], golden["alpha"], golden["grad_out"]
        quantizer = paretoq(bits, scale_dtype=jnp.float32)
        _, vjp = jax.vjp(lambda w, s: quantizer.fake(w, {"scale": s}), w, alpha)
        grad_w, grad_scale = vjp(c)
        np.testing.assert_allclose(grad_w, golden["grad_weight"], rtol=RELATIVE)
        k, n = w.shape
        reach = {1: 1, 1.58: 1, 2: 1, 3: 3, 4: 7}[bits]
        terms = np.sum(np.abs(c), axis=0, keepdims=True) / np.sqrt(k * n * reach)
        assert np.all(np.abs(grad_scale - golden["grad_alpha"]) <= RELATIVE * terms * max(1, reach))


@pytest.mark.parametrize("bits", [4, 8])
def test_llmqat_reference_variant(bits):
    """The reference's per-token activations are our per-channel weights, transposed."""
    golden = _load(f"llmqat_act_sym{bits}")
    x, c = golden["x"], golden["grad_out"]
    x, c = (a.reshape(a.shape[0], -1) for a in (x, c))
    quantizer = llmqat(bits, variant="reference", scale_dtype=jnp.float32)
    out, vjp = jax.vjp(lambda w: quantizer.fake(w, {"scale": quantizer.init(w)["scale"]}), x)
    expected = golden["out"].reshape(out.shape)
    # The reference divides by s + 1e-6, s = (2^(b-1)-1)/max: relative 1e-6 * max / (2^(b-1)-1) on every level.
    reach = 2 ** (bits - 1) - 1
    excess = 2e-6 + 1e-6 * float(jnp.max(jnp.abs(x))) / reach
    np.testing.assert_allclose(out, expected, rtol=excess, atol=0)
    np.testing.assert_array_equal(vjp(c)[0], golden["grad_x"].reshape(out.shape))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["sym", "asym"])
def test_llmqat_activations(form, bits):
    with np.load(GOLDEN / f"llmqat_act_{form}{bits}.npz") as file:
        golden = {key: jnp.asarray(file[key]) for key in file}
    quantizer = dynamic(bits, symmetric=form == "sym", variant="reference")
    out, vjp = jax.vjp(lambda x: quantizer.fake(x, quantizer.init(x)), golden["x"])
    # The reference multiplies, divides and adds in another order: three roundings of numbers up to max|x| < 5.
    np.testing.assert_allclose(out, golden["out"], rtol=0, atol=3 * 5 * 2**-24)
    np.testing.assert_array_equal(vjp(golden["grad_out"])[0], golden["grad_x"])
