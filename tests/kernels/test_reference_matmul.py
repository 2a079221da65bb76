"""The three forms of a low-bit product: equal up to rounding, and exact where they are integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import DataError, QuantizerError
from lowbit.formats import PackedTensor
from lowbit.kernels import matmul, matmul_int8, matmul_levels
from lowbit.kernels.reference import INT32_MAX, integer_levels, integer_matmul, quantize_activations

LEVELS = {
    "binary": [-1, 1],
    "ternary": [-2 / 3, 0, 2 / 3],
    "seq2": [-0.75, -0.25, 0.25, 0.75],
    "int3": list(range(-4, 4)),
    "int4": list(range(-8, 8)),
}
EPS = float(np.finfo(np.float32).eps)


def packed(
    seed: int, grid: str, k: int, n: int, groups: int, with_zero: bool = False, transposed: bool = False
) -> PackedTensor:
    rng = np.random.default_rng(seed)
    levels = np.array(LEVELS[grid], np.float32)
    scale = rng.uniform(0.1, 1, (groups, n)).astype(np.float16)
    zero = rng.uniform(-1, 1, (groups, n)).astype(np.float16) if with_zero else None
    codes = rng.integers(0, len(levels), (k, n)).astype(np.uint8)
    return PackedTensor.from_codes(codes, scale, levels, grid, zero=zero, transposed=transposed)


weights = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "grid": st.sampled_from(sorted(LEVELS)),
        "n": st.integers(1, 5),
        "with_zero": st.booleans(),
        "transposed": st.booleans(),
    }
)


def weights64(w: PackedTensor) -> np.ndarray:
    """The real numbers that the packed weights stand for, [k n]."""
    size = w.shape[0] // w.groups
    levels = w.levels.astype(np.float64)[w.codes()]
    if w.zero is not None:
        levels = levels - np.repeat(w.zero.astype(np.float64), size, axis=0)
    return levels * np.repeat(w.scale.astype(np.float64), size, axis=0)


def rounding_bound(x: np.ndarray, w: PackedTensor) -> np.ndarray:
    """A float32 sum of k products errs by at most about k eps times the sum of their magnitudes (Higham 3.1).

    The magnitudes are those before the zero is subtracted, since `matmul_levels` sums the two apart; 4 more
    roundings are the zero, the scale and the last products.
    """
    size = w.shape[0] // w.groups
    magnitudes = np.abs(w.levels.astype(np.float64)[w.codes()])
    if w.zero is not None:
        magnitudes = magnitudes + np.repeat(np.abs(w.zero.astype(np.float64)), size, axis=0)
    magnitudes = magnitudes * np.repeat(w.scale.astype(np.float64), size, axis=0)
    return (w.shape[0] + 4) * EPS * (np.abs(x.astype(np.float64)) @ magnitudes)


@given(spec=weights, group_size=st.integers(1, 9), groups=st.integers(1, 3), b=st.integers(1, 3))
def test_all_forms_are_the_product(spec: dict, group_size: int, groups: int, b: int) -> None:
    w = packed(k=group_size * groups, groups=groups, **spec)
    x = np.random.default_rng(spec["seed"]).normal(size=(b, w.shape[0])).astype(np.float32)
    exact = x.astype(np.float64) @ weights64(w)
    bound = rounding_bound(x, w) + 1e-30
    for form in (matmul, matmul_levels):
        got = form(x, w)
        assert got.dtype == np.float32
        assert (np.abs(got - exact) <= bound).all()


@given(spec=weights, group_size=st.integers(1, 9), groups=st.integers(1, 3), b=st.integers(1, 3))
def test_the_int8_form_errs_by_the_activations_alone(spec: dict, group_size: int, groups: int, b: int) -> None:
    w = packed(k=group_size * groups, groups=groups, **spec)
    x = np.random.default_rng(spec["seed"]).normal(size=(b, w.shape[0])).astype(np.float32)
    tokens = quantize_activations(x)
    rounded = tokens.codes.astype(np.float64) * tokens.scale
    got = matmul_int8(x, w)
    assert got.dtype == np.float32
    assert (np.abs(got - rounded @ weights64(w)) <= rounding_bound(rounded, w) + 1e-30).all()


@given(spec=weights, k=st.integers(1, 40), b=st.integers(1, 3))
def test_integer_activations_and_power_of_two_scales_are_exact(spec: dict, k: int, b: int) -> None:
    spec = spec | {"with_zero": False}
    w = packed(k=k, groups=1, **spec)
    levels = integer_levels(w.levels)
    w.scale[:] = 0.5
    rng = np.random.default_rng(spec["seed"])
    x = rng.integers(-127, 128, (b, k)).astype(np.float32)
    x[:, 0] = 127  # so that the scale of the token is exactly 1
    sums = x.astype(np.int64) @ levels.values[w.codes()].astype(np.int64)
    np.testing.assert_array_equal(matmul_int8(x, w), sums.astype(np.float32) * levels.step * np.float32(0.5))


@given(seed=st.integers(0, 2**31), k=st.integers(1, 300))
def test_integer_sums_equal_those_of_python(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (2, k)).astype(np.int8)
    values = rng.integers(-255, 256, (k, 3)).astype(np.int32)
    got = integer_matmul(codes, values)
    assert got.dtype == np.int32
    expected = [[sum(int(a) * int(v) for a, v in zip(row, col, strict=True)) for col in values.T] for row in codes]
    assert got.tolist() == expected


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_does_not_overflow(sign: int) -> None:
    k = 65_536
    codes = np.full((1, k), 127, np.int8)
    got = integer_matmul(codes, np.full((k, 1), sign * 255, np.int32))
    assert got.item() == sign * 127 * 255 * k
    assert abs(got.item()) <= INT32_MAX


def test_a_sum_that_may_overflow_is_refused() -> None:
    k = 66_400
    with pytest.raises(QuantizerError, match=r"66400 products of up to 32385 may overflow .*\n  -> split k into"):
        integer_matmul(np.zeros((1, k), np.int8), np.full((k, 1), 255, np.int32))


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        ([-1, 1], [-1, 1]),
        ([-2 / 3, 0, 2 / 3], [-1, 0, 1]),
        ([-0.75, -0.25, 0.25, 0.75], [-3, -1, 1, 3]),
        ([2, 3], [2, 3]),
        ([0, 255], [0, 1]),
        ([-3, 254, 255], [-3, 254, 255]),
    ],
)
def test_levels_become_integers_times_a_step(levels: list[float], values: list[int]) -> None:
    table = np.array(levels, np.float32)
    got = integer_levels(table)
    assert got.values.tolist() == values
    np.testing.assert_array_equal(got.values.astype(np.float32) * got.step, table)


def test_a_codebook_without_a_step_is_refused() -> None:
    with pytest.raises(QuantizerError, match=r"no small integers times a step\n  -> use matmul or matmul_levels"):
        integer_levels(np.array([0.1, 0.37], np.float32))


@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 30))
def test_activation_codes_are_within_half_a_step(seed: int, exponent: int) -> None:
    x = (np.random.default_rng(seed).normal(size=(3, 8)) * 2.0**exponent).astype(np.float32)
    x[1] = 0
    tokens = quantize_activations(x)
    assert tokens.codes.dtype == np.int8
    assert np.abs(tokens.codes[[0, 2]]).max(axis=1).tolist() == [127, 127]
    assert not tokens.codes[1].any()
    error = np.abs(tokens.codes.astype(np.float64) * tokens.scale - x)
    assert (error <= tokens.scale * (0.5 + 127 * EPS)).all()


def test_the_smallest_activations_stay_within_8_bits() -> None:
    for smallest in (1e-45, 2e-43, 1e-38):
        codes = quantize_activations(np.array([[smallest, -smallest]], np.float32)).codes
        assert codes[0, 0] == -codes[0, 1] >= 0


def test_activations_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="activations hold NaN or infinity"):
        quantize_activations(np.array([[1, np.nan]], np.float32))
