"""What a sweep is: a base config, and the settings in which its points differ."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.config.files import python_file
from lowbit.errors import ConfigError, LowbitError

Settings = Mapping[str, Any]
"""Keys of a config such as "quant.bits", and their values."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs of one config that differ in a few settings.

    Example:
      >>> Sweep("configs/qat_quickstart.py", product({"quant.bits": (1, 2, 4), "seed": (0, 1)}))

    Attributes:
      base: config file and variants, as `lowbit train` takes them.
      points: the settings of each point; `product` makes those of a grid, and any list will do.
      overrides: `key=value` for all points.
      points_at_once: how many points that share a shape are trained as one vmapped program; 1: they share the compiled
        program, one after another; 0: each is a run of its own, with checkpoints; None: 1 on a CPU, which has no idle
        units for a batch of points to fill, and 8 elsewhere.
    """

    base: str
    points: Sequence[Settings]
    overrides: Sequence[str] = ()
    points_at_once: int | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise ConfigError("a sweep without points", "give at least one point, or an axis with a value")
        if self.points_at_once is not None and self.points_at_once < 0:
            raise ConfigError(f"points_at_once={self.points_at_once}", "give 0 or more")


def product(axes: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Returns every combination of the axes' values; the last axis changes fastest.

    Args:
      axes: a tuple of values for each key, such as `{"quant.bits": (1, 2), "seed": (0, 1, 2)}`.

    Raises:
      ConfigError: an axis that is no sequence of values, or one without any.
    """
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"axis {key!r} is {values!r}", "give a tuple of values, such as (1, 2)")
        if not values:
            raise ConfigError(f"axis {key!r} has no values", "give at least one, or leave the axis out")
    return tuple(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def load_sweep(path_text: str) -> Sweep:
    """Returns what `get_sweep()` of a Python file returns.

    Raises:
      ConfigError: no such file, or one that fails or returns something else.
    """
    execute = python_file(path_text, "sweep", "give the path of a file such as configs/sweeps/x.py")
    try:
        module = execute()
        if not hasattr(module, "get_sweep"):
            raise ConfigError(f"{path_text} defines no get_sweep()", "define get_sweep() -> Sweep in it")
        sweep = module.get_sweep()
    except LowbitError:
        raise
    except Exception as error:  # the file is the user's own code: whatever it raises is a mistake in it
        raise ConfigError(f"{path_text} cannot be loaded: {type(error).__name__}: {error}", "mend the file") from error
    if not isinstance(sweep, Sweep):
        raise ConfigError(f"get_sweep of {path_text!r} returns {sweep!r:.60}", "return a lowbit.sweep.Sweep")
    return sweep
