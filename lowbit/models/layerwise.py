"""A float model of which one layer at a time is in memory: for work that goes through the layers in their order."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.models.pretrained import Pretrained, local_folder
from lowbit.models.stacking import NameOf, TensorSource, check_finite, check_names, read_oriented, stack_params
from lowbit.tree import flatten


@runtime_checkable
class LayerSource(Protocol):
    """A float model that is asked for its parts."""

    @property
    def cfg(self) -> LlamaConfig:
        """Sizes and constants."""
        ...

    @property
    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Name to content."""
        ...

    def layer(self, index: int) -> dict[str, np.ndarray]:
        """Returns the parameters of one layer, by path in the layer, f32 without a layer axis."""
        ...

    def outside(self, path: str) -> np.ndarray:
        """Returns one parameter outside of the layers, f32; the paths are those of `outside_paths`."""
        ...

    def load(self) -> Pretrained:
        """Returns the whole model in memory."""
        ...


def outside_paths(cfg: LlamaConfig) -> list[str]:
    """Returns the paths of the parameters that belong to no layer: embedding, last norm, a head of its own."""
    return [path for path in param_shapes(cfg) if not path.startswith(LAYER_PREFIX)]


class StoredModel:
    """A model on the disk (a `LayerSource`); a tensor is checked when it is read."""

    def __init__(self, cfg: LlamaConfig, tokenizer_files: Mapping[str, bytes], source: TensorSource, name_of: NameOf):
        """Compares the names of all tensors with what the config asks for.

        Raises:
          ModelError: a tensor is missing or unexpected.
        """
        self.cfg, self.tokenizer_files = cfg, dict(tokenizer_files)
        self._source, self._name_of = source, name_of
        self._shapes = param_shapes(cfg)
        check_names(cfg, source, name_of)

    def layer(self, index: int) -> dict[str, np.ndarray]:
        """As `LayerSource.layer`; nothing of the file stays in memory beside the result.

        Raises:
          ModelError: a tensor of another shape, or one that is not finite.
        """
        paths = [path for path in self._shapes if path.startswith(LAYER_PREFIX)]
        flat = {path.removeprefix(LAYER_PREFIX): self._read(path, index) for path in paths}
        self._source.release()
        return flat

    def outside(self, path: str) -> np.ndarray:
        """As `LayerSource.outside`; raises as `layer`."""
        values = self._read(path, None)
        self._source.release()
        return values

    def load(self) -> Pretrained:
        """As `LayerSource.load`; raises as `layer`."""
        params = stack_params(self.cfg, self._source, self._name_of)
        return Pretrained(self.cfg, params, dict(self.tokenizer_files))

    def _read(self, path: str, layer: int | None) -> np.ndarray:
        shape = self._shapes[path]
        name = self._name_of(path, layer)
        tensor = read_oriented(path, shape if layer is None else shape[1:], self._source, name)
        values = np.array(tensor, np.float32, order="C")  # a copy: views would hold the file
        check_finite(values, self._source, name)
        return values


class ModelInMemory:
    """A model that is loaded already (a `LayerSource`)."""

    def __init__(self, loaded: Pretrained):
        self.cfg, self.tokenizer_files = loaded.cfg, loaded.tokenizer_files
        self._loaded = loaded
        self._flat: dict[str, Any] = flatten(loaded.params)

    def layer(self, index: int) -> dict[str, np.ndarray]:
        """As `LayerSource.layer`."""
        return {
            path.removeprefix(LAYER_PREFIX): np.asarray(leaf[index], np.float32)
            for path, leaf in self._flat.items()
            if path.startswith(LAYER_PREFIX)
        }

    def outside(self, path: str) -> np.ndarray:
        """As `LayerSource.outside`."""
        return np.asarray(self._flat[path], np.float32)

    def load(self) -> Pretrained:
        """Returns it."""
        return self._loaded


def open_model(source: str | Path) -> StoredModel:
    """Opens a float model, whose weights stay on the disk until they are asked for.

    Args and raises: as `lowbit.models.pretrained.load`; tensors of another shape, and those that are not finite, are
    found when they are read.
    """
    # Imported here so that reading one kind of file does not load the libraries of the other.
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        from lowbit.models.gguf import open_gguf

        return open_gguf(path)
    if path.is_file():
        from lowbit.models.packed import open_packed

        return open_packed(path)
    from lowbit.models.hf import open_hf

    return open_hf(local_folder(source))
