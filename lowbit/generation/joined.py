"""Matrices that meet the same inputs, as one product: what a GPU starts once for queries, keys and values of a layer.

A small product takes as long as starting it, so three of them laid out as one matrix take a third. Outputs do not
depend on one another: codes and scales of the joined matrix are those of its parts, and so is each sum, bit for bit if
the kernel has the same tile. The model knows nothing of it. Each of its layers multiplies by the whole and takes its
own columns, and the compiler, for which these are equal products, makes one of them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lowbit.generation.floats import FloatMatrix, OwnLayers
from lowbit.generation.packed import PackedWeight
from lowbit.llama import LAYER_PREFIX, ActivationRounding
from lowbit.pallas import GpuWeight

SIBLINGS = (
    tuple(f"{LAYER_PREFIX}attn/{name}_proj" for name in "qkv"),
    tuple(f"{LAYER_PREFIX}mlp/{name}_proj" for name in ("gate", "up")),
)
"""Linear layers with the same inputs."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Columns:
    """One of the matrices of a joined one.

    Attributes:
      whole: the joined matrix, or those of all layers.
      begin: its first output there (static).
      size: its outputs (static).
    """

    whole: GpuWeight | OwnLayers | FloatMatrix
    begin: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})

    def of_layer(self, layer: Any) -> "Columns":
        """Returns those of one layer, which stay where they are: i32[] of a stack, or a number known to the program."""
        assert not isinstance(self.whole, FloatMatrix)
        return dataclasses.replace(self, whole=self.whole.of_layer(layer))

    def of(self, product: jax.Array) -> jax.Array:
        """Returns what belongs to this matrix, [b size], of a product with the whole, [b n]."""
        return product[:, self.begin : self.begin + self.size]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Joined:
    """The joined matrices of all layers, and whose they are.

    Attributes:
      whole: a stack of them, or an array a layer.
      outputs: (path of the kernel, its outputs) in their order (static).
    """

    whole: GpuWeight | OwnLayers
    outputs: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"static": True})

    def columns(self) -> dict[str, Columns]:
        """Returns each of the matrices by its path."""
        found, begin = {}, 0
        for path, size in self.outputs:
            found[path] = Columns(self.whole, begin, size)
            begin += size
        return found


def families(paths: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns the paths of all parameters, those of kernels with the same inputs together and in order."""
    left = dict.fromkeys(paths)
    together = [tuple(f"{layer}/kernel" for layer in layers) for layers in SIBLINGS]
    found = [family for family in together if all(path in left for path in family)]
    joined = {path for family in found for path in family}
    return found + [(path,) for path in left if path not in joined]


def may_be_joined(members: Mapping[str, Any], rounding: ActivationRounding) -> bool:
    """Returns whether parameters by their paths are matrices that one product can serve, exactly.

    All are floats, or all are packed with the same grid, groups, zeros or none, and no factors. Their inputs
    are rounded alike, and not by calibrated ranges, which each layer has for itself.
    """
    rounded = dict(rounding.inputs)
    kinds = {_kind(w) for w in members.values()}
    inputs = {rounded.get(path.removesuffix("/kernel")) for path in members}
    static = any(one is not None and one.range == "static" for one in inputs)
    return len(members) > 1 and len(kinds) == len(inputs) == 1 and None not in kinds and not static


def _kind(w: Any) -> tuple[Any, ...] | None:
    """What matrices have to share to be joined; None for one that stays alone."""
    if isinstance(w, OwnLayers) or (isinstance(w, PackedWeight) and not (w.in_scale is w.adapter is None)):
        return None
    if not isinstance(w, PackedWeight):
        return ("floats",)
    return (w.levels, w.k, w.packed.shape[:-2], w.scale.shape[-2], w.zero is None)


def join(members: Sequence[PackedWeight]) -> PackedWeight:
    """Returns matrices that `may_be_joined` as one of all their outputs, in numpy: nothing of it is on a device."""
    first = members[0]
    outputs = [w.packed.shape[-2] for w in members]

    def by_output(parts: list[Any]) -> np.ndarray:
        """Scales, or zeros, [*s g n]; one for a whole matrix becomes one for each of its outputs."""
        wide = [np.broadcast_to(part, (*part.shape[:-1], n)) for part, n in zip(parts, outputs, strict=True)]
        return np.concatenate(wide, axis=-1)

    return PackedWeight(
        packed=np.concatenate([w.packed for w in members], axis=-2),
        scale=by_output([w.scale for w in members]),
        zero=None if first.zero is None else by_output([w.zero for w in members]),
        in_scale=None,
        levels=first.levels,
        k=first.k,
    )
