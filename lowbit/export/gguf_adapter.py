"""The adapters of a packed model as the GGUF file that llama.cpp adds to its base (`--lora`)."""

from typing import Any, NamedTuple

import numpy as np

from lowbit.errors import ModelError
from lowbit.export.gguf_layout import slots
from lowbit.export.gguf_metadata import architecture
from lowbit.formats import PackedModel
from lowbit.gguf import F16, GgufTensor
from lowbit.llama import LlamaConfig


class GgufAdapter(NamedTuple):
    """What the file will hold.

    Attributes:
      metadata: key to value.
      tensors: `<llama.cpp's name>.lora_a` F16 [r k] and `.lora_b` F16 [n r], by name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def to_gguf_adapter(packed: PackedModel, name: str) -> GgufAdapter:
    """Returns the factors of a packed model, bit for bit; `to_gguf` makes the file of its base.

    llama.cpp multiplies the product of a matrix's factors by alpha / r, or by 1 where alpha is 0 (`get_scale` in
    llama-adapter.h). The packed file has all of it in b, so that alpha is 0 here.

    Args:
      packed: the model.
      name: what it is called.

    Raises:
      ModelError: a model without adapters.
    """
    adapters = packed.adapters()
    if not adapters:
        raise ModelError("the model has no adapters", "write the model itself")
    cfg = LlamaConfig.from_hf(packed.config)
    tensors: dict[str, GgufTensor] = {}
    for slot in slots(cfg):
        if slot.packed not in adapters:
            continue
        adapter = adapters[slot.packed]
        tensors[f"{slot.gguf}.lora_a"] = _half(np.ascontiguousarray(adapter.a.T))
        tensors[f"{slot.gguf}.lora_b"] = _half(slot.to_gguf(np.ascontiguousarray(adapter.b.T)))
    metadata = {
        "general.type": "adapter",
        "general.architecture": architecture(cfg),
        "general.name": f"{name} adapters",
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
    return GgufAdapter(metadata, tensors)


def _half(rows: np.ndarray) -> GgufTensor:
    return GgufTensor(F16, rows.shape, np.ascontiguousarray(rows.astype("<f2")).view(np.uint8))
