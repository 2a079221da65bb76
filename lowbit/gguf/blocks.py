"""Blocks of GGUF whose weights are an integer times one fp16 number: integers to bytes and back, without loss.

llama.cpp's own quantizers look for scales and codes anew and do not find those that a model was trained with. Here the
codes are known: `weight = integer * d` with d of the block, and the bytes follow from the layout alone (ggml-common.h,
ggml-quants.c). All arrays are `[blocks ...]`; b is the number of weights in a block.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import ModelError
from lowbit.gguf.types import TensorType, named_type

Integers = NDArray[np.int8]
Scales = NDArray[np.float16]
Bytes = NDArray[np.uint8]

_D_BYTES = 2
# Q2_K: d * 2 * q - dmin * 3 with dmin = d gives -3, -1, 1, 3. A byte holds a scale and, above it, a minimum.
_Q2_K_STEP, _Q2_K_MINIMUM = 2, 3
_Q2_K_SCALES = _Q2_K_STEP | _Q2_K_MINIMUM << 4
# Q3_K: sixteen scales of 6 bits, all 33, which stands for 1; low nibbles in eight bytes, high pairs in four.
_Q3_K_SCALES = np.array([0x11] * 8 + [0xAA] * 4, np.uint8)
_Q3_K_MIDDLE = 4


class Coder(NamedTuple):
    """How one type holds integers.

    Attributes:
      kind: the type.
      integers: what a weight may be, in units of d.
      encode: (i8[blocks b], f16[blocks]) -> u8[blocks bytes].
      decode: the inverse; raises ModelError for blocks of that type with finer scales than `encode` writes.
    """

    kind: TensorType
    integers: tuple[int, ...]
    encode: Callable[[Integers, Scales], Bytes]
    decode: Callable[[Bytes], tuple[Integers, Scales]]


def coder_for(kind: TensorType) -> Coder | None:
    """Returns the coder of a type, or None for a type whose blocks are more than integers times one number."""
    return next((coder for coder in CODERS if coder.kind == kind), None)


def dequantize(data: Bytes, coder: Coder) -> NDArray[np.float32]:
    """Returns the weights f32[rows k] of rows of blocks u8[rows row_bytes].

    Raises:
      ModelError: as `Coder.decode`.
    """
    integers, d = coder.decode(data.reshape(-1, coder.kind.nbytes))
    return (integers.astype(np.float32) * d.astype(np.float32)[:, None]).reshape(len(data), -1)


def _with_d_first(d: Scales, body: Bytes) -> Bytes:
    return np.concatenate([_bytes_of(d), body], axis=1)


def _with_d_last(body: Bytes, d: Scales) -> Bytes:
    return np.concatenate([body, _bytes_of(d)], axis=1)


def _bytes_of(d: Scales) -> Bytes:
    return np.ascontiguousarray(d.astype("<f2")).view(np.uint8).reshape(-1, _D_BYTES)


def _d_of(raw: Bytes) -> Scales:
    return np.ascontiguousarray(raw).view("<f2").reshape(-1).astype(np.float16)


def _encode_q1_0(integers: Integers, d: Scales) -> Bytes:
    return _with_d_first(d, np.packbits(integers > 0, axis=1, bitorder="little"))


def _decode_q1_0(raw: Bytes) -> tuple[Integers, Scales]:
    bits = np.unpackbits(raw[:, _D_BYTES:], axis=1, bitorder="little").astype(np.int8)
    return 2 * bits - np.int8(1), _d_of(raw[:, :_D_BYTES])


def _encode_q2_0(integers: Integers, d: Scales) -> Bytes:
    return _with_d_first(d, _join_pairs((integers + 1).astype(np.uint8).reshape(len(d), -1, 4), axis=2))


def _decode_q2_0(raw: Bytes) -> tuple[Integers, Scales]:
    pairs = _cut_pairs(raw[:, _D_BYTES:, None], axis=2).reshape(len(raw), -1)
    return pairs.astype(np.int8) - np.int8(1), _d_of(raw[:, :_D_BYTES])


def _join_pairs(codes: Bytes, axis: int) -> Bytes:
    """Four codes of 2 bits along an axis become one byte, the first in the low bits."""
    shape = [1] * codes.ndim
    shape[axis] = 4
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(shape)
    return np.bitwise_or.reduce(codes << shifts, axis=axis)


def _cut_pairs(packed: Bytes, axis: int) -> Bytes:
    """The inverse of `_join_pairs`; `axis` is there with length 1."""
    shape = [1] * packed.ndim
    shape[axis] = 4
    return packed >> np.array([0, 2, 4, 6], np.uint8).reshape(shape) & np.uint8(3)


def _join_planes(codes: Bytes) -> Bytes:
    """Codes of 2 bits as TQ2_0, Q2_K and Q3_K lay them: weight 128h + 32l + m in bits 2l of byte 32h + m."""
    return _join_pairs(codes.reshape(-1, 2, 4, 32), axis=2).reshape(-1, 64)


def _cut_planes(packed: Bytes) -> Bytes:
    return _cut_pairs(packed.reshape(-1, 2, 1, 32), axis=2).reshape(-1, 256)


def _encode_tq2_0(integers: Integers, d: Scales) -> Bytes:
    return _with_d_last(_join_planes((integers + 1).astype(np.uint8)), d)


def _decode_tq2_0(raw: Bytes) -> tuple[Integers, Scales]:
    return _cut_planes(np.ascontiguousarray(raw[:, :64])).astype(np.int8) - np.int8(1), _d_of(raw[:, 64:])


def _encode_tq1_0(integers: Integers, d: Scales) -> Bytes:
    """Five trits a byte in planes of 32, then of 16, and the last 16 weights four a byte in planes of 4."""
    trits = (integers + 1).astype(np.uint16)
    parts = (trits[:, :160].reshape(-1, 5, 32), trits[:, 160:240].reshape(-1, 5, 16), trits[:, 240:].reshape(-1, 4, 4))
    return _with_d_last(np.concatenate([_join_trits(part) for part in parts], axis=1), d)


def _join_trits(trits: NDArray[np.uint16]) -> Bytes:
    """Trits [blocks planes bytes] as the fraction 0.t0 t1 t2 t3 t4 of base 3 in 256ths, rounded up."""
    places = 3 ** np.arange(4, 4 - trits.shape[1], -1, dtype=np.uint16)
    fraction = (trits * places[:, None]).sum(axis=1, dtype=np.uint16)
    return ((fraction * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)


def _decode_tq1_0(raw: Bytes) -> tuple[Integers, Scales]:
    parts = ((raw[:, :32], 5), (raw[:, 32:48], 5), (raw[:, 48:52], 4))
    trits = np.concatenate([_cut_trits(part, count) for part, count in parts], axis=1)
    return trits - np.int8(1), _d_of(raw[:, 52:])


def _cut_trits(packed: Bytes, count: int) -> Integers:
    # The fraction times 3^i, its whole part lost to the overflow of a byte; times 3, the whole part is the trit.
    left = packed[:, None, :] * np.array([1, 3, 9, 27, 81], np.uint8)[:count, None]
    return (left.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).astype(np.int8).reshape(len(packed), -1)


def _encode_q2_k(integers: Integers, d: Scales) -> Bytes:
    scales = np.full((len(d), 16), _Q2_K_SCALES, np.uint8)
    codes = ((integers + _Q2_K_MINIMUM) // _Q2_K_STEP).astype(np.uint8)
    return np.concatenate([scales, _join_planes(codes), _bytes_of(d), _bytes_of(d)], axis=1)


def _decode_q2_k(raw: Bytes) -> tuple[Integers, Scales]:
    if (raw[:, :16] != _Q2_K_SCALES).any() or (raw[:, 80:82] != raw[:, 82:84]).any():
        raise _finer_scales("Q2_K")
    codes = _cut_planes(np.ascontiguousarray(raw[:, 16:80])).astype(np.int8)
    return codes * np.int8(_Q2_K_STEP) - np.int8(_Q2_K_MINIMUM), _d_of(raw[:, 80:82])


def _encode_q3_k(integers: Integers, d: Scales) -> Bytes:
    codes = (integers + _Q3_K_MIDDLE).astype(np.uint8)
    # Weight 32p + m has its high bit in bit p of byte m.
    high = np.packbits((codes >> np.uint8(2)).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    scales = np.broadcast_to(_Q3_K_SCALES, (len(d), 12))
    return np.concatenate([high, _join_planes(codes & np.uint8(3)), scales, _bytes_of(d)], axis=1)


def _decode_q3_k(raw: Bytes) -> tuple[Integers, Scales]:
    if (raw[:, 96:108] != _Q3_K_SCALES).any():
        raise _finer_scales("Q3_K")
    high = np.unpackbits(raw[:, None, :32], axis=1, bitorder="little").reshape(-1, 256)
    codes = _cut_planes(np.ascontiguousarray(raw[:, 32:96])) | high << np.uint8(2)
    return codes.astype(np.int8) - np.int8(_Q3_K_MIDDLE), _d_of(raw[:, 108:])


def _finer_scales(name: str) -> ModelError:
    return ModelError(
        f"{name} blocks have scales within them, so their weights are no integers times one number",
        "take a file that lowbit's export wrote, or load this one as a float model",
    )


def _encode_q4_0(integers: Integers, d: Scales) -> Bytes:
    codes = (integers + 8).astype(np.uint8).reshape(-1, 2, 16)
    return _with_d_first(d, codes[:, 0] | codes[:, 1] << np.uint8(4))


def _decode_q4_0(raw: Bytes) -> tuple[Integers, Scales]:
    body = raw[:, _D_BYTES:]
    codes = np.concatenate([body & np.uint8(15), body >> np.uint8(4)], axis=1)
    return codes.astype(np.int8) - np.int8(8), _d_of(raw[:, :_D_BYTES])


def _encode_q8_0(integers: Integers, d: Scales) -> Bytes:
    return _with_d_first(d, integers.view(np.uint8))


def _decode_q8_0(raw: Bytes) -> tuple[Integers, Scales]:
    return np.ascontiguousarray(raw[:, _D_BYTES:]).view(np.int8), _d_of(raw[:, :_D_BYTES])


CODERS: tuple[Coder, ...] = (
    Coder(named_type("Q1_0"), (-1, 1), _encode_q1_0, _decode_q1_0),
    Coder(named_type("TQ1_0"), (-1, 0, 1), _encode_tq1_0, _decode_tq1_0),
    Coder(named_type("TQ2_0"), (-1, 0, 1), _encode_tq2_0, _decode_tq2_0),
    Coder(named_type("Q2_0"), (-1, 0, 1, 2), _encode_q2_0, _decode_q2_0),
    Coder(named_type("Q2_K"), (-3, -1, 1, 3), _encode_q2_k, _decode_q2_k),
    Coder(named_type("Q3_K"), tuple(range(-4, 4)), _encode_q3_k, _decode_q3_k),
    Coder(named_type("Q4_0"), tuple(range(-8, 8)), _encode_q4_0, _decode_q4_0),
    Coder(named_type("Q8_0"), tuple(range(-128, 128)), _encode_q8_0, _decode_q8_0),
)
"""From the fewest bits per weight to the most."""
