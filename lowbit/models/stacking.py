"""Tensors of one layer each, as files hold them, into the stacked parameter tree of the decoder."""

import mmap
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lowbit.errors import ModelError
from lowbit.llama import LAYER_PREFIX, LlamaConfig, param_shapes
from lowbit.tree import unflatten

# (path in the tree, layer or None) -> name in the file.
NameOf = Callable[[str, int | None], str]


@runtime_checkable
class TensorSource(Protocol):
    """Something that gives out tensors by name, one at a time."""

    where: str

    def names(self) -> set[str]:
        """Returns the names of all tensors."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor as floats, matrices as [n k] (out, in)."""
        ...

    def release(self) -> None:
        """Lets go of what is in memory of the file; `read` takes it up again."""
        ...


def stack_params(cfg: LlamaConfig, source: TensorSource, name_of: NameOf) -> dict[str, Any]:
    """Returns the nested float32 tree of `cfg`, kernels [L k n], read from tensors of one layer each.

    Each stacked array is filled layer by layer, so that one tensor at most is held twice.

    Args:
      cfg: what is expected.
      source: where tensors come from; all its names must be known.
      name_of: how `source` calls a layer of a parameter.

    Raises:
      ModelError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    check_names(cfg, source, name_of)
    flat: dict[str, np.ndarray] = {}
    for path, shape in param_shapes(cfg).items():
        is_layered = path.startswith(LAYER_PREFIX)
        stacked = np.empty(0, np.float32)
        for layer, name in enumerate(layer_names(cfg, path, name_of)):
            tensor = read_oriented(path, shape[1:] if is_layered else shape, source, name)
            if layer == 0:  # not before a tensor has proved that the config's sizes are no fancy
                stacked = np.empty(shape, np.float32)
            slot = stacked[layer] if is_layered else stacked
            slot[...] = tensor
            check_finite(slot, source, name)
        flat[path] = stacked
    return unflatten(flat)


def layer_names(cfg: LlamaConfig, path: str, name_of: NameOf) -> list[str]:
    """Returns the names of the tensors that make up one parameter: one a layer, or a single one."""
    if path.startswith(LAYER_PREFIX):
        return [name_of(path, layer) for layer in range(cfg.num_layers)]
    return [name_of(path, None)]


def is_transposed(path: str) -> bool:
    """Whether files hold the transpose: kernels are [k n] in the tree and [n k] in files."""
    return path.endswith("/kernel")


def read_oriented(path: str, shape: tuple[int, ...], source: TensorSource, name: str) -> np.ndarray:
    """Returns the tensor of one layer as the tree wants it, in its stored dtype, perhaps a view.

    Args:
      path: of the parameter.
      shape: of one layer of it.
      source: where it comes from.
      name: of the tensor there.

    Raises:
      ModelError: it has another shape.
    """
    tensor = source.read(name)
    wanted = shape[::-1] if is_transposed(path) else shape
    if tensor.shape != wanted:
        raise ModelError(
            f"{name} in {source.where} has shape {list(tensor.shape)}, but the config states {list(wanted)}",
            "use the config of this very model",
        )
    return tensor.T if is_transposed(path) else tensor


def check_finite(values: np.ndarray, source: TensorSource, name: str) -> None:
    """Raises ModelError where a tensor holds what is no number."""
    if not np.isfinite(values).all():
        raise ModelError(
            f"{name} in {source.where} holds NaN or infinite values",
            "download the model again, or take a release whose weights are finite",
        )


def check_names(cfg: LlamaConfig, source: TensorSource, name_of: NameOf) -> None:
    """Raises ModelError where a source lacks a tensor, or holds one that a decoder of this config does not have."""
    expected = {name for path in param_shapes(cfg) for name in layer_names(cfg, path, name_of)}
    _compare_names(expected, source)


def release_pages(array: np.ndarray) -> None:
    """Lets go of the pages of the memory map that an array is a view of; they count as long as they are held."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _compare_names(expected: set[str], source: TensorSource) -> None:
    found = source.names()
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing:
        raise ModelError(
            f"{source.where} lacks {_listed(missing)}", "download the model again, with the config it came with"
        )
    if unexpected:
        raise ModelError(
            f"{source.where} holds {_listed(unexpected)}, which a decoder of this config does not have",
            "take a model whose architecture is the one its config.json names",
        )


def _listed(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more tensors" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
