"""Reads a GGUF file by memory map, without trusting a byte of it.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is compared
with what is left of the file before anything of that size is made, so that the memory taken is a small multiple of
the file's size whatever the file claims.
"""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowbit.errors import ModelError
from lowbit.gguf import values
from lowbit.gguf.types import TYPES, TensorType

_LEAST_ENTRY_BYTES = 8 + 4 + 1  # an empty key, the type of its value, and a value of one byte
_LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8  # an empty name, no dimensions, type and offset
_DAMAGED = "download it again"


class GgufTensor(NamedTuple):
    """A tensor as it lies in the file.

    Attributes:
      kind: its type.
      shape: as numpy counts: rows first, the contiguous axis last.
      data: u8[... row_bytes], a view on the memory map.
    """

    kind: TensorType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class GgufFile(NamedTuple):
    """A file.

    Attributes:
      metadata: key to a Python value; 32-bit floats as the decimal numbers that they were written from.
      tensors: name to tensor.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read(path: str | os.PathLike[str]) -> GgufFile:
    """Opens a GGUF file; tensors stay on the disk until somebody looks at them.

    Raises:
      ModelError: names the file, what is wrong and at which byte.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no file {path}", "check the path")
    try:
        # An empty file cannot be mapped, and has no magic either.
        data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error})", "make it a file that you may read") from error
    return _Parser(path, data).file()


class _Parser:
    """A position in the bytes, and what is read from there."""

    def __init__(self, path: Path, data: NDArray[np.uint8]):
        self.path = path
        self.data = data
        self.position = 0

    def file(self) -> GgufFile:
        """Reads all but the tensors' bytes."""
        if self.take(4) != values.MAGIC:
            raise self.fault("it does not begin with GGUF", 0)
        version = self.number(values.UINT32)
        if version not in values.VERSIONS:
            raise self.fault(f"its version is {version}, not one of {', '.join(map(str, values.VERSIONS))}", 4)
        tensors = self.count("tensors", _LEAST_TENSOR_BYTES)
        entries = self.count("metadata entries", _LEAST_ENTRY_BYTES)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            at = self.position
            key = self.text("a key")
            if key in metadata:
                raise self.fault(f"the key {key!r} stands twice", at)
            metadata[key] = self.value(key)
        infos = [self.tensor_info() for _ in range(tensors)]
        return GgufFile(metadata, self.place(infos, self.alignment(metadata)))

    def fault(self, what: str, at: int | None = None) -> ModelError:
        """Returns the error for something wrong at a byte, by default the present one."""
        where = self.position if at is None else at
        return ModelError(f"{self.path} is not a whole GGUF file: {what} (byte {where})", _DAMAGED)

    def left(self) -> int:
        """Bytes from here to the end."""
        return len(self.data) - self.position

    def take(self, size: int) -> bytes:
        """Returns the next bytes."""
        if size > self.left():
            raise self.fault(f"it ends within {size} bytes that should be here")
        taken = self.data[self.position : self.position + size].tobytes()
        self.position += size
        return taken

    def number(self, kind: int) -> Any:
        """Returns a number of one of `values.SCALARS`."""
        dtype = values.SCALARS[kind]
        value = np.frombuffer(self.take(dtype.itemsize), dtype)[0]
        return float(str(value)) if kind == values.FLOAT32 else value.item()  # 1e-05, not 9.999999747378752e-06

    def count(self, what: str, least_bytes: int) -> int:
        """Returns a count of things of at least so many bytes each, all of which must be in the file."""
        at = self.position
        count: int = self.number(values.UINT64)
        if count > self.left() // least_bytes:
            raise self.fault(f"it claims {count} {what}, for which it is too short", at)
        return count

    def text(self, what: str) -> str:
        """Returns a string."""
        at = self.position
        raw = self.take(self.count(f"bytes of {what}", 1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault(f"{what} is not UTF-8", at) from error

    def value(self, key: str) -> Any:
        """Returns the value of a key, with its type before it."""
        at = self.position
        kind = self.number(values.UINT32)
        if kind != values.ARRAY:
            return self.single(kind, key, at)
        kind = self.number(values.UINT32)
        if kind in values.SCALARS:
            dtype = values.SCALARS[kind]
            size = dtype.itemsize * self.count(f"entries of {key!r}", dtype.itemsize)
            entries: list[Any] = np.frombuffer(self.take(size), dtype).tolist()
            return entries
        least = 8 if kind == values.STRING else 1
        return [self.single(kind, key, at) for _ in range(self.count(f"entries of {key!r}", least))]

    def single(self, kind: int, key: str, at: int) -> Any:
        """Returns a value that is no array."""
        if kind == values.STRING:
            return self.text(f"the text of {key!r}")
        if kind == values.BOOL:
            byte = self.take(1)[0]
            if byte > 1:
                raise self.fault(f"{key!r} is {byte}, neither true nor false", self.position - 1)
            return bool(byte)
        if kind not in values.SCALARS:
            raise self.fault(f"{key!r} has the type {kind}, which this format does not have here", at)
        return self.number(kind)

    def tensor_info(self) -> tuple[str, tuple[int, ...], TensorType, int, int]:
        """Returns name, shape, type, offset, and the byte where this stands."""
        at = self.position
        name = self.text("the name of a tensor")
        dimensions = self.number(values.UINT32)
        if not 1 <= dimensions <= values.MAX_DIMENSIONS:
            raise self.fault(f"tensor {name!r} has {dimensions} dimensions", at)
        shape = tuple(self.number(values.UINT64) for _ in range(dimensions))[::-1]
        number = self.number(values.UINT32)
        if number not in TYPES:
            raise self.fault(f"tensor {name!r} has the type {number}, which is not known", at)
        kind = TYPES[number]
        if min(shape) < 1 or shape[-1] % kind.block:
            raise self.fault(f"tensor {name!r} has shape {list(shape)}, but {kind.name} has blocks of {kind.block}", at)
        return name, shape, kind, self.number(values.UINT64), at

    def alignment(self, metadata: dict[str, Any]) -> int:
        """Returns the alignment of tensors in bytes."""
        alignment = metadata.get(values.ALIGNMENT_KEY, values.ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self.fault(f"{values.ALIGNMENT_KEY} is {alignment!r}, not a power of two")
        return alignment

    def place(
        self, infos: list[tuple[str, tuple[int, ...], TensorType, int, int]], alignment: int
    ) -> dict[str, GgufTensor]:
        """Finds the bytes of each tensor; no two share any."""
        start = -(-self.position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        end_before = start
        for name, shape, kind, offset, at in sorted(infos, key=lambda info: info[3]):
            begin = start + offset
            end = begin + math.prod(shape) // kind.block * kind.nbytes
            if name in tensors:
                raise self.fault(f"the tensor {name!r} stands twice", at)
            if offset % alignment:
                raise self.fault(f"tensor {name!r} lies at {offset}, no multiple of {alignment}", at)
            if begin < end_before:
                raise self.fault(f"tensor {name!r} overlaps the one before it", at)
            if end > len(self.data):
                raise self.fault(f"tensor {name!r} ends at byte {end}, the file at {len(self.data)}", at)
            row_bytes = shape[-1] // kind.block * kind.nbytes
            tensors[name] = GgufTensor(kind, shape, np.asarray(self.data[begin:end]).reshape(*shape[:-1], row_bytes))
            end_before = end
        return tensors
