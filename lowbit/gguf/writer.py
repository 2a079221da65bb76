"""Writes a GGUF file (version 3): equal contents give equal bytes."""

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from lowbit.errors import ModelError
from lowbit.gguf import values
from lowbit.gguf.reader import GgufTensor

_ARRAY_KINDS = {
    np.dtype(np.uint8): values.UINT8,
    np.dtype(np.int32): values.INT32,
    np.dtype(np.float32): values.FLOAT32,
}


def write(file: BinaryIO, metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> None:
    """Writes metadata and tensors in the order of the mappings.

    Args:
      file: open for writing, at its start.
      metadata: key to a bool, an int of 32 bits without sign, a float (32 bits are kept), a str, a list of str, or an
        array i32[n] or f32[n].
      tensors: name to tensor.

    Raises:
      ModelError: a value that none of these types can hold.
    """
    head = [values.MAGIC, struct.pack("<IQQ", values.VERSIONS[-1], len(tensors), len(metadata))]
    head += [_text(key) + _value(key, value) for key, value in metadata.items()]
    offset = 0
    for name, tensor in tensors.items():
        shape = tensor.shape[::-1]
        head.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.kind.number, offset))
        offset += _padded(tensor.data.nbytes)
    raw = b"".join(head)
    file.write(raw + bytes(_padded(len(raw)) - len(raw)))
    for tensor in tensors.values():
        file.write(np.ascontiguousarray(tensor.data).data)
        file.write(bytes(_padded(tensor.data.nbytes) - tensor.data.nbytes))


def _padded(size: int) -> int:
    return -(-size // values.ALIGNMENT) * values.ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", values.BOOL, value)
    if isinstance(value, int) and 0 <= value < 2**32:
        return struct.pack("<II", values.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", values.FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", values.STRING) + _text(value)
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return struct.pack("<IIQ", values.ARRAY, values.STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, np.ndarray) and value.dtype in _ARRAY_KINDS and value.ndim == 1:
        little = value.astype(value.dtype.newbyteorder("<"))
        return struct.pack("<IIQ", values.ARRAY, _ARRAY_KINDS[value.dtype], len(value)) + little.tobytes()
    raise ModelError(
        f"GGUF metadata {key} cannot be {type(value).__name__} {str(value)[:40]}",
        "give a text, a number of 32 bits, or a list of texts",
    )
