"""The points of a sweep: each a name and a config like that of any run."""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit import config as configs
from lowbit.config import ConfigDict
from lowbit.errors import ConfigError, LowbitError
from lowbit.sweep.spec import Settings, Sweep
from lowbit.train.adapters import model_rules
from lowbit.train.limits import check_limits

POINTS = "points"
"""The folder of a sweep that holds one run folder a point."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: stable, such as "bits=2,seed=0": it depends on the point's settings alone, and names its folder.
      settings: in which it differs from the base, as they stand in its config.
      config: the locked config, run folder included.
    """

    name: str
    settings: dict[str, Any]
    config: ConfigDict


def make_points(sweep: Sweep, folder: Path, overrides: Sequence[str] = ()) -> list[Point]:
    """Returns the points of a sweep, each config checked as far as it can be without files.

    Args:
      sweep: what to run.
      folder: of the sweep; runs lie in its `points`.
      overrides: `key=value` for all points, after those of the sweep.

    Raises:
      ConfigError: an unknown key (the message names the nearest), a value of another type or out of range, an override
        of what points differ in, or two points with one name.
      LowbitError: as `lowbit.config.load` and `model_rules` raise.
    """
    labels = _labels(key for settings in sweep.points for key in settings)
    shared = (*sweep.overrides, *overrides)
    _check_overrides(shared, labels)
    points = []
    for settings in sweep.points:
        name = ",".join(f"{labels[key]}={_in_a_name(value)}" for key, value in settings.items()) or "base"
        assignments = [f"{key}={_as_text(value)}" for key, value in settings.items()]
        try:
            config = configs.load(sweep.base, [*shared, *assignments])
            with config.unlocked():
                config.run_folder = str(folder / POINTS / name)
            check_limits(config)
            configs.steps(config)
            model_rules(config)
        except LowbitError as error:
            raise type(error)(f"point {name}: {error.cause}", error.mend) from error
        flat = json.loads(configs.to_json(config))
        points.append(Point(name, {key: _at(flat, key) for key in settings}, config))
    counts = collections.Counter(point.name for point in points)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ConfigError(f"the sweep has two points called {twice[0]!r}", "give each setting once")
    return points


def _labels(keys: Iterable[str]) -> dict[str, str]:
    """What names call each key: its last part, or all of it where two end alike."""
    distinct = list(dict.fromkeys(keys))
    ends = collections.Counter(key.rpartition(".")[2] for key in distinct)
    labels = {}
    for key in distinct:
        end = key.rpartition(".")[2]
        labels[key] = end if ends[end] == 1 else key
    return labels


def _check_overrides(overrides: Sequence[str], labels: Mapping[str, str]) -> None:
    keys = [text.removeprefix("--").removeprefix("config.").partition("=")[0] for text in overrides]
    if "run_folder" in (*keys, *labels):
        raise ConfigError("run_folder is set, and each point has its own", "choose the sweep's folder with -o")
    for key, assignment in zip(keys, overrides, strict=True):
        if key in labels:
            raise ConfigError(f"override {assignment!r} sets what the points differ in", "take the key out of one")


def _as_text(value: Any) -> str:
    """A value as it is written in an override, so that both are checked by the same code."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(tuple(value)) if isinstance(value, list | tuple) else str(value)


def _in_a_name(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(_in_a_name, value)) or "none"
    text = f"{value:g}" if isinstance(value, float) else _as_text(value)
    return re.sub(r"[^\w.+-]", "-", text)


def _at(flat: Settings, key: str) -> Any:
    value: Any = flat
    for part in key.split("."):
        value = value[part]
    return value
