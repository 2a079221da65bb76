"""The compiled products against the reference: 8-bit ones bit for bit, float ones within float32 rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import ConfigError, DataError, FormatError, QuantizerError
from lowbit.formats import BFloat16, PackedTensor
from lowbit.kernels import library, matmul_int8
from lowbit.kernels.matrix import CompiledMatrix

LEVELS = {
    "binary": [-1, 1],
    "seq_ternary": [-2 / 3, 0, 2 / 3],
    "ternary": [-1, 0, 1],
    "seq2": [-0.75, -0.25, 0.25, 0.75],
    "int2": [-2, -1, 0, 1],
    "int3": range(-4, 4),
    "int4": range(-8, 8),
    "odd": [3, 5, 7, 9, 11],
    "falling": [3, 1, -1, -3],
    "int8": range(-128, 128),
}
CODEBOOK = [-1.0, -0.53, -0.18, 0.02, 0.31, 0.62, 1.0]
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module", params=library.supported())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


def packed(rng: np.random.Generator, levels: list, k: int, n: int, groups: int, zero: bool = False, **kwargs):
    dtype = kwargs.pop("dtype", np.float16)
    codes = rng.integers(0, len(levels), (k, n)).astype(np.uint8)
    scale = rng.uniform(0.1, 1, (groups, n)).astype(dtype)
    zeros = rng.uniform(-1, 1, (groups, n)).astype(dtype) if zero else None
    return PackedTensor.from_codes(codes, scale, np.array(levels, np.float32), "grid", zero=zeros, **kwargs)


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "grid": st.sampled_from(sorted(LEVELS)),
        "group": st.one_of(st.integers(1, 70), st.sampled_from([32, 64, 128])),
        "groups": st.integers(1, 4),
        "n": st.integers(1, 50),
        "tokens": st.one_of(st.integers(1, 17), st.sampled_from([32, 64])),
        "zero": st.booleans(),
        "dtype": st.sampled_from([np.float16, np.float32]),
        "threads": st.integers(1, 3),
    }
)


@given(case=cases)
@settings(max_examples=100, deadline=None)
def test_8_bit_products_equal_the_reference_bit_for_bit(isa: str, case: dict) -> None:
    """Every shape: odd k, one row, groups of any size. Scales and zeros are applied as the reference applies them."""
    rng = np.random.default_rng(case["seed"])
    shape = (case["group"] * case["groups"], case["n"], case["groups"])
    w = packed(rng, LEVELS[case["grid"]], *shape, case["zero"], dtype=case["dtype"])
    x = rng.normal(size=(case["tokens"], shape[0])).astype(np.float32) * np.float32(10.0 ** rng.integers(-3, 4))
    got = CompiledMatrix(w, isa, case["threads"]).matmul(x)
    np.testing.assert_array_equal(got, matmul_int8(x, w))


@given(case=cases, codebook=st.booleans())
@settings(max_examples=60, deadline=None)
def test_float_products_err_by_rounding_alone(isa: str, case: dict, codebook: bool) -> None:
    """A float32 sum of k products errs by at most k eps times the sum of magnitudes (Higham 3.1), in any order.

    Levels, zeros and scales add 4 roundings; the sum over groups, at most `groups` of them.
    """
    rng = np.random.default_rng(case["seed"])
    k = case["group"] * case["groups"]
    levels = CODEBOOK if codebook else LEVELS[case["grid"]]
    w = packed(rng, levels, k, case["n"], case["groups"], case["zero"], dtype=case["dtype"])
    x = rng.normal(size=(case["tokens"], k)).astype(np.float32)
    values = w.levels.astype(np.float64)[w.codes()]
    zeros = np.zeros_like(values)
    if w.zero is not None:
        zeros = np.repeat(w.zero.astype(np.float64), case["group"], axis=0)
    scales = np.repeat(w.scale.astype(np.float64), case["group"], axis=0)
    exact = x.astype(np.float64) @ ((values - zeros) * scales)
    magnitudes = np.abs(x.astype(np.float64)) @ ((np.abs(values) + np.abs(zeros)) * scales)
    got = CompiledMatrix(w, isa, case["threads"]).matmul(x, "float32")
    assert (np.abs(got - exact) <= (k + case["groups"] + 4) * EPS * magnitudes + 1e-30).all()


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("tokens", "k", "n"), [(1, 64, 16), (1, 1, 1), (5, 131, 37), (2, 300, 3)])
def test_float_matrices(isa: str, kind: str, transposed: bool, tokens: int, k: int, n: int) -> None:
    rng = np.random.default_rng(k)
    values = rng.normal(size=(n, k) if transposed else (k, n)).astype(np.float32)
    values.flat[:4] = [6e-8, -0.0, 65504, 1e-5][: values.size]  # subnormal and largest halves among them
    stored = BFloat16.from_float32(values) if kind == "bfloat16" else values.astype(kind)
    matrix = (stored.decode() if isinstance(stored, BFloat16) else stored).astype(np.float64)
    matrix = matrix.T if transposed else matrix
    x = rng.normal(size=(tokens, k)).astype(np.float32)
    got = CompiledMatrix(stored, isa, 2, transposed=transposed).matmul(x)
    bound = (k + 2) * EPS * (np.abs(x) @ np.abs(matrix))
    assert (np.abs(got - x.astype(np.float64) @ matrix) <= bound).all()


@pytest.mark.parametrize("grid", ["int4", "int8"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_longest_row_of_the_largest_numbers_does_not_overflow(isa: str, grid: str, sign: int) -> None:
    """k = 65,536, every activation 127 (or -127 against the lowest level), every code the lowest or the highest."""
    k, levels = 65_536, list(LEVELS[grid])
    codes = np.zeros((k, 2), np.uint8)
    codes[:, 1] = len(levels) - 1
    w = PackedTensor.from_codes(codes, np.ones((1, 2), np.float16), np.array(levels, np.float32), grid)
    x = np.full((1, k), sign * 127, np.float32)  # the scale of the token is 1
    got = CompiledMatrix(w, isa, 1).matmul(x)
    np.testing.assert_array_equal(got[0], np.array([sign * 127 * levels[i] * k for i in (0, -1)], np.float32))


def test_all_instruction_sets_give_the_same_bits_with_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    w = packed(rng, LEVELS["int3"], 192, 100, 3, zero=True)
    x = rng.normal(size=(9, 192)).astype(np.float32)
    results = [CompiledMatrix(w, isa, threads).matmul(x) for isa in library.supported() for threads in (1, 2, 5)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_more_threads_than_tiles_and_other_numbers_next(isa: str) -> None:
    rng = np.random.default_rng(0)
    w = packed(rng, LEVELS["seq2"], 64, 20, 1)
    x = rng.normal(size=(1, 64)).astype(np.float32)
    expected = matmul_int8(x, w)
    matrix = CompiledMatrix(w, isa, 1)
    for threads in (8, 2, 1, 3, 8, 1):
        matrix.threads = threads
        for _ in range(20):
            np.testing.assert_array_equal(matrix.matmul(x), expected)


def test_one_scale_for_the_tensor_and_a_transposed_one(isa: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 40)).astype(np.float32)
    codes = rng.integers(0, 4, (40, 21)).astype(np.uint8)
    levels = np.array(LEVELS["seq2"], np.float32)
    for transposed in (False, True):
        w = PackedTensor.from_codes(codes, np.full((1, 1), 0.3, np.float16), levels, "seq2", transposed=transposed)
        np.testing.assert_array_equal(CompiledMatrix(w, isa, 1).matmul(x), matmul_int8(x, w))


def test_zeros_and_the_smallest_activations(isa: str) -> None:
    w = packed(np.random.default_rng(2), LEVELS["int4"], 33, 5, 1)
    x = np.zeros((4, 33), np.float32)
    x[1, 3], x[2, 32], x[3, :] = 1e-45, -1e-38, 1e30
    np.testing.assert_array_equal(CompiledMatrix(w, isa, 1).matmul(x), matmul_int8(x, w))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 40])
def test_activations_that_are_not_finite_are_refused(isa: str, bad: float, place: int) -> None:
    w = packed(np.random.default_rng(3), LEVELS["int4"], 41, 5, 1)
    x = np.zeros((2, 41), np.float32)
    x[1, place] = bad
    with pytest.raises(DataError, match="activations hold NaN or infinity"):
        CompiledMatrix(w, isa, 2).matmul(x)


def test_damaged_codes_are_refused(isa: str) -> None:
    w = packed(np.random.default_rng(4), LEVELS["seq_ternary"], 11, 5, 1)
    w.packed[2, 1] = 250
    with pytest.raises(FormatError, match="byte 250 is no 't5' word"):
        CompiledMatrix(w, isa, 1)
    w = packed(np.random.default_rng(4), LEVELS["odd"], 11, 5, 1)
    w.packed[4, 0] |= 7
    with pytest.raises(FormatError, match="code 7 has no level: the grid has 5"):
        CompiledMatrix(w, isa, 1)
    w = packed(np.random.default_rng(4), LEVELS["seq2"], 11, 5, 1)
    w.packed[0, -1] |= 0xC0
    with pytest.raises(FormatError, match="padding after the last of 11 codes"):
        CompiledMatrix(w, isa, 1)
    w = packed(np.random.default_rng(4), LEVELS["seq2"], 11, 5, 1, zero=True)
    assert w.zero is not None
    w.zero[0, 0] = np.nan
    with pytest.raises(FormatError, match="zero holds NaN or infinity"):
        CompiledMatrix(w, isa, 1)


def test_activations_of_another_shape_or_name_are_refused(isa: str) -> None:
    matrix = CompiledMatrix(packed(np.random.default_rng(5), LEVELS["seq2"], 12, 3, 1), isa, 1)
    with pytest.raises(DataError, match=r"activations are float32\[2, 11\]\n  -> give float32\[t 12\]"):
        matrix.matmul(np.zeros((2, 11), np.float32))
    with pytest.raises(DataError, match="activations are float64"):
        matrix.matmul(np.zeros((2, 12)))
    with pytest.raises(ConfigError, match=r"unknown activations 'int4'\n  -> did you mean 'int8'"):
        matrix.matmul(np.zeros((2, 12), np.float32), "int4")


def test_a_row_too_long_for_exact_sums_is_refused(isa: str) -> None:
    wide = np.array([1, 254], np.float32)
    w = PackedTensor.from_codes(np.zeros((70_000, 1), np.uint8), np.ones((1, 1), np.float16), wide, "wide")
    with pytest.raises(
        QuantizerError, match=r"70000 products of up to 32258 may overflow .*\n  -> split k into groups"
    ):
        CompiledMatrix(w, isa, 1)
