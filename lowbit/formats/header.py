"""Parses the header of a packed file without trusting a byte of it.

Everything that can be checked from the header alone is checked here, before an array is touched. The
checks are stricter than safetensors': no gaps, no overlaps, aligned arrays, a digest of the header itself.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.errors import FormatError
from lowbit.formats.layout import (
    DIGEST_FIELD,
    DIGEST_ZEROS,
    FORMAT,
    MAX_HEADER_BYTES,
    METADATA,
    METADATA_KEYS,
    OPTIONAL_ENTRIES,
    PACKED_ENTRY_TYPES,
    VERSION,
)

DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
}
_MAX_DIMENSIONS = 8
_DAMAGED = "the file is damaged; copy or export it again"


@dataclass(frozen=True)
class ArrayEntry:
    """Where an array lies: dtype name, shape, and its bytes counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class Header:
    """A header that has passed every check.

    Attributes:
      arrays: stored name to entry.
      packed: parameter to `PACKED_ENTRY_TYPES`.
      grids: name to levels, f32[L].
      checksums: stored name to sha256 in hexadecimal.
      config: Hugging Face config.
      meta: free metadata.
    """

    arrays: dict[str, ArrayEntry]
    packed: dict[str, dict[str, Any]]
    grids: dict[str, np.ndarray]
    checksums: dict[str, str]
    config: dict[str, Any]
    meta: dict[str, Any]


def header_bytes(prefix: bytes, file_size: int) -> int:
    """Returns the header's length N from the first 8 bytes, before anything of that size is read.

    Raises:
      FormatError: a file too short or of another kind, or a length that the file cannot have.
    """
    if len(prefix) < 8:
        raise FormatError(f"{file_size} bytes are too few for a packed file", _DAMAGED)
    if prefix.startswith(b"GGUF"):
        raise FormatError("a GGUF file, and no packed one", "let lowbit's export make a packed file of it")
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise FormatError(
            f"no packed file: it claims a header of {length} bytes", "give a file that lowbit's export wrote"
        )
    if 8 + length > file_size:
        raise FormatError(f"truncated: the header ends at byte {8 + length}, the file at {file_size}", _DAMAGED)
    return length


def parse_header(raw: bytes, file_size: int) -> Header:
    """Parses the first 8 + N bytes of a file of `file_size` bytes.

    Raises:
      FormatError: names what does not fit, and the tensor it is about.
    """
    try:
        entries = _json_object(raw[8:], "the header")
    except FormatError as error:
        raise FormatError(f"no packed file: {error.cause}", "give a file that lowbit's export wrote") from error
    metadata = _metadata(entries)
    _check_digest(raw, metadata["header_sha256"])
    arrays = _arrays(entries, start=len(raw), file_size=file_size)
    checksums = _json_object(metadata["checksums"], "checksums")
    if checksums.keys() != arrays.keys():
        odd = sorted(checksums.keys() ^ arrays.keys())[0]
        raise FormatError(f"tensor {odd!r}: the checksums and the arrays do not name the same tensors", _DAMAGED)
    return Header(
        arrays=arrays,
        packed=_packed(metadata),
        grids=_grids(metadata),
        checksums={name: str(value) for name, value in checksums.items()},
        config=_json_object(metadata["config"], "config"),
        meta=_json_object(metadata["meta"], "meta"),
    )


def _json_object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            decoded, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON ({error})", _DAMAGED) from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a JSON {type(value).__name__}, not an object", _DAMAGED)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits} is too large")
    return number


def _metadata(entries: dict[str, Any]) -> dict[str, str]:
    metadata = entries.pop(METADATA, None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FormatError(
            "a safetensors file, but no packed file of lowbit's: its metadata lacks format = 'lowbit'",
            "load a Hugging Face checkpoint as a model instead, or give a file that lowbit's export wrote",
        )
    version = metadata.get("version")
    if version != str(VERSION):
        newer = isinstance(version, str) and version.isdecimal() and len(version) < 10 and int(version) > VERSION
        raise FormatError(
            f"the file has format version {version}, this lowbit reads version {VERSION}",
            "install a newer lowbit" if newer else "export the model again with this lowbit",
        )
    for key in sorted(METADATA_KEYS | metadata.keys()):
        if key not in METADATA_KEYS or not isinstance(metadata.get(key), str):
            problem = "unknown" if key not in METADATA_KEYS else "missing or no string"
            raise FormatError(f"metadata key {key!r} is {problem}", _DAMAGED)
    return metadata


def _check_digest(raw: bytes, digest: str) -> None:
    signed = DIGEST_FIELD + digest.encode("utf-8", "surrogatepass")
    if raw.count(DIGEST_FIELD) == 1 and signed in raw and len(digest) == len(DIGEST_ZEROS):
        unsigned = raw.replace(signed, DIGEST_FIELD + DIGEST_ZEROS.encode("ascii"))
        if hashlib.sha256(unsigned).hexdigest() == digest:
            return
    raise FormatError("the header does not match its own checksum", _DAMAGED)


def _arrays(entries: dict[str, Any], start: int, file_size: int) -> dict[str, ArrayEntry]:
    arrays = {}
    for name, entry in entries.items():
        arrays[name] = _array(name, entry, start)
    position = start
    for name, array in sorted(arrays.items(), key=lambda item: (item[1].begin, item[1].end)):
        if array.begin != position:
            relation = "overlaps" if array.begin < position else "leaves a gap after"
            raise FormatError(f"tensor {name!r} {relation} the array before it", _DAMAGED)
        position = array.end
    if position != file_size:
        kind = "truncated" if position > file_size else "bytes left over"
        raise FormatError(f"{kind}: the arrays end at byte {position}, the file at {file_size}", _DAMAGED)
    return arrays


def _array(name: str, entry: Any, start: int) -> ArrayEntry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"tensor {name!r}: needs exactly dtype, shape and data_offsets", _DAMAGED)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"tensor {name!r}: dtype {dtype!r} is none of {', '.join(DTYPES)}", _DAMAGED)
    if not _sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise FormatError(f"tensor {name!r}: {shape!r} is no shape", _DAMAGED)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"tensor {name!r}: data_offsets {offsets!r} are no range", _DAMAGED)
    itemsize = DTYPES[dtype].itemsize
    if math.prod(shape) * itemsize != offsets[1] - offsets[0]:
        raise FormatError(
            f"tensor {name!r}: {dtype}{shape} does not fill its {offsets[1] - offsets[0]} bytes", _DAMAGED
        )
    if (start + offsets[0]) % itemsize:
        raise FormatError(f"tensor {name!r}: not aligned to {itemsize} bytes", _DAMAGED)
    return ArrayEntry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _sizes(value: Any) -> bool:
    # bool is a subclass of int, and JSON's true is no size.
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _packed(metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    packed = _json_object(metadata["packed"], "the table of packed tensors")
    for name, entry in packed.items():
        if not isinstance(entry, dict) or entry.keys() - OPTIONAL_ENTRIES != PACKED_ENTRY_TYPES.keys():
            raise FormatError(f"tensor {name!r}: needs exactly {', '.join(PACKED_ENTRY_TYPES)}", _DAMAGED)
        for key, kind in PACKED_ENTRY_TYPES.items():
            if not isinstance(entry[key], kind):
                raise FormatError(f"tensor {name!r}: {key} = {entry[key]!r} is no {kind.__name__}", _DAMAGED)
        for key in sorted(OPTIONAL_ENTRIES & entry.keys()):
            if entry[key] is not True:
                raise FormatError(f"tensor {name!r}: {key} = {entry[key]!r} is not true", _DAMAGED)
        if not _sizes(entry["shape"]) or len(entry["shape"]) != 2:
            raise FormatError(f"tensor {name!r}: shape {entry['shape']!r} is no [k n]", _DAMAGED)
    return packed


def _grids(metadata: dict[str, str]) -> dict[str, np.ndarray]:
    grids = {}
    for name, levels in _json_object(metadata["grids"], "the table of grids").items():
        if not isinstance(levels, list) or not 2 <= len(levels) <= 256 or not all(map(_is_float32, levels)):
            raise FormatError(f"grid {name!r} is no list of 2 to 256 float32 numbers", _DAMAGED)
        grids[name] = np.array(levels, np.float32)
        grids[name].flags.writeable = False
    return grids


def _is_float32(value: Any) -> bool:
    if type(value) not in (int, float) or not abs(value) <= float(np.finfo(np.float32).max):
        return False
    return float(np.float32(value)) == value
