"""Codes to bytes and back: every packing is a number written in some base, low digit first.

A packing cuts a row of codes into words of `digits` codes. One word is the integer
`sum_i code_i * base**i`, stored little-endian in `word_bytes` bytes. For the power-of-two bases this is the
plain low-bits-first bit string; base 3 puts five trits into a byte (3**5 = 243), 1.6 bits each.
Rows are independent: each starts on a byte and its unused digits are zero.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import FormatError

Codes = NDArray[np.uint8]


class Packing(NamedTuple):
    """How many codes of which base share a word of how many bytes."""

    base: int
    digits: int
    word_bytes: int

    @property
    def bits(self) -> float:
        """Bits of storage a code takes in a long row."""
        return 8 * self.word_bytes / self.digits


PACKINGS: dict[str, Packing] = {
    "u1": Packing(base=2, digits=8, word_bytes=1),
    "t5": Packing(base=3, digits=5, word_bytes=1),
    "u2": Packing(base=4, digits=4, word_bytes=1),
    "u3": Packing(base=8, digits=8, word_bytes=3),
    "u4": Packing(base=16, digits=2, word_bytes=1),
    "u8": Packing(base=256, digits=1, word_bytes=1),
}
"""Ordered by base, so that the first packing whose base covers a grid is the smallest that holds it."""


def packing_for(num_levels: int) -> str:
    """Returns the name of the smallest packing that holds codes 0 .. num_levels - 1.

    Raises:
      FormatError: fewer than 2 or more than 256 levels.
    """
    if num_levels >= 2:
        for name, packing in PACKINGS.items():
            if num_levels <= packing.base:
                return name
    raise FormatError(
        f"a grid of {num_levels} levels cannot be packed", "use a grid of 2 to 256 levels, or keep it float"
    )


def row_bytes(packing: str, k: int) -> int:
    """Returns the bytes of one row of k codes: ceil(k * word_bytes / digits).

    Raises:
      FormatError: unknown packing or negative k.
    """
    scheme = _scheme(packing)
    if k < 0:
        raise FormatError(f"a row of {k} codes cannot be packed", "give a length of zero or more")
    return -(-k * scheme.word_bytes // scheme.digits)


def pack(codes: Codes, packing: str) -> Codes:
    """Packs codes u8[n k] row by row into u8[n row_bytes(packing, k)].

    Raises:
      FormatError: unknown packing, or a code that is not a digit of its base.
    """
    scheme = _scheme(packing)
    _check_matrix(codes, "codes")
    if codes.size and int(codes.max()) >= scheme.base:
        raise FormatError(
            f"code {int(codes.max())} does not fit packing {packing!r}, which holds 0 to {scheme.base - 1}",
            "choose the packing with packing_for(number of levels)",
        )
    n, k = codes.shape
    words = -(-k // scheme.digits)
    digits = np.zeros((n, words * scheme.digits), np.uint8)
    digits[:, :k] = codes
    digits = digits.reshape(n, words, scheme.digits)
    if scheme.word_bytes == 1:
        # base**digits <= 256, so a word never leaves uint8.
        packed = digits @ _place_values(scheme).astype(np.uint8)
    else:
        packed = _word_bytes_of(digits.astype(np.uint32) @ _place_values(scheme), scheme)
    return np.ascontiguousarray(packed[:, : row_bytes(packing, k)])


def unpack(packed: Codes, packing: str, k: int) -> Codes:
    """Unpacks u8[n row_bytes(packing, k)] into codes u8[n k].

    Raises:
      FormatError: unknown packing, a row of another length, a byte that no codes pack to, or padding that
        is not zero.
    """
    scheme = _scheme(packing)
    _check_matrix(packed, "packed codes")
    n, width = packed.shape
    if width != row_bytes(packing, k):
        raise FormatError(
            f"rows of {k} codes packed as {packing!r} take {row_bytes(packing, k)} bytes, not {width}",
            "check the shape and the packing against the file that the codes came from",
        )
    if scheme.word_bytes == 1:
        top = scheme.base**scheme.digits - 1
        if packed.size and int(packed.max()) > top:
            raise FormatError(
                f"byte {int(packed.max())} is no {packing!r} word: the largest is {top}",
                "the codes are damaged; copy or export the file again",
            )
        # A byte always has a row in the table: clipping changes nothing, and lets numpy skip its check (10x).
        digits = _byte_table(scheme).take(packed, axis=0, mode="clip").reshape(n, width * scheme.digits)
    else:
        digits = _digits_of_words(packed, scheme)
    if digits[:, k:].any():
        raise FormatError(
            f"the padding after the last of {k} codes packed as {packing!r} is not zero",
            "the codes are damaged; copy or export the file again",
        )
    return np.ascontiguousarray(digits[:, :k])


def _scheme(packing: str) -> Packing:
    if packing not in PACKINGS:
        raise FormatError(f"unknown packing {packing!r}", "choose from " + ", ".join(PACKINGS))
    return PACKINGS[packing]


def _check_matrix(array: np.ndarray, what: str) -> None:
    if array.dtype != np.uint8 or array.ndim != 2:
        raise FormatError(
            f"{what} are {array.dtype}{list(array.shape)}", "give a two-dimensional uint8 array, a row per output"
        )


def _place_values(scheme: Packing) -> NDArray[np.uint32]:
    return np.array([scheme.base**i for i in range(scheme.digits)], np.uint32)


def _byte_table(scheme: Packing) -> Codes:
    """The digits of every byte, [256 digits]: one gather unpacks a word."""
    byte = np.arange(256, dtype=np.uint32)[:, None]
    return (byte // _place_values(scheme) % scheme.base).astype(np.uint8)


def _word_bytes_of(words: NDArray[np.uint32], scheme: Packing) -> Codes:
    shifts = 8 * np.arange(scheme.word_bytes, dtype=np.uint32)
    return (words[..., None] >> shifts & 255).astype(np.uint8).reshape(len(words), words.shape[1] * scheme.word_bytes)


def _digits_of_words(packed: Codes, scheme: Packing) -> Codes:
    n, width = packed.shape
    count = -(-width // scheme.word_bytes)
    padded = np.zeros((n, count * scheme.word_bytes), np.uint8)
    padded[:, :width] = packed
    shifts = 8 * np.arange(scheme.word_bytes, dtype=np.uint32)
    words = (padded.reshape(n, count, scheme.word_bytes).astype(np.uint32) << shifts).sum(-1, dtype=np.uint32)
    return (words[..., None] // _place_values(scheme) % scheme.base).astype(np.uint8).reshape(n, count * scheme.digits)
