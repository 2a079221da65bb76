"""Reads a packed file by memory map, and checks it.

Opening reads the header, and decodes scales that are codes themselves; other scales, codes and weights stay on the disk
until somebody looks at them, and are shared by every process that maps the same file. The header proves itself by its
own checksum on every opening; the arrays are compared with theirs on demand, because that reads the whole file.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import FormatError
from lowbit.formats.adapter import Adapter
from lowbit.formats.coded_scale import CodedScale
from lowbit.formats.header import DTYPES, ArrayEntry, Header, header_bytes, parse_header
from lowbit.formats.layout import (
    ADAPTER,
    CODED_SCALE,
    IN_SCALE,
    LORA_A,
    LORA_B,
    SCALE_CODES,
    SCALE_MEAN,
    SCALE_STEPS,
    TOKENIZER_PREFIX,
    PackedModel,
)
from lowbit.formats.tensors import BFloat16, PackedTensor, StoredTensor, located


def read(path: str | os.PathLike[str], verify: bool = False) -> PackedModel:
    """Opens a packed file; its arrays are read-only views on the memory map.

    Args:
      path: the file.
      verify: also read every array, compare it with its checksum and check every code.

    Raises:
      FormatError: names the file, the tensor and the cause.
    """
    with located(str(path)):
        data, header = _open(Path(path))
        if verify:
            _verify(data, header)
        model = _model(data, header)
        model.validate()
        if verify:
            model.check_contents()
        return model


def verify_checksums(path: str | os.PathLike[str]) -> None:
    """Compares every array of a packed file with its checksum.

    Raises:
      FormatError: names the file and the first tensor that differs.
    """
    with located(str(path)):
        _verify(*_open(Path(path)))


def _open(path: Path) -> tuple[np.ndarray, Header]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            raw = prefix + file.read(header_bytes(prefix, size))
            header = parse_header(raw, size)
            data = np.memmap(file, np.uint8, mode="r", shape=(size,))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise FormatError(f"cannot be read: {reason}", "give the path of a packed file") from error
    return data, header


def _verify(data: np.ndarray, header: Header) -> None:
    for name, entry in header.arrays.items():
        if hashlib.sha256(data[entry.begin : entry.end].data).hexdigest() != header.checksums[name]:
            raise FormatError(
                f"tensor {name!r}: its bytes do not match their checksum",
                "the file is damaged; copy or export it again",
            )


def _model(data: np.ndarray, header: Header) -> PackedModel:
    left = dict(header.arrays)
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.packed.items():
        with located(f"tensor {name!r}"):
            tensors[name] = _packed_tensor(data, name, entry, left, header.grids)
    tokenizer = {}
    for name, array in left.items():
        if name.startswith(TOKENIZER_PREFIX):
            with located(f"tensor {name!r}"):
                content = _expect(array, "U8")
                tokenizer[name.removeprefix(TOKENIZER_PREFIX)] = data[content.begin : content.end].tobytes()
        elif name in tensors:
            raise FormatError(f"tensor {name!r}: both packed and float", "export the model again")
        elif array.dtype == "BF16":
            tensors[name] = BFloat16(_view(data, array))
        else:
            tensors[name] = _view(data, array)
    return PackedModel(tensors, header.config, tokenizer, header.meta)


def _packed_tensor(
    data: np.ndarray,
    name: str,
    entry: dict[str, Any],
    left: dict[str, ArrayEntry],
    grids: dict[str, np.ndarray],
) -> PackedTensor:
    if entry["grid"] not in grids:
        raise FormatError(f"grid {entry['grid']!r} is not in the table of grids", "export the model again")
    k, n = entry["shape"]
    coded_scale = _coded_scale(data, name, left) if CODED_SCALE in entry else None
    if coded_scale is not None:
        coded_scale.validate(k, n)
        scale: np.ndarray = coded_scale.decode()
    else:
        scale = _view(data, _take(left, f"{name}.scale", "F16", "F32"))
    return PackedTensor(
        packed=_view(data, _take(left, f"{name}.codes", "U8")),
        scale=scale,
        zero=_view(data, _take(left, f"{name}.zero", "F16", "F32")) if entry["zero"] else None,
        levels=grids[entry["grid"]],
        shape=(k, n),
        grid=entry["grid"],
        packing=entry["packing"],
        transposed=entry["transposed"],
        in_scale=_view(data, _take(left, f"{name}.{IN_SCALE}", "F16", "F32")) if IN_SCALE in entry else None,
        adapter=_adapter(data, name, left) if ADAPTER in entry else None,
        coded_scale=coded_scale,
    )


def _coded_scale(data: np.ndarray, name: str, left: dict[str, ArrayEntry]) -> CodedScale:
    codes = _view(data, _take(left, f"{name}.{SCALE_CODES}", "U8"))
    steps, mean = (_view(data, _take(left, f"{name}.{ending}", "F32")) for ending in (SCALE_STEPS, SCALE_MEAN))
    return CodedScale(codes, steps, mean)


def _adapter(data: np.ndarray, name: str, left: dict[str, ArrayEntry]) -> Adapter:
    a, b = (_view(data, _take(left, f"{name}.{ending}", "F16")) for ending in (LORA_A, LORA_B))
    return Adapter(a, b)


def _take(left: dict[str, ArrayEntry], stored: str, *dtypes: str) -> ArrayEntry:
    if stored not in left:
        raise FormatError(f"array {stored!r} is missing", "export the model again")
    return _expect(left.pop(stored), *dtypes)


def _expect(entry: ArrayEntry, *dtypes: str) -> ArrayEntry:
    if entry.dtype not in dtypes:
        raise FormatError(f"dtype is {entry.dtype}, not {' or '.join(dtypes)}", "export the model again")
    return entry


def _view(data: np.ndarray, entry: ArrayEntry) -> np.ndarray:
    view = data[entry.begin : entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape)
    return np.asarray(view)  # a plain array; its base is the map
