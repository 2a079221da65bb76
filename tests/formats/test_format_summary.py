"""The sizes that `inspect` prints."""

from pathlib import Path

import numpy as np
import pytest

from lowbit.formats import PackedModel, PackedTensor, read, summarize


def test_bits_count_codes_and_scales(tiny_model: PackedModel, tiny_file: Path) -> None:
    summary = summarize(read(tiny_file), file_bytes=tiny_file.stat().st_size)
    rows = {row.name: row for row in summary.rows}

    ternary = rows["layers.0.ternary.kernel"]  # [10 3] in two groups: 2 bytes a row, 6 scales
    assert (ternary.grid, ternary.shape, ternary.weights) == ("ternary", (10, 3), 30)
    assert ternary.nbytes == 3 * 2 + 6 * 2
    assert ternary.bits == pytest.approx(8 * 18 / 30)
    assert rows["embed.embedding"].shape == (5, 4)
    assert rows["norm.scale"].grid == "float16"
    assert rows["layers.0.attn_norm.scale"].grid == "bfloat16"

    quantized = [name for name, t in tiny_model.tensors.items() if isinstance(t, PackedTensor)]
    assert summary.quantized_weights == sum(rows[name].weights for name in quantized) == 6 * 30 + 20
    assert summary.quantized_bits == pytest.approx(8 * sum(rows[name].nbytes for name in quantized) / 200)
    assert summary.weights == 200 + 3 + 2 + 2
    assert summary.model_bits == pytest.approx(8 * summary.tensor_bytes / 207)
    tokenizer_bytes = sum(map(len, tiny_model.tokenizer.values()))
    raw = tiny_file.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    assert summary.file_bytes == header + summary.tensor_bytes + tokenizer_bytes


def test_layers_are_listed_by_number() -> None:
    names = ["layers.10.x", "layers.9.x", "embed", "layers.2.x"]
    model = PackedModel({name: np.ones(1, np.float32) for name in names}, config={})
    assert [row.name for row in summarize(model).rows] == ["embed", "layers.2.x", "layers.9.x", "layers.10.x"]


def test_a_model_without_quantized_matrices_has_no_quantized_bits() -> None:
    summary = summarize(PackedModel({"a": np.ones(4, np.float16)}, config={}))
    assert summary.quantized_bits is None
    assert summary.model_bits == 16
    assert summary.file_bytes is None
