"""Weights that stay packed mean what the file's reader says, bit for bit; 8-bit activations what numpy says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowbit import formats, kernels
from lowbit.errors import QuantizerError
from lowbit.formats import PackedTensor
from lowbit.generation.packed import (
    PackedWeight,
    decode,
    packed_matmul,
    packed_matmul_int8,
    quantize_activations,
    unpack,
)
from lowbit.kernels import reference

EPS = float(np.finfo(np.float32).eps)
SEQ3 = np.array([-2 / 3, 0, 2 / 3], np.float32)
NF = np.array([-1, -0.6961928, -0.28444138, 0.0, 0.3379152, 1], np.float32)
LEVELS = {
    "binary": np.array([-1, 1], np.float32),
    "ternary": SEQ3,
    "seq2": np.array([-0.75, -0.25, 0.25, 0.75], np.float32),
    "int3": np.arange(-4, 4, dtype=np.float32),
    "int4": np.arange(-8, 8, dtype=np.float32),
    "uint8": np.arange(256, dtype=np.float32),
    "codebook": NF,
}


def make(levels, k=24, n=5, groups=1, zero=False, in_scale=False, per_tensor=False, seed=0):
    rng = np.random.default_rng(seed)
    shape = (1, 1) if per_tensor else (groups, n)
    scale = rng.uniform(0.1, 0.6, shape).astype(np.float16)
    return PackedTensor.from_codes(
        rng.integers(0, len(levels), (k, n)).astype(np.uint8),
        scale,
        levels,
        "grid",
        zero=np.round(rng.uniform(0, len(levels), shape)).astype(np.float16) if zero else None,
        in_scale=rng.uniform(0.5, 2, k).astype(np.float16) if in_scale else None,
    )


def on_device(w):
    def put(x):
        return None if x is None else jnp.asarray(x)

    return PackedWeight(
        put(w.packed), put(w.scale), put(w.zero), put(w.in_scale), tuple(map(float, w.levels)), w.shape[0]
    )


@pytest.mark.parametrize("num_levels", [2, 3, 4, 8, 16, 200])
@pytest.mark.parametrize("k", [1, 13, 40])
def test_unpacking_equals_the_formats(num_levels, k):
    codes = np.random.default_rng(k).integers(0, num_levels, (3, k)).astype(np.uint8)
    packed = formats.pack(codes, formats.packing_for(num_levels))
    np.testing.assert_array_equal(unpack(jnp.asarray(packed), num_levels, k), codes)


FORMS = {
    "channel": {},
    "groups": {"groups": 3},
    "tensor": {"per_tensor": True},
    "zero": {"groups": 2, "zero": True},
    "in_scale": {"in_scale": True},
}


CASES = [*((levels, "groups") for levels in LEVELS), *(("int3", form) for form in FORMS if form != "groups")]


@pytest.mark.parametrize(("levels", "form"), CASES)
def test_decoding_equals_the_reader_bit_for_bit(levels, form):
    w = make(LEVELS[levels], **FORMS[form])
    np.testing.assert_array_equal(jax.jit(decode)(on_device(w)), w.decode().T)


def test_a_stack_decodes_layer_by_layer():
    layers = [make(LEVELS["int3"], groups=2, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(on_device, layers))
    np.testing.assert_array_equal(decode(stacked), np.stack([w.decode().T for w in layers]))


def test_rows_are_those_of_an_embedding():
    w = make(LEVELS["int4"], n=9)
    index = jnp.asarray([8, 0, 0, 3])
    np.testing.assert_array_equal(decode(on_device(w).rows(index)), w.decode().T[np.asarray(index)])


@pytest.mark.parametrize("form", FORMS)
def test_product_is_that_of_decoded_weights(form):
    w = make(LEVELS["seq2"], **FORMS[form])
    x = np.random.default_rng(1).normal(size=(4, 24)).astype(np.float32)
    # Two float32 sums of k terms in any order differ by less than 2 k eps of the sum of magnitudes.
    bound = 2 * 24 * EPS * (np.abs(x) @ np.abs(w.decode()))
    assert (np.abs(packed_matmul(jnp.asarray(x), on_device(w)) - kernels.matmul(x, w)) <= bound).all()


@pytest.mark.parametrize(
    ("levels", "form"),
    [*((levels, "channel") for levels in LEVELS if levels != "codebook"), *(("int3", form) for form in FORMS)],
)
def test_integer_product_equals_numpys(levels, form):
    w = make(LEVELS[levels], **FORMS[form])
    x = np.random.default_rng(2).normal(size=(4, 24)).astype(np.float32)
    got = np.asarray(jax.jit(packed_matmul_int8)(jnp.asarray(x), on_device(w)))
    expected = kernels.matmul_int8(x, w)
    if form in ("channel", "tensor", "in_scale"):
        # Exact sums. Steps are powers of two, except the ternary grid's: its product rounds three times, and compilers
        # take the factors in an order of their own.
        np.testing.assert_allclose(got, expected, rtol=3 * EPS if levels == "ternary" else 0, atol=0)
    else:  # a compiler may fuse the products with scales into sums: 2 roundings less for each of 3 groups
        size = np.abs(x).max() * np.abs(w.levels).max() * 2 * 24 * np.abs(w.scale).max()
        assert np.abs(got - expected).max() <= 6 * EPS * size


@pytest.mark.parametrize("k", [1, 5, 64])
def test_rounding_of_activations_equals_numpys(k):
    rng = np.random.default_rng(k)
    x = rng.normal(size=(200, k)).astype(np.float32) * np.float32(10) ** rng.integers(-6, 6, (200, 1))
    x = x.astype(np.float32)
    x[0] = 0
    x[1] = np.arange(k) + 0.5
    codes, scale = jax.jit(quantize_activations)(jnp.asarray(x))
    expected = reference.quantize_activations(x)
    np.testing.assert_array_equal(scale, expected.scale)
    np.testing.assert_array_equal(codes, expected.codes)


def test_activations_that_are_not_finite_are_not_hidden():
    x = jnp.asarray([[1.0, jnp.nan] * 12, [1.0, jnp.inf] * 12], jnp.float32)
    assert not np.isfinite(packed_matmul_int8(x, on_device(make(LEVELS["seq2"])))).any()


def test_refuses_what_has_no_integer_sums():
    x = jnp.ones((1, 24), jnp.float32)
    with pytest.raises(QuantizerError, match=r"no whole numbers of a step\n  -> take float activations"):
        packed_matmul_int8(x, on_device(make(NF)))
    long = make(LEVELS["uint8"], k=70_000, n=1)
    with pytest.raises(QuantizerError, match="70000 products of up to 32385 may overflow an int32 sum"):
        packed_matmul_int8(jnp.ones((1, 70_000), jnp.float32), on_device(long))
