"""The linear layer of integers: equal to 64-bit integers bit for bit, near the float product, and without a float."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.errors import QuantizerError
from lowbit.numerics.fixed_point import LONGEST_SHIFT, Multiplier, multiplier, rescale, rescaled_on_host, wide_product
from lowbit.numerics.grids import Grid
from lowbit.numerics.integer import Codes, integer_levels, integer_linear
from lowbit.numerics.qtensor import QTensor
from lowbit.numerics.quantizers import paretoq, rtn

EXTREMES = np.array([-(2**31), -(2**31) + 1, -(2**16) - 1, -(2**15), -1, 0, 1, 2**15, 2**16, 2**31 - 2, 2**31 - 1])
LARGEST = 2**31 - 1
INPUTS, OUTPUTS = Codes(0.031, -7), Codes(0.27, 5)


def kernel_of(quantizer, k=48, n=6, seed=0):
    w = jnp.asarray(np.random.default_rng(seed).standard_normal((k, n)).astype(np.float32))
    return quantizer.encode(w, quantizer.init(w))


def test_products_of_63_bits_are_exact():
    b = np.array([0, 1, 2**15, 2**16 - 1, 2**30, LARGEST])
    a, b = (part.reshape(-1) for part in np.meshgrid(EXTREMES, b))
    high, low = jax.jit(wide_product)(jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32))
    np.testing.assert_array_equal(np.asarray(high, np.int64) * 2**32 + np.asarray(low, np.int64), a * b)


@pytest.mark.parametrize("shift", [1, 2, 16, 30, 31, 32, 33, 34, 47, 61, LONGEST_SHIFT])
def test_rescaling_is_that_of_64_bit_integers(shift):
    rng = np.random.default_rng(shift)
    x = np.concatenate([EXTREMES, rng.integers(-(2**31), 2**31, 200), rng.integers(-300, 300, 200)])
    significands = np.array([0, 2**30, 2**30 + 1, 3 * 2**29, LARGEST])
    by = Multiplier(significands.astype(np.int32), np.full(len(significands), shift, np.int32))
    rows = np.repeat(x[:, None], len(significands), axis=1)
    found = jax.jit(rescale)(jnp.asarray(rows, jnp.int32), by)
    np.testing.assert_array_equal(found, rescaled_on_host(rows, by))


def test_ties_go_upwards():
    half = multiplier(np.array([0.5]))
    x = jnp.asarray([[-3], [-2], [-1], [0], [1], [2], [3]], jnp.int32)
    assert rescale(x, half)[:, 0].tolist() == [-1, -1, 0, 0, 1, 1, 2]


def test_multipliers_are_the_nearest():
    values = np.array([0.0, 2.0**-32, 1e-9, 1 / 3, 0.5, 1.0, 1 - 2.0**-40, 7.3, 2.0**29])
    found = multiplier(values)
    exact = found.significand.astype(np.float64) * 2.0 ** -found.shift.astype(np.float64)
    np.testing.assert_allclose(exact, values, rtol=2.0**-31)
    tiny = multiplier(np.array([2.0**-40]))
    assert int(tiny.significand[0]) == 2**22
    assert int(tiny.shift[0]) == LONGEST_SHIFT
    for value in (-1.0, np.nan, np.inf, 2.0**30):
        with pytest.raises(QuantizerError, match=r"a factor of .* is not in \[0, 2\^30\)"):
            multiplier(np.array([1.0, value]))


CASES = {
    "int8": rtn(8),
    "int8 in one scale": rtn(8, "tensor"),
    "zero point 8": rtn(8, symmetric=False),
    "zero point 4": rtn(4, symmetric=False),
    "int4": rtn(4),
    "int3": rtn(3),
    "half-integers 2": paretoq(2),
    "ternary": paretoq(1.58),
    "binary": paretoq(1),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_64_bit_integers_and_near_the_float_product(name):
    kernel = kernel_of(CASES[name])
    k, n = kernel.codes.shape
    rng = np.random.default_rng(3)
    bias = rng.standard_normal(n)
    linear = integer_linear(kernel, bias, INPUTS, OUTPUTS)
    x = rng.integers(-128, 128, (4, 5, k)).astype(np.int8)
    x[0, 0], x[0, 1] = -128, 127
    found = np.asarray(jax.jit(lambda linear, x: linear(x))(linear, x), np.int64)

    # The same by 64-bit integers, from the decoded weights: none of the layer's own arithmetic.
    unit = integer_levels(kernel.grid)[1]
    steps = np.broadcast_to(np.asarray(kernel.scale, np.float64)[0], (n,)) * unit
    whole = np.rint(np.asarray(kernel.decode(), np.float64) / steps).astype(np.int64)
    sums = (x.astype(np.int64) - INPUTS.zero) @ whole + np.rint(bias / (INPUTS.scale * steps)).astype(np.int64)
    by = multiplier(INPUTS.scale * steps / OUTPUTS.scale)
    np.testing.assert_array_equal(found, np.clip(rescaled_on_host(sums, by) + OUTPUTS.zero, -128, 127))

    real = INPUTS.scale * (x.astype(np.float64) - INPUTS.zero) @ np.asarray(kernel.decode(), np.float64) + bias
    held = np.clip(real, OUTPUTS.scale * (-128 - OUTPUTS.zero), OUTPUTS.scale * (127 - OUTPUTS.zero))
    # Half a step of the output, half a step of the bias, the multiplier's last bit, and the rounding of levels and
    # decoded weights to float32, each 2^-24 of a sum of magnitudes.
    magnitude = INPUTS.scale * np.abs(x.astype(np.float64) - INPUTS.zero) @ np.abs(np.asarray(kernel.decode()))
    bound = 0.5 * OUTPUTS.scale + 0.5 * INPUTS.scale * steps + 2.0**-31 * np.abs(real) + 4 * 2.0**-24 * magnitude
    assert (np.abs(OUTPUTS.scale * (found - OUTPUTS.zero) - held) <= bound).all()
    assert (np.abs(real - held) == 0).mean() > 0.5  # most of it is no clipping


@pytest.mark.parametrize(("bits", "width"), [(8, 8), (4, 4), (3, 4), (2, 2), (1.58, 2)])
def test_narrow_weights_are_stored_narrow(bits, width):
    linear = integer_linear(kernel_of(rtn(bits)), None, INPUTS, OUTPUTS)
    assert linear.width == width
    assert linear.packed.nbytes == 48 * 6 * width // 8


def test_extreme_sums_neither_wrap_nor_lose_a_bit():
    k = 2**15
    codes = np.zeros((k, 2), np.uint8)
    codes[:, 1] = 255
    kernel = QTensor(jnp.asarray(codes), jnp.ones((1, 2), jnp.float16), None, rtn(8).grid)
    linear = integer_linear(kernel, None, Codes(1.0, 0), Codes(2.0**22, 0))
    x = jnp.stack([jnp.full((k,), -128, jnp.int8), jnp.full((k,), 127, jnp.int8)])
    assert linear.sums(x).tolist() == [[2**29, -127 * 2**22], [-127 * 2**22, 127 * 127 * k]]
    assert linear(x).tolist() == [[127, -127], [-127, 126]]


@pytest.mark.parametrize("zero", [5, -5, 127, -128])
def test_outputs_beyond_32_bits_saturate_on_their_own_side(zero):
    """Sums of 2^21 times 2^12 leave int32 before the zero point of the outputs is added."""
    kernel = QTensor(jnp.full((2**14, 1), 255, jnp.uint8), jnp.ones((1, 1), jnp.float16), None, rtn(8).grid)
    linear = integer_linear(kernel, None, Codes(1.0, 0), Codes(2.0**-12, zero))
    x = np.stack([np.full(2**14, value, np.int8) for value in (-128, -1, 0, 1, 127)])
    sums = 127 * x.astype(np.int64).sum(axis=-1, keepdims=True)
    assert sums[-1] * 2**12 > LARGEST
    expected = np.clip(sums * 2**12 + zero, -128, 127)
    np.testing.assert_array_equal(linear(jnp.asarray(x)), expected)


def dtypes_in(jaxpr):
    """Every dtype of every variable and constant, those of inner programs (jit, scan, cond) included."""
    found = {str(v.aval.dtype) for v in (*jaxpr.invars, *jaxpr.constvars) if hasattr(v.aval, "dtype")}
    for equation in jaxpr.eqns:
        found |= {str(v.aval.dtype) for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "dtype")}
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= dtypes_in(inner)
    return found


def stack_of(layers, quantizer):
    linears = [
        integer_linear(kernel_of(quantizer, 16, 16, seed), np.linspace(-1, 1, 16), OUTPUTS, OUTPUTS)
        for seed in range(layers)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *linears)


@pytest.mark.parametrize("quantizer", [rtn(8, symmetric=False), paretoq(2)])
def test_no_operation_of_the_layer_is_a_float_one(quantizer):
    @jax.jit
    def model(stack, x):
        return jax.lax.scan(lambda x, linear: (linear(x), None), x, stack)[0]

    stack, x = stack_of(3, quantizer), jnp.zeros((2, 16), jnp.int8)
    found = dtypes_in(jax.make_jaxpr(model)(stack, x).jaxpr)
    assert found <= {"int8", "uint8", "int32", "uint32", "bool"}, found
    assert {"int8", "int32"} <= found
    # The walk sees what is inside of jit and of scan.
    inside = jax.make_jaxpr(lambda x: jax.lax.scan(lambda y, _: (jax.jit(jnp.sin)(y), None), x, None, length=2)[0])
    assert "float32" in dtypes_in(inside(jnp.zeros(2)).jaxpr)


def test_what_integers_cannot_do_is_refused():
    kernel = kernel_of(rtn(8))
    with pytest.raises(QuantizerError, match=r"scales of shape \[3, 6\] for codes \[48, 6\] has more than one scale"):
        integer_linear(kernel_of(rtn(8, 16)), None, INPUTS, OUTPUTS)
    with pytest.raises(QuantizerError, match="levels of the grid 'odd' are no multiples of one unit"):
        integer_levels(Grid("odd", (-1.0, 0.3, 1.0)))
    with pytest.raises(QuantizerError, match="the scale of the outputs is 0"):
        integer_linear(kernel, None, INPUTS, Codes(0.0, 0))
    with pytest.raises(QuantizerError, match="the zero point of the inputs is 128"):
        integer_linear(kernel, None, Codes(1.0, 128), OUTPUTS)
    with pytest.raises(QuantizerError, match=r"sums of 48 products and the bias reach .*e.*, beyond 32 bits"):
        integer_linear(kernel, np.full(6, 1e9), INPUTS, OUTPUTS)
    half = QTensor(kernel.codes, kernel.scale, kernel.scale * 0 + jnp.float16(0.25), kernel.grid)
    with pytest.raises(QuantizerError, match="the zero points of the weights are no integers"):
        integer_linear(half, None, INPUTS, OUTPUTS)
