"""Which tensor of a GGUF file holds which parameter, and in which order of rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lowbit.export.gguf_metadata import architecture
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.models.gguf import gguf_name, half_split_rows, interleaved_rows
from lowbit.models.packed import packed_name

_EMBEDDING = "embed/embedding"


class Slot(NamedTuple):
    """A tensor in both files.

    Attributes:
      packed: its name in the packed file.
      gguf: its name in the GGUF file.
      along_rows: whether the parameter is [n k] (an embedding); a kernel is [k n].
      heads: of a matrix whose rows llama.cpp wants as interleaved rotary pairs; None for all others.
    """

    packed: str
    gguf: str
    along_rows: bool
    heads: int | None

    def to_gguf(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of a matrix (or a vector) in llama.cpp's order."""
        return rows if self.heads is None else interleaved_rows(rows, self.heads)

    def to_packed(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of `to_gguf`."""
        return rows if self.heads is None else half_split_rows(rows, self.heads)


def slots(cfg: LlamaConfig) -> Iterator[Slot]:
    """Yields every tensor of a model, embedding first."""
    heads = {"layers/attn/q_proj/kernel": cfg.num_heads, "layers/attn/k_proj/kernel": cfg.num_kv_heads}
    turned = heads if architecture(cfg) == "llama" else {}
    for path in param_shapes(cfg):
        for layer in range(cfg.num_layers) if path.startswith(LAYER_PREFIX) else (None,):
            yield Slot(packed_name(path, layer), gguf_name(path, layer), path == _EMBEDDING, turned.get(path))
