"""Writes a packed file: deterministic bytes, and either the whole file or none.

The container is safetensors. Its header is written here rather than by the library, because equal models
must give equal bytes whatever the library's version, and because arrays then go to the disk one by one
instead of being joined in memory first.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.atomic import replacing
from lowbit.errors import FormatError
from lowbit.formats.layout import (
    DATA_ALIGNMENT,
    DIGEST_FIELD,
    DIGEST_ZEROS,
    FORMAT,
    METADATA,
    VERSION,
    PackedModel,
    canonical_json,
    packed_entry,
    stored_arrays,
)
from lowbit.formats.tensors import BFloat16, PackedTensor

_DTYPE_NAMES = {"uint8": "U8", "float16": "F16", "float32": "F32"}


def write(path: str | os.PathLike[str], model: PackedModel, *, overwrite: bool = False) -> None:
    """Writes a packed file atomically; equal models give equal bytes.

    The bytes go to a temporary file in the same folder, which takes the name only when all of it is on disk.

    Raises:
      FormatError: a model that is not valid or holds NaN or infinity, an existing file (unless `overwrite`),
        or a file system that refuses; nothing is left behind.
    """
    target = Path(path)
    model.validate()
    model.check_contents()
    if target.is_dir():
        raise FormatError(f"{target} is a folder", "give the path of a file")
    if target.exists() and not overwrite:
        raise FormatError(f"{target} exists", "choose another name, or allow it to be overwritten")
    blobs = {name: _little_endian(array) for name, array in stored_arrays(model).items()}
    order = sorted(blobs, key=lambda name: (-blobs[name][1].itemsize, name))
    header = _header(model, blobs, order)
    with replacing(target, FormatError) as file:
        file.write(header)
        for name in order:
            file.write(_raw(blobs[name][1]))


def _little_endian(array: BFloat16 | np.ndarray) -> tuple[str, np.ndarray]:
    """Returns safetensors' name of the dtype, and the array as it lies in the file."""
    if isinstance(array, BFloat16):
        dtype, raw = "BF16", array.bits
    else:
        dtype, raw = _DTYPE_NAMES[array.dtype.name], array
    little = raw.astype(raw.dtype.newbyteorder("<"), order="C", copy=False)
    return dtype, little


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _header(model: PackedModel, blobs: dict[str, tuple[str, np.ndarray]], order: list[str]) -> bytes:
    """Returns the length and the JSON header, padded so that the data starts on a multiple of 64 bytes."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": canonical_json(model.config, "config"),
        "meta": canonical_json(model.meta, "meta"),
        "grids": canonical_json(
            {name: [float(level) for level in levels] for name, levels in model.grids().items()}, "grids"
        ),
        "packed": canonical_json(
            {name: packed_entry(t) for name, t in model.tensors.items() if isinstance(t, PackedTensor)},
            "packed tensors",
        ),
        "checksums": canonical_json({name: _sha256(array) for name, (_, array) in blobs.items()}, "checksums"),
        "header_sha256": DIGEST_ZEROS,
    }
    entries: dict[str, Any] = {METADATA: metadata}
    offset = 0
    for name in order:
        dtype, array = blobs[name]
        end = offset + array.nbytes
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = canonical_json(entries, "the header").encode("ascii")
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    unsigned = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(unsigned).hexdigest().encode("ascii")
    field = DIGEST_FIELD + DIGEST_ZEROS.encode("ascii")
    return unsigned.replace(field, DIGEST_FIELD + digest, 1)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(_raw(array)).hexdigest()
