"""Coders of blocks, against the gguf library where it has a decoder, else against the layout written out."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as library_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.errors import ModelError
from lowbit.gguf import CODERS, TYPES, coder_for, named_type
from lowbit.gguf.blocks import dequantize

IDS = [coder.kind.name for coder in CODERS]


def random_blocks(coder, seed=0, blocks=6):
    rng = np.random.default_rng(seed)
    integers = np.array(coder.integers, np.int8)[rng.integers(0, len(coder.integers), (blocks, coder.kind.block))]
    return integers, rng.normal(size=blocks).astype(np.float16)


@pytest.mark.parametrize("coder", CODERS, ids=IDS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_integers_come_back(coder, seed):
    integers, d = random_blocks(coder, seed)
    raw = coder.encode(integers, d)
    assert raw.dtype == np.uint8
    assert raw.shape == (len(d), coder.kind.nbytes)
    back, scales = coder.decode(raw)
    np.testing.assert_array_equal(back, integers)
    np.testing.assert_array_equal(scales, d)


@pytest.mark.parametrize(
    "coder", [coder for coder in CODERS if coder.kind.name not in ("Q1_0", "Q2_0")], ids=lambda coder: coder.kind.name
)
def test_the_gguf_library_decodes_the_same_weights(coder):
    integers, d = random_blocks(coder)
    rows = coder.encode(integers, d).reshape(2, -1)
    theirs = library_dequantize(rows, GGMLQuantizationType(coder.kind.number))
    np.testing.assert_array_equal(theirs.view(np.uint32), dequantize(rows, coder).view(np.uint32))
    np.testing.assert_array_equal(theirs.reshape(len(d), -1), integers * d.astype(np.float32)[:, None])


def test_q1_0_is_d_and_a_bit_for_each_sign():
    integers = np.full((1, 128), -1, np.int8)
    integers[0, [0, 9, 127]] = 1
    raw = coder_for(named_type("Q1_0")).encode(integers, np.array([1.5], np.float16))
    assert raw[0].tobytes().hex() == "003e" + "01" + "02" + "00" * 13 + "80"


def test_q2_0_is_d_and_four_codes_a_byte():
    integers = np.full((1, 64), -1, np.int8)
    integers[0, :6] = [-1, 0, 1, 2, 2, -1]
    raw = coder_for(named_type("Q2_0")).encode(integers, np.array([-2.0], np.float16))
    assert raw[0].tobytes().hex() == "00c0" + "e4" + "03" + "00" * 14


@pytest.mark.parametrize(("name", "byte"), [("Q2_K", 3), ("Q3_K", 100), ("Q2_K", 81)])
def test_blocks_with_scales_within_them_are_no_integers(name, byte):
    coder = coder_for(named_type(name))
    raw = coder.encode(*random_blocks(coder))
    raw[1, byte] ^= 1
    with pytest.raises(ModelError, match=f"{name} blocks have scales within them"):
        coder.decode(raw)


def test_a_type_of_another_name_is_refused():
    with pytest.raises(ModelError, match=r"no tensor type 'Q1_O'\n.*did you mean 'Q1_0'"):
        named_type("Q1_O")
    assert coder_for(named_type("IQ2_S")) is None
    assert len(TYPES) == len({kind.name for kind in TYPES.values()})


def test_types_are_those_of_the_gguf_library():
    from gguf import GGML_QUANT_SIZES

    for kind, sizes in GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # the library counts a float32 scale, ggml two of fp16
            assert TYPES[kind.value] == (kind.name, kind.value, *sizes)
