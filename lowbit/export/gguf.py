"""A packed model as a GGUF file for llama.cpp and its kin, with the codes that it was trained with."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowbit.atomic import replacing
from lowbit.errors import FormatError, ModelError
from lowbit.export.gguf_blocks import Blocks, to_blocks
from lowbit.export.gguf_layout import slots
from lowbit.export.gguf_metadata import model_metadata, rope_divisors
from lowbit.export.gguf_record import record
from lowbit.export.gguf_tokenizer import tokenizer_metadata
from lowbit.export.packed import check_standard
from lowbit.formats import PackedModel, PackedTensor, StoredTensor
from lowbit.gguf import CODERS, F32, GgufTensor, write
from lowbit.kernels import unstacked_shapes
from lowbit.llama import LlamaConfig
from lowbit.models.gguf import ROPE_DIVISORS

LOW_BIT_TYPES = tuple(coder.kind.name for coder in CODERS)


@dataclasses.dataclass(frozen=True)
class GgufRow:
    """One tensor of the packed model, in both files.

    Attributes:
      name: as in the packed file.
      grid: its grid, or None for a float tensor.
      kind: the GGUF type.
      weights: how many.
      packed_bytes: of codes and scales in the packed file.
      nbytes: in the GGUF file.
      error: largest relative error of a weight; 0 where all are equal.
    """

    name: str
    grid: str | None
    kind: str
    weights: int
    packed_bytes: int
    nbytes: int
    error: float


class GgufModel(NamedTuple):
    """What a GGUF file will hold.

    Attributes:
      metadata: key to value.
      tensors: llama.cpp's name to tensor.
      rows: what became of each tensor.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    rows: tuple[GgufRow, ...]


def to_gguf(packed: PackedModel, name: str, avoid: Collection[str] = (), pre: str | None = None) -> GgufModel:
    """Returns a packed model as GGUF; each tensor in the smallest type that holds its weights (`gguf_blocks`).

    Args:
      packed: the model.
      name: what it is called.
      avoid: low-bit types not to be used, such as Q1_0 and Q2_0 for a llama.cpp older than they are.
      pre: as for `gguf_tokenizer.tokenizer_metadata`.

    Raises:
      ModelError: a config, a rope scaling or a rounding of activations that llama.cpp does not have, an unknown type,
        or tensors that are not those of the config.
      TokenizerError: as `gguf_tokenizer.tokenizer_metadata`.
      FormatError: damaged codes.
    """
    unknown = sorted(set(avoid) - set(LOW_BIT_TYPES))
    if unknown:
        raise ModelError(f"there is no type {unknown[0]!r} to avoid", "choose from " + ", ".join(LOW_BIT_TYPES))
    cfg = LlamaConfig.from_hf(packed.config)
    check_standard(cfg, packed.meta, "llama.cpp")
    with_factors = [
        name for name, t in packed.tensors.items() if isinstance(t, PackedTensor) and t.in_scale is not None
    ]
    if with_factors:
        raise ModelError(
            f"{with_factors[0]} has a factor for each input, which no type of GGUF holds",
            "export to hf, which decodes the weights, or run the packed file itself",
        )
    if adapters := packed.adapters():
        raise ModelError(
            f"{next(iter(adapters))} has an adapter, which is a file of its own in GGUF",
            "write packed.without_adapters(), and gguf_adapter.to_gguf_adapter(packed) beside it",
        )
    odd = sorted(packed.tensors.keys() ^ unstacked_shapes(cfg).keys())
    if odd:
        raise ModelError(f"the tensors are not those of the config: see {', '.join(odd[:4])}", "export it again")
    tokenizer = tokenizer_metadata(packed.tokenizer, cfg, pre)

    tensors: dict[str, GgufTensor] = {}
    blocks: dict[str, Blocks] = {}
    divisors = rope_divisors(cfg)
    if divisors is not None:
        tensors[ROPE_DIVISORS] = GgufTensor(F32, divisors.shape, divisors.view(np.uint8))
    for slot in slots(cfg):
        own = to_blocks(packed.tensors[slot.packed], slot.along_rows, avoid)
        blocks[slot.packed] = own
        tensors[slot.gguf] = GgufTensor(own.kind, own.shape, slot.to_gguf(own.data))
    rows = tuple(_row(slot_name, packed.tensors[slot_name], own) for slot_name, own in blocks.items())
    weights = Counter[str]()
    for row in rows:
        weights[row.kind] += row.weights
    mostly = weights.most_common(1)[0][0]
    metadata = {**model_metadata(cfg, name, mostly), **tokenizer, **record(packed, blocks)}
    return GgufModel(metadata, tensors, rows)


def write_gguf(path: Path, model: GgufModel) -> None:
    """Writes the file; it appears whole or not at all, and takes the place of what was there.

    Raises:
      FormatError: the file system refuses.
    """
    write_tensors(path, model.metadata, model.tensors)


def write_tensors(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> None:
    """Writes any GGUF file; raises as `write_gguf`, and as atomically."""
    with replacing(path, FormatError) as file:
        write(file, metadata, tensors)


def _row(name: str, stored: StoredTensor, blocks: Blocks) -> GgufRow:
    return GgufRow(
        name=name,
        grid=stored.grid if isinstance(stored, PackedTensor) else None,
        kind=blocks.kind.name,
        weights=int(np.prod(blocks.shape)),
        packed_bytes=stored.nbytes,
        nbytes=blocks.data.nbytes,
        error=blocks.error,
    )
