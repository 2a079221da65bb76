"""Packed files as models to start from: codes become the float32 values that they stand for."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lowbit.formats import BFloat16, PackedTensor, StoredTensor, decode, read
from lowbit.llama import LlamaConfig
from lowbit.models.layerwise import StoredModel
from lowbit.models.pretrained import Pretrained
from lowbit.models.stacking import is_transposed, release_pages


def load_packed(path: Path) -> Pretrained:
    """Loads a packed file, after comparing every tensor with its checksum; weights are exactly those of the file.

    Raises:
      FormatError: no packed file, or a damaged one.
      ModelError: a config of a family not supported, or tensors that are not those of the config.
    """
    return open_packed(path).load()


def open_packed(path: Path) -> StoredModel:
    """Opens a packed file, whose tensors stay on the disk; raises as `load_packed`."""
    packed = read(path, verify=True)
    cfg = LlamaConfig.from_hf(packed.config, f"the config in {path}")
    return StoredModel(cfg, packed.tokenizer, _Tensors(path, packed.tensors), packed_name)


def read_packed_config(path: Path) -> LlamaConfig:
    """Returns the sizes that a packed file states; raises as `load_packed`, of everything but tensors."""
    return LlamaConfig.from_hf(read(path).config, f"the config in {path}")


def packed_name(path: str, layer: int | None) -> str:
    """Returns the packed file's name of one layer (None: not layered) of the parameter at `path`."""
    name = path.replace("/", ".")
    return name if layer is None else f"layers.{layer}.{name.removeprefix('layers.')}"


class _Tensors:
    """The tensors of a packed file, decoded one at a time (a `TensorSource`)."""

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor]):
        self.where = str(path)
        self._tensors = tensors

    def names(self) -> set[str]:
        """Returns all names."""
        return set(self._tensors)

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as float32, kernels as [n k]."""
        values = decode(self._tensors[name])
        return values.T if is_transposed(name.replace(".", "/")) else values

    def release(self) -> None:
        """Lets go of what was read of the file."""
        for tensor in self._tensors.values():
            match tensor:
                case PackedTensor():
                    release_pages(tensor.packed)
                case BFloat16():
                    release_pages(tensor.bits)
                case _:
                    release_pages(tensor)
            break  # one map holds all
