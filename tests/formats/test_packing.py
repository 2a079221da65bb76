"""Packings: the byte each code lands in, the number of bytes, and what an unpacker refuses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import FormatError
from lowbit.formats import PACKINGS, pack, packing_for, row_bytes, unpack

packings = st.sampled_from(sorted(PACKINGS))


def matrix(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, np.uint8)


@given(packing=packings, n=st.integers(0, 4), k=st.integers(0, 70), seed=st.integers(0, 2**32 - 1))
def test_unpacking_gives_back_the_codes_at_any_length(packing: str, n: int, k: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, PACKINGS[packing].base, (n, k)).astype(np.uint8)
    packed = pack(codes, packing)
    assert packed.shape == (n, row_bytes(packing, k))
    np.testing.assert_array_equal(unpack(packed, packing, k), codes)


@given(packing=packings, k=st.integers(0, 10**9))
def test_row_bytes_is_the_bits_rounded_up_to_whole_bytes(packing: str, k: int) -> None:
    bits = {"u1": 1, "u2": 2, "u3": 3, "u4": 4, "u8": 8}
    expected = (k + 4) // 5 if packing == "t5" else (k * bits[packing] + 7) // 8
    assert row_bytes(packing, k) == expected


@given(k=st.integers(0, 40), packing=st.sampled_from(["u1", "u2", "u3", "u4", "u8"]), seed=st.integers(0, 999))
def test_power_of_two_packings_are_one_bit_string_with_low_bits_first(k: int, packing: str, seed: int) -> None:
    base = PACKINGS[packing].base
    codes = np.random.default_rng(seed).integers(0, base, k).astype(np.uint8)
    whole = sum(int(code) << i * int(math.log2(base)) for i, code in enumerate(codes))
    assert pack(codes[None], packing).tobytes() == whole.to_bytes(row_bytes(packing, k), "little")


# The table of docs/format.md.
@pytest.mark.parametrize(
    ("packing", "codes", "expected"),
    [
        ("u1", [1, 0, 0, 0, 0, 0, 1, 1, 1], [0b1100_0001, 0b1]),
        ("t5", [2, 1, 0, 0, 2, 1], [2 + 3 + 2 * 81, 1]),
        ("t5", [2, 2, 2, 2, 2], [242]),
        ("u2", [3, 0, 1, 2, 1], [0b10_01_00_11, 0b01]),
        ("u3", [1, 2, 3, 4, 5, 6, 7, 0], [0xD1, 0x58, 0x1F]),
        ("u3", [7], [0b111]),
        ("u3", [7, 7, 7], [0xFF, 0x01]),
        ("u4", [0xA, 0xB, 0xC], [0xBA, 0x0C]),
        ("u8", [0, 255], [0, 255]),
    ],
)
def test_bytes(packing: str, codes: list[int], expected: list[int]) -> None:
    assert pack(matrix([codes]), packing).tolist() == [expected]


@pytest.mark.parametrize(
    ("levels", "packing"),
    [(2, "u1"), (3, "t5"), (4, "u2"), (5, "u3"), (8, "u3"), (9, "u4"), (16, "u4"), (17, "u8"), (256, "u8")],
)
def test_the_number_of_levels_chooses_the_packing(levels: int, packing: str) -> None:
    assert packing_for(levels) == packing


def test_bits_of_storage() -> None:
    assert {name: packing.bits for name, packing in PACKINGS.items()} == {
        "u1": 1.0,
        "t5": 1.6,
        "u2": 2.0,
        "u3": 3.0,
        "u4": 4.0,
        "u8": 8.0,
    }


@pytest.mark.parametrize("levels", [0, 1, 257])
def test_a_grid_too_small_or_too_large_is_refused(levels: int) -> None:
    with pytest.raises(FormatError, match=f"grid of {levels} levels cannot be packed"):
        packing_for(levels)


@pytest.mark.parametrize(("packing", "code"), [("u1", 2), ("t5", 3), ("u2", 4), ("u3", 8), ("u4", 16)])
def test_a_code_too_large_is_refused(packing: str, code: int) -> None:
    with pytest.raises(FormatError, match=f"code {code} does not fit packing '{packing}'"):
        pack(matrix([[0, code]]), packing)


@pytest.mark.parametrize("packing", ["u1", "t5", "u2", "u3", "u4"])
def test_every_bit_of_the_padding_must_be_zero(packing: str) -> None:
    digits = PACKINGS[packing].digits
    for k in range(1, digits):
        packed = pack(matrix([[0] * k]), packing)
        last = packed.shape[1] - 1
        packed[0, last] = PACKINGS[packing].base ** digits - 1 if packing == "t5" else 0x80
        with pytest.raises(FormatError, match="padding after the last of"):
            unpack(packed, packing, k)


@pytest.mark.parametrize("byte", [243, 255])
def test_a_byte_that_no_five_trits_give_is_refused(byte: int) -> None:
    with pytest.raises(FormatError, match=f"byte {byte} is no 't5' word: the largest is 242"):
        unpack(matrix([[byte]]), "t5", 5)


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(FormatError, match="rows of 9 codes packed as 'u2' take 3 bytes, not 2"):
        unpack(matrix([[0, 0]]), "u2", 9)


def test_an_unknown_packing_and_a_negative_length_are_refused() -> None:
    with pytest.raises(FormatError, match=r"unknown packing 'u5'\n  -> choose from u1, t5, u2"):
        row_bytes("u5", 3)
    with pytest.raises(FormatError, match="row of -1 codes"):
        row_bytes("u2", -1)


def test_codes_must_be_a_matrix() -> None:
    with pytest.raises(FormatError, match=r"codes are uint8\[3\]"):
        pack(np.zeros(3, np.uint8), "u2")
