"""A tiny packed model with every kind of tensor, and a way to forge its header."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.formats import BFloat16, PackedModel, PackedTensor, write

GRIDS = {
    "binary": [-1.0, 1.0],
    "ternary": [-1.0, 0.0, 1.0],
    "seq2": [-0.75, -0.25, 0.25, 0.75],
    "int3": [float(i) for i in range(-4, 4)],
    "int4": [float(i) for i in range(-8, 8)],
    "int8": [float(i) for i in range(-128, 128)],
}


@pytest.fixture
def tiny_model() -> PackedModel:
    # Arithmetic rather than random numbers: the golden bytes must not depend on numpy's generators.
    tensors: dict[str, Any] = {}
    k, n = 10, 3
    for i, (grid, levels) in enumerate(GRIDS.items()):
        codes = (np.arange(k * n) * 7 + i) % len(levels)
        groups = 2 if grid in ("ternary", "int4") else 1
        scale = ((np.arange(groups * n) + 1) / 16).reshape(groups, n).astype(np.float16)
        tensors[f"layers.0.{grid}.kernel"] = PackedTensor.from_codes(
            codes.reshape(k, n).astype(np.uint8),
            scale,
            np.array(levels, np.float32),
            grid,
            zero=(scale / 2) if grid == "int4" else None,
        )
    tensors["embed.embedding"] = PackedTensor.from_codes(
        (np.arange(5 * 4) % 16).reshape(4, 5).astype(np.uint8),
        np.full((1, 1), 0.125, np.float32),
        np.array(GRIDS["int4"], np.float32),
        "int4",
        transposed=True,
    )
    tensors["norm.scale"] = np.array([1.0, 0.5, 2.0], np.float16)
    tensors["layers.0.bias"] = np.array([[1.5], [-2.0]], np.float32)
    tensors["layers.0.attn_norm.scale"] = BFloat16.from_float32(np.array([1.0, 3.140625], np.float32))
    return PackedModel(
        tensors,
        config={"model_type": "llama", "vocab_size": 5},
        tokenizer={"tokenizer.json": b'{"version": "1.0"}', "empty.txt": b""},
        meta={"run": "tiny", "nll": 1.25},
    )


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_model: PackedModel) -> Path:
    path = tmp_path / "tiny.safetensors"
    write(path, tiny_model)
    return path


Edit = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture
def forge(tiny_file: Path) -> Callable[[Edit], Path]:
    """Edits the header (entries, metadata with its JSON parsed) and signs it anew, by docs/format.md alone."""

    def apply(edit: Edit) -> Path:
        raw = tiny_file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + length])
        metadata = entries["__metadata__"]
        tables = [key for key in metadata if key not in ("format", "version", "header_sha256")]
        for key in tables:
            metadata[key] = json.loads(metadata[key])
        edit(entries, metadata)
        for key in tables:
            if key in metadata and not isinstance(metadata[key], str):
                metadata[key] = json.dumps(metadata[key])
        metadata["header_sha256"] = "0" * 64
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        unsigned = len(text).to_bytes(8, "little") + text
        digest = hashlib.sha256(unsigned).hexdigest().encode()
        header = unsigned.replace(b'"header_sha256":"' + b"0" * 64, b'"header_sha256":"' + digest)
        tiny_file.write_bytes(header + raw[8 + length :])
        return tiny_file

    return apply
