"""Which points share a compiled program: those that differ only in what is data to it."""

import dataclasses
import json
from collections.abc import Sequence

from lowbit.config import ConfigDict, to_json
from lowbit.sweep.points import Point


@dataclasses.dataclass(frozen=True)
class Group:
    """Points of one compiled program, or a point that is a run of its own.

    Attributes:
      points: in the order of the sweep.
      at_once: how many are trained side by side; 0 for a run of its own.
    """

    points: tuple[Point, ...]
    at_once: int

    @property
    def batches(self) -> list[tuple[Point, ...]]:
        """The points, cut into those that are trained side by side."""
        size = max(self.at_once, 1)
        return [self.points[start : start + size] for start in range(0, len(self.points), size)]


def make_groups(points: Sequence[Point], at_once: int) -> list[Group]:
    """Groups points by program.

    What may differ inside of a program: the seed, the peak learning rate, and the width of ParetoQ's grids where no
    scales are taken over and there are no adapters. A point that has no other of its kind, or whose parameters are cut
    over devices, or that chooses its windows, is a run of its own; with `at_once` = 0 every point is.
    """
    alike: dict[str, list[Point]] = {}
    for point in points:
        alike.setdefault(_program(point.config), []).append(point)
    groups = []
    for members in alike.values():
        chooses = members[0].config.coreset.share != 1.0  # windows of its own
        if at_once == 0 or len(members) == 1 or _is_cut(members[0].config) or chooses:
            groups += [Group((point,), 0) for point in members]
        else:
            groups.append(Group(tuple(members), _size(len(members), at_once)))
    return groups


def _program(config: ConfigDict) -> str:
    """Everything of a config that a program is made of, as text."""
    settings = json.loads(to_json(config))
    del settings["seed"], settings["run_folder"], settings["optimizer"]["learning_rate"]
    # An override may take its width from the one that is swept, or have its own; scales that a run starts with fit one.
    # Adapters stand beside codes whose width is known.
    own_width = config.quant.overrides or config.adapters.rank or config.adapters.overrides
    if config.quant.method == "paretoq" and not own_width and not config.model.source_scales:
        del settings["quant"]["bits"], settings["quant"]["layer_bits"]
    return json.dumps(settings, sort_keys=True)


def _is_cut(config: ConfigDict) -> bool:
    """Whether the model is so large that its parameters are cut: then points do not fit beside each other."""
    return bool(config.mesh.fsdp != 1 or config.mesh.tensor != 1)


def _size(count: int, at_once: int) -> int:
    """The largest size that divides the points, as another size is another compile; over half of what is allowed."""
    most = min(count, at_once)
    return next((size for size in range(most, at_once // 2, -1) if count % size == 0), most)
