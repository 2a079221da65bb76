"""The tensor types of GGUF: number in the file, weights in a block, bytes of a block.

The table is that of ggml (`enum ggml_type` in ggml.h and `type_traits` in ggml.c). Numbers that it gave up are absent.
"""

from typing import NamedTuple

from lowbit.errors import ModelError, nearest


class TensorType(NamedTuple):
    """One type.

    Attributes:
      name: as llama.cpp writes it.
      number: as the file writes it.
      block: weights that are stored together; a row holds whole blocks.
      nbytes: bytes of a block.
    """

    name: str
    number: int
    block: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.nbytes / self.block


_ROWS = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q8_1", 9, 32, 36),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
    ("Q2_0", 42, 64, 18),
)

TYPES: dict[int, TensorType] = {number: TensorType(name, number, *sizes) for name, number, *sizes in _ROWS}
"""Number to type."""

_NAMED = {kind.name: kind for kind in TYPES.values()}


def named_type(name: str) -> TensorType:
    """Returns the type of a name.

    Raises:
      ModelError: there is none of this name.
    """
    if name not in _NAMED:
        raise ModelError(f"GGUF has no tensor type {name!r}", nearest(name, _NAMED))
    return _NAMED[name]


F32, F16, BF16 = _NAMED["F32"], _NAMED["F16"], _NAMED["BF16"]
