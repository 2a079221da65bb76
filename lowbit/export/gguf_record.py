"""What a GGUF file says besides, so that the packed model can be made of it again: codes, scales, dtypes and all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.gguf_blocks import Blocks, block_scales
from lowbit.export.gguf_layout import Slot, slots
from lowbit.formats import BFloat16, CodedScale, PackedModel, PackedTensor, StoredTensor
from lowbit.formats.layout import canonical_json
from lowbit.gguf import GgufFile, coder_for, read
from lowbit.llama import LlamaConfig
from lowbit.models.gguf import CONFIG_KEY, dequantized, load_gguf_tokenizer

KEY = "lowbit.packed"
"""JSON `{"meta", "grids", "tensors", "floats"}`; absent from files of other programs."""

_SCALE, _ZERO = "lowbit.scale.", "lowbit.zero."
_SCALE_CODES, _SCALE_STEPS = "lowbit.scale_codes.", "lowbit.scale_steps."
_MEAN = "scale_mean"
"""Of scales that are codes, in the entry of their tensor."""

_BFLOAT16 = "bfloat16"
_DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


def record(packed: PackedModel, blocks: Mapping[str, Blocks]) -> dict[str, Any]:
    """Returns the metadata keys that `from_gguf` reads.

    Args:
      packed: the model.
      blocks: packed name to what became of the tensor.
    """
    tensors, floats = {}, {}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in packed.tensors.items():
        unit = blocks[name].unit
        if not isinstance(tensor, PackedTensor):
            floats[name] = _BFLOAT16 if isinstance(tensor, BFloat16) else tensor.dtype.name
        elif unit is None:
            floats[name] = "float32"
        else:
            tensors[name] = {
                "grid": tensor.grid,
                "unit": unit,
                "scale_shape": list(tensor.scale.shape),
                "scale_dtype": tensor.scale.dtype.name,
                "zero": tensor.zero is not None,
            }
            back = _scale_of(block_scales(tensor.scale, unit), unit, tensor.scale.dtype)
            if (coded := tensor.coded_scale) is not None:
                tensors[name][_MEAN] = float(coded.mean[0])
                arrays |= {_SCALE_CODES + name: coded.codes.reshape(-1), _SCALE_STEPS + name: coded.steps}
            elif not np.array_equal(back, tensor.scale):  # rounded in the blocks
                arrays[_SCALE + name] = tensor.scale.astype(np.float32).reshape(-1)
            if tensor.zero is not None:
                arrays[_ZERO + name] = tensor.zero.astype(np.float32).reshape(-1)
    grids = {grid: [float(level) for level in levels] for grid, levels in packed.grids().items()}
    told = {"meta": packed.meta, "grids": grids, "tensors": tensors, "floats": floats}
    return {CONFIG_KEY: canonical_json(packed.config, "the config"), KEY: canonical_json(told, "the record"), **arrays}


def is_recorded(path: Path) -> bool:
    """Whether a GGUF file says how to make a packed model of it; raises ModelError where it is damaged."""
    return KEY in read(path).metadata


def from_gguf(path: Path) -> PackedModel:
    """Returns the packed model that a GGUF file was made of: equal codes, scales, floats, config and notes.

    A quantized tensor that the GGUF file holds as floats comes back as floats; the tokenizer is rebuilt.

    Raises:
      ModelError: not a whole file, one of another program, or a record that does not fit its tensors.
      TokenizerError: as `load_gguf_tokenizer`.
      FormatError: tensors that no packed file can hold.
    """
    file = read(path)
    if KEY not in file.metadata:
        raise ModelError(
            f"{path} was not written by lowbit's export, and does not say which grids it holds",
            "load it as a float model, and round it again: --method",
        )
    try:
        told = json.loads(file.metadata[KEY])
        config = json.loads(file.metadata[CONFIG_KEY])
        cfg = LlamaConfig.from_hf(config, f"{CONFIG_KEY} of {path}")
        tensors = {slot.packed: _tensor(file, slot, told) for slot in slots(cfg)}
        packed = PackedModel(tensors, config, load_gguf_tokenizer(path), told["meta"])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{KEY} of {path} does not fit the tensors of the file ({type(error).__name__}: {error})",
            "export the model again",
        ) from error
    packed.validate()
    return packed


def _tensor(file: GgufFile, slot: Slot, told: Mapping[str, Any]) -> StoredTensor:
    if slot.packed in told["floats"]:
        return _float(file, slot, told["floats"][slot.packed])
    entry = told["tensors"][slot.packed]
    kind, shape, data = file.tensors[slot.gguf]
    n, k = shape
    coder = coder_for(kind)
    if coder is None:
        raise ValueError(f"{slot.gguf} has the type {kind.name}")
    integers, d = coder.decode(slot.to_packed(data).reshape(-1, kind.nbytes))
    dtype = _DTYPES[entry["scale_dtype"]]
    groups = int(entry["scale_shape"][0])
    coded = _coded_scale(file, slot.packed, entry, n) if _MEAN in entry else None
    if coded is not None:
        coded.validate(k, n)
        scale: np.ndarray = coded.decode()
    else:
        scale = _scale_of(d.reshape(n, groups, -1)[:, :, 0].T, entry["unit"], dtype)
        scale = _array(
            file, _SCALE + slot.packed, entry, dtype, scale[: entry["scale_shape"][0], : entry["scale_shape"][1]]
        )
    zero = _array(file, _ZERO + slot.packed, entry, dtype, None) if entry["zero"] else None
    levels = np.array(told["grids"][entry["grid"]], np.float32)
    values = (integers * np.float32(entry["unit"])).reshape(n, groups, -1)
    if zero is not None:
        values += zero.T.astype(np.float32)[:, :, None]
    order = np.argsort(levels)
    codes = order[np.searchsorted(levels, values, sorter=order).clip(max=len(levels) - 1)].astype(np.uint8)
    if (levels[codes] != values).any():
        raise ValueError(f"{slot.gguf} holds weights that are no levels of the grid {entry['grid']!r}")
    return PackedTensor.from_codes(
        codes.reshape(n, k).T,
        scale,
        levels,
        entry["grid"],
        zero=zero,
        transposed=slot.along_rows,
        coded_scale=coded,
    )


def _coded_scale(file: GgufFile, name: str, entry: Mapping[str, Any], n: int) -> CodedScale:
    codes = np.array(file.metadata[_SCALE_CODES + name], np.uint8).reshape(n, -1)
    steps = np.array(file.metadata[_SCALE_STEPS + name], np.float32)
    return CodedScale(codes, steps, np.array([entry[_MEAN]], np.float32))


def _scale_of(d: np.ndarray, unit: float, dtype: np.dtype[Any]) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (d.astype(np.float32) / np.float32(unit)).astype(dtype)


def _array(
    file: GgufFile, key: str, entry: Mapping[str, Any], dtype: np.dtype[Any], otherwise: np.ndarray | None
) -> np.ndarray:
    """An array of the scale's shape that stands in the metadata, or else `otherwise`."""
    if otherwise is not None and key not in file.metadata:
        return otherwise
    return np.array(file.metadata[key], np.float32).astype(dtype).reshape(entry["scale_shape"])


def _float(file: GgufFile, slot: Slot, dtype: str) -> BFloat16 | np.ndarray:
    values = slot.to_packed(dequantized(file.tensors[slot.gguf], slot.gguf)).astype(np.float32)
    values = values if slot.along_rows else np.ascontiguousarray(values.T)
    return BFloat16.from_float32(values) if dtype == _BFLOAT16 else values.astype(_DTYPES[dtype])
