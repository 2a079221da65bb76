"""Values in the metadata of a GGUF file: their types, as numbers and as numpy sees them."""

import numpy as np

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)

SCALARS: dict[int, np.dtype] = {
    UINT8: np.dtype("u1"),
    INT8: np.dtype("i1"),
    UINT16: np.dtype("<u2"),
    INT16: np.dtype("<i2"),
    UINT32: np.dtype("<u4"),
    INT32: np.dtype("<i4"),
    FLOAT32: np.dtype("<f4"),
    UINT64: np.dtype("<u8"),
    INT64: np.dtype("<i8"),
    FLOAT64: np.dtype("<f8"),
}
"""Every type of fixed size but BOOL, which is a byte of 0 or 1."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Those that differ in nothing that matters here; version 1 had 32-bit lengths."""

ALIGNMENT_KEY, ALIGNMENT = "general.alignment", 32
"""Where a file states its alignment of tensors in bytes, and what it is otherwise."""

MAX_DIMENSIONS = 4
