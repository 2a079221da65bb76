"""A width for each kernel of each layer, where they are not all the same, and how a config says it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lowbit.errors import QuantizerError
from lowbit.llama import LAYER_PREFIX
from lowbit.models.blockwise import LINEAR_STAGES
from lowbit.ptq.target import Target

_PATHS = tuple(path for stage in LINEAR_STAGES for path in stage)


@dataclasses.dataclass(frozen=True)
class Widths:
    """Bits of the codes of every kernel.

    Attributes:
      by_path: a width a layer, by the kernel's path in the layer.
    """

    by_path: Mapping[str, tuple[float, ...]]

    def at(self, layer: int, path: str) -> float:
        """Returns the width of one kernel."""
        return self.by_path[path][layer]

    @property
    def used(self) -> tuple[float, ...]:
        """The widths that occur, in ascending order."""
        return tuple(sorted({width for widths in self.by_path.values() for width in widths}))

    def check(self, layers: int) -> None:
        """Refuses widths that are for a model of other parts.

        Raises:
          QuantizerError: a kernel that has no widths or that no layer has, or widths for another number of layers.
        """
        if odd := sorted(set(_PATHS) ^ set(self.by_path)):
            raise QuantizerError(
                f"widths are given for other kernels than a layer has: see {', '.join(odd)}",
                f"give them for {', '.join(_PATHS)}",
            )
        counts = {len(widths) for widths in self.by_path.values()}
        if counts != {layers}:
            raise QuantizerError(
                f"widths are given for {', '.join(map(str, sorted(counts)))} layers, and the model has {layers}",
                "allocate widths for this very model",
            )

    def overrides(self, target: Target) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Returns `quant.overrides` of a config by which training gives each kernel its width.

        Args:
          target: of the grid and granularity; its width does not count.

        Raises:
          QuantizerError: training has no such grid, or none of several widths in the layers of one kernel.
        """
        section = target.section()
        if section is None:
            raise QuantizerError(
                f"training has no quantizer with the grid {target.grid!r}", "allocate widths of the grid 'paretoq'"
            )
        shared = {key: section[key] for key in ("method", "granularity", "symmetric")}
        found = []
        for path, widths in self.by_path.items():
            if len(set(widths)) == 1:
                chosen: dict[str, Any] = {"bits": float(widths[0])}
            elif target.grid == "paretoq":
                # Part of the state, and not of the program: one compiled layer serves all of them.
                chosen = {"layer_bits": tuple(map(float, widths))}
            else:
                raise QuantizerError(
                    f"the layers of {path} differ in width, and training has only the grid 'paretoq' for that",
                    "allocate widths of the grid 'paretoq', or write a packed file, which holds any",
                )
            found.append((LAYER_PREFIX + path, shared | chosen))
        return tuple(found)
