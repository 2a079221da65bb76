"""What a sweep came to: sweep.json with types, seeds taken together, and the table."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lowbit.errors import DataError
from lowbit.report.results import read_json, typed
from lowbit.report.table import format_seconds, lay_out

WIDTH, REPEAT, RATE = "quant.bits", "seed", "optimizer.learning_rate"
"""The settings with a meaning of their own: what models are compared within, repeated over, and tuned in."""
METHOD, FLOAT = "quant.method", "float"
"""What a point sets that is the float model, from which the distances of others count."""


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep, as sweep.json has it.

    Attributes:
      name: names its run folder.
      settings: in which it differs from the base, by config key.
      error: why it has no result, or None.
      together: points that were trained as one program with it; 0 for a run of its own.
      evaluations: by text, the fields of an evaluation; None where it failed, as for all that follow.
      bits_per_weight: over the quantized matrices, scales included; None for a float model too.
      bits_per_weight_model: over every parameter.
      tokens: trained on.
      seconds: its share of the wall-clock time.
      git_commit: of the code that trained it, and so on.
      device: what trained it.
      jax_version: what compiled it.
      date: when it ended.
    """

    name: str
    settings: dict[str, Any]
    error: str | None
    together: int
    evaluations: dict[str, Any] | None
    bits_per_weight: float | None
    bits_per_weight_model: float | None
    tokens: int | None
    seconds: float | None
    git_commit: str | None
    device: str | None
    jax_version: str | None
    date: str | None


@dataclasses.dataclass(frozen=True)
class SweepResults:
    """A sweep, as sweep.json has it: where it comes from, and its finished points.

    Attributes:
      base: config file and variants.
      overrides: `key=value` for all points.
      command: the command line.
      git_commit: of the code, None outside of a checkout.
      lowbit_version: and the versions of what it runs on.
      jax_version: see there.
      python_version: see there.
      device: what trained.
      device_count: how many of them.
      seed: of the first point.
      date: when the file was written.
      count: points of the sweep, finished or not.
      points: those that are finished.
    """

    base: str
    overrides: list[str]
    command: str
    git_commit: str | None
    lowbit_version: str
    jax_version: str
    python_version: str
    device: str
    device_count: int
    seed: int
    date: str
    count: int
    points: list[SweepPoint]

    @property
    def texts(self) -> list[str]:
        """The texts that models were evaluated on; the first is what figures show."""
        return next((list(point.evaluations) for point in self.points if point.evaluations), [])

    def values(self, key: str) -> list[Any]:
        """The values of a setting, each once: numbers ascending, others as they first appear."""
        found = list(dict.fromkeys(_hashable(point.settings.get(key)) for point in self.points))
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
        return sorted(found) if numbers else found

    @property
    def axes(self) -> list[str]:
        """The settings that have more than one value, but for the seed."""
        keys = dict.fromkeys(key for point in self.points for key in point.settings)
        return [key for key in keys if key != REPEAT and len(self.values(key)) > 1]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Points that differ in their seed alone.

    Attributes:
      values: of the sweep's axes, by config key.
      points: one a seed.
    """

    values: Mapping[str, Any]
    points: Sequence[SweepPoint]

    def nats(self, text: str) -> list[float]:
        """Nats/token of each seed that did not fail."""
        return [float(point.evaluations[text]["nll"]) for point in self.points if point.evaluations is not None]

    def mean(self, text: str) -> float | None:
        """The mean over seeds; None where any failed: the mean of the survivors would flatter."""
        nats = self.nats(text)
        return statistics.fmean(nats) if len(nats) == len(self.points) else None

    def spread(self, text: str) -> float | None:
        """The standard deviation over seeds; None for fewer than two."""
        nats = self.nats(text)
        return statistics.stdev(nats) if len(nats) > 1 else None


def read_sweep(path: str | Path) -> SweepResults:
    """Reads sweep.json.

    Raises:
      DataError: the file is missing or no JSON object, or a field is not as `SweepResults` says.
    """
    item = read_json(Path(path))
    if isinstance(item, dict) and isinstance(item.get("points"), list):
        points = [typed(SweepPoint, point, f"point {i} of {path}") for i, point in enumerate(item["points"])]
        item = item | {"points": points}
    return typed(SweepResults, item, str(path))


def settings_of(results: SweepResults) -> list[Setting]:
    """Returns the points of a sweep with seeds taken together, in order of appearance.

    Raises:
      DataError: no point is finished.
    """
    if not results.points:
        raise DataError("no point of the sweep is finished", "go on with it: --resume")
    axes = results.axes
    found: dict[tuple[Any, ...], list[SweepPoint]] = {}
    for point in results.points:
        found.setdefault(tuple(_hashable(point.settings.get(key)) for key in axes), []).append(point)
    return [Setting(dict(zip(axes, values, strict=True)), points) for values, points in found.items()]


def float_setting(results: SweepResults) -> Setting | None:
    """Returns the setting of a sweep that is a float model; None where no point is one."""
    return next((setting for setting in settings_of(results) if setting.values.get(METHOD) == FLOAT), None)


def best_by_width(results: SweepResults) -> dict[Any, Setting]:
    """Returns each width's setting of least nats/token on the first text, under None if all have one width.

    Float models are out of competition.
    """
    best: dict[Any, Setting] = {}
    for text in results.texts[:1]:
        for setting in settings_of(results):
            if setting.values.get(METHOD) == FLOAT:
                continue
            width, mean = setting.values.get(WIDTH), setting.mean(text)
            if mean is not None and (width not in best or mean < (best[width].mean(text) or 0.0)):
                best[width] = setting
    return best


def label(key: str) -> str:
    """Returns what tables and figures call a setting: the last part of its key, in words."""
    return key.rpartition(".")[2].replace("_", " ")


def show(value: Any) -> str:
    """Returns a value of a setting for people; a dash for one that the point leaves to its base."""
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return " ".join(map(show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def sweep_cells(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """Returns the headings of a sweep's table and the words of each line, one a setting.

    Raises:
      DataError: no point is finished.
    """
    settings = settings_of(results)
    best = [setting.values for setting in best_by_width(results).values()]
    columns: list[tuple[str, Callable[[Setting], str]]] = [
        *((label(key), lambda setting, key=key: show(setting.values[key])) for key in results.axes),
        ("runs", lambda setting: str(len(setting.points))),
        *((f"{text}, nats/token", lambda setting, text=text: _nats(setting, text)) for text in results.texts),
        ("bits/weight", _bits),
        ("time a point", _time),
        ("best", lambda setting: "best" if setting.values in best else ""),
    ]
    return [heading for heading, _ in columns], [[cell(setting) for _, cell in columns] for setting in settings]


def sweep_table(results: SweepResults, form: Literal["markdown", "plain"]) -> str:
    """Lays a sweep out as a table: a line a setting, the mean over seeds with their standard deviation.

    Raises:
      DataError: no point is finished.
    """
    headings, cells = sweep_cells(results)
    return lay_out(headings, [True] * len(headings), cells, form)


def _nats(setting: Setting, text: str) -> str:
    failed = sum(point.error is not None for point in setting.points)
    if failed:
        return "failed" if failed == len(setting.points) else f"{failed} of {len(setting.points)} failed"
    mean, spread = setting.mean(text), setting.spread(text)
    return f"{mean:.3f}" + ("" if spread is None else f" ±{spread:.3f}")


def _bits(setting: Setting) -> str:
    found = [point.bits_per_weight for point in setting.points if point.bits_per_weight is not None]
    return f"{found[0]:.2f}" if found else "–"


def _time(setting: Setting) -> str:
    found = [point.seconds for point in setting.points if point.seconds is not None]
    return format_seconds(statistics.fmean(found)) if found else "–"


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
