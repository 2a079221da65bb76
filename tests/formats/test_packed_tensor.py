"""PackedTensor and BFloat16: what they decode to, bit for bit, and what they refuse."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import FormatError
from lowbit.formats import BFloat16, PackedTensor, decode
from lowbit.formats.tensors import check_float_contents

LEVELS = {size: np.linspace(-1.3, 1.7, size, dtype=np.float32) for size in (2, 3, 4, 7, 16, 256)}


def random_tensor(
    seed: int, levels: int, k: int, n: int, groups: int, with_zero: bool = False, transposed: bool = False
) -> PackedTensor:
    rng = np.random.default_rng(seed)
    shape = (1, 1) if groups == 0 else (groups, n)
    return PackedTensor.from_codes(
        rng.integers(0, levels, (k, n)).astype(np.uint8),
        rng.uniform(0.01, 2.0, shape).astype(np.float16),
        LEVELS[levels],
        f"grid{levels}",
        zero=rng.uniform(-1, 1, shape).astype(np.float16) if with_zero else None,
        transposed=transposed,
    )


@given(
    seed=st.integers(0, 2**31),
    levels=st.sampled_from(sorted(LEVELS)),
    group_size=st.integers(1, 7),
    groups=st.integers(0, 3),
    n=st.integers(1, 5),
    with_zero=st.booleans(),
    transposed=st.booleans(),
)
def test_decode_is_the_formula_bit_for_bit(
    seed: int, levels: int, group_size: int, groups: int, n: int, with_zero: bool, transposed: bool
) -> None:
    k = group_size * max(groups, 1)
    w = random_tensor(seed, levels, k, n, groups, with_zero, transposed)
    scale = np.broadcast_to(w.scale, (max(groups, 1), n)).astype(np.float32)
    zero = np.float32(0) if w.zero is None else np.broadcast_to(w.zero, scale.shape).astype(np.float32)
    codes = w.codes()
    assert codes.shape == (k, n)
    centred = w.levels[codes] - np.repeat(zero, group_size, axis=0) if with_zero else w.levels[codes]
    expected = centred * np.repeat(scale, group_size, axis=0)
    got = w.decode()
    assert got.dtype == np.float32
    assert got.shape == ((n, k) if transposed else (k, n))
    np.testing.assert_array_equal((got.T if transposed else got).view(np.uint32), expected.view(np.uint32))


def test_decode_subtracts_before_it_scales() -> None:
    # In float32 (1/3 - 0.1) * 3 and 1/3 * 3 - 0.1 * 3 differ in the last place.
    levels = np.array([0.0, 1 / 3], np.float32)
    one = np.array([[1]], np.uint8)
    zero, scale = np.float32([[0.1]]), np.float32([[3]])
    w = PackedTensor.from_codes(one, scale, levels, "x", zero=zero)
    assert w.decode().item() == float((levels[1] - zero[0, 0]) * scale[0, 0])
    assert w.decode().item() != float(levels[1] * scale[0, 0] - zero[0, 0] * scale[0, 0])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [0, 1, 2])
def test_some_outputs_decode_as_they_do_in_the_whole(transposed: bool, groups: int) -> None:
    w = random_tensor(0, 16, 8, 6, groups, with_zero=True, transposed=transposed)
    whole = w.decode() if transposed else w.decode().T
    for index in (np.array([4, 1, 4]), slice(2, 5)):
        part = w.outputs(index).decode()
        np.testing.assert_array_equal(part if transposed else part.T, whole[index])


def test_sizes() -> None:
    w = random_tensor(0, 3, 64, 10, 2)
    assert w.groups == 2
    assert w.bits == pytest.approx(np.log2(3))
    assert w.nbytes == 10 * 13 + 2 * 10 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (0, 3)}, r"shape \[k n\] = \[0, 3\] is empty"),
        ({"packing": "u4"}, "4 levels are packed as 'u4'\n  -> pack them as 'u2'"),
        ({"shape": (9, 3)}, r"codes are uint8\[3, 2\], but \[k n\] = \[9, 3\] packed as 'u2' is uint8\[3, 3\]"),
        ({"shape": (8, 4)}, r"codes are uint8\[3, 2\]"),
        ({"scale": np.ones((1, 3))}, "scale is float64\n  -> store scales as float16 or float32"),
        ({"scale": np.ones((3, 3), np.float16)}, r"scale has shape \[3, 3\], which does not fit"),
        ({"scale": np.ones((1, 2), np.float16)}, r"scale has shape \[1, 2\]"),
        ({"scale": np.ones(3, np.float16)}, r"scale has shape \[3\]"),
        ({"zero": np.ones((1, 3), np.float32)}, r"zero is float32\[1, 3\], scale is float16\[1, 3\]"),
        ({"zero": np.ones((1, 1), np.float16)}, r"zero is float16\[1, 1\]"),
        ({"levels": np.array([1, 1, 2, 3], np.float32)}, "levels repeat or are not finite"),
        ({"levels": np.array([1, np.inf, 2, 3], np.float32)}, "levels repeat or are not finite"),
        ({"levels": np.ones((1, 4), np.float32)}, r"levels are float32\[1, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    w = random_tensor(0, 4, 8, 3, 1)
    w.validate()
    with pytest.raises(FormatError, match=message):
        replace(w, **change).validate()


def test_a_code_without_a_level_is_refused() -> None:
    codes = np.array([[6], [7]], np.uint8)
    with pytest.raises(FormatError, match="code 7 has no level: the grid has 7"):
        PackedTensor.from_codes(codes, np.ones((1, 1), np.float16), LEVELS[7], "seven")
    whole = PackedTensor.from_codes(codes - 1, np.ones((1, 1), np.float16), LEVELS[7], "seven")
    damaged = replace(whole, packed=np.array([[0b111_111]], np.uint8))
    for use in (damaged.codes, damaged.decode, damaged.check_contents):
        with pytest.raises(FormatError, match="code 7 has no level"):
            use()


@pytest.mark.parametrize("part", ["scale", "zero"])
def test_a_scale_that_is_not_finite_is_refused(part: str) -> None:
    w = replace(random_tensor(0, 4, 8, 3, 1, with_zero=True), **{part: np.full((1, 3), np.nan, np.float16)})
    for use in (w.decode, w.check_contents):
        with pytest.raises(FormatError, match=f"{part} holds NaN or infinity"):
            use()


@given(high=st.integers(0, 2**16 - 1), low=st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]))
def test_bfloat16_is_the_nearest_with_ties_to_even(high: int, low: int) -> None:
    raw = high << 16 | low
    value = np.array([raw], np.uint32).view(np.float32)
    got = BFloat16.from_float32(value)
    if np.isnan(value[0]):
        assert np.isnan(got.decode()[0])
        return
    up = low > 0x8000 or (low == 0x8000 and high % 2 == 1)
    assert int(got.bits[0]) == high + int(up)


@given(st.integers(0, 2**16 - 1))
def test_every_bfloat16_decodes_to_its_own_bits(bits: int) -> None:
    decoded = BFloat16(np.array([bits], np.uint16)).decode()
    assert decoded.tobytes() == struct.pack("<HH", 0, bits)


def test_decode_covers_every_kind_of_tensor() -> None:
    half = np.array([1.5, -2], np.float16)
    for stored in (half, half.astype(np.float32), BFloat16.from_float32(half.astype(np.float32))):
        got = decode(stored)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, [1.5, -2])


def test_float_contents_must_be_finite() -> None:
    for tensor in (np.array([np.inf], np.float16), BFloat16(np.array([0x7FC0], np.uint16))):
        with pytest.raises(FormatError, match="the tensor holds NaN or infinity"):
            check_float_contents(tensor)
