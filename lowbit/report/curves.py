"""Training curves from the metrics.jsonl files of runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.ticker as mticker
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lowbit.errors import DataError, nearest
from lowbit.report import theme
from lowbit.report.labels import spread


class Series(NamedTuple):
    """One metric over a run: the steps at which it was logged `[n]`, and its values `[n]`."""

    steps: np.ndarray
    values: np.ndarray


def read_metrics(path: str | Path) -> dict[str, Series]:
    """Reads a metrics.jsonl: one JSON object a line, with `step` and any numbers logged at that step.

    Metrics need not be on every line. A last line without its newline belongs to a run that was stopped
    while it wrote, and is left out.

    Raises:
      DataError: the file is missing or a line is no JSON object with a `step`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no metrics at {path}", "give the metrics.jsonl of a run") from None
    found: dict[str, tuple[list[int], list[float]]] = {}
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            cause = f"line {number} of {path} is no JSON object with a 'step': {line:.60}"
            raise DataError(cause, "remove the line, or train again") from None
        for key, value in entry.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = found.setdefault(key, ([], []))
                steps.append(step)
                values.append(float(value))
    return {key: Series(np.array(s), np.array(v)) for key, (s, v) in found.items()}


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of `values [n]` over up to `window` neighbours on either side, fewer at the ends."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    index = np.arange(len(values))
    # The same number on both sides, so that the mean does not lag behind a falling curve.
    reach = np.minimum(window, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def draw_curves(runs: Mapping[str, Mapping[str, Series]], key: str = "loss") -> Figure:
    """Draws one metric of several runs: the values faint, their running mean strong, and at the end of each
    its name with the mean over the last twentieth of the run.

    Args:
      runs: for each run's name its metrics, as `read_metrics` returns them.
      key: which metric.

    Raises:
      DataError: there are no runs, or a run did not log the metric.
    """
    if not runs:
        raise DataError("no runs to draw curves of", "give the metrics of at least one run")
    for name, metrics in runs.items():
        if key not in metrics:
            raise DataError(f"the run {name!r} did not log {key!r}", nearest(key, metrics))
    series = {name: metrics[key] for name, metrics in runs.items()}
    with theme.style():
        figure = Figure(figsize=(10.4, 4.2), layout=ConstrainedLayoutEngine(rect=(0, 0, 0.97, 1)))
        axes = figure.subplots()
        means = {name: smooth(s.values, len(s.values) // 40) for name, s in series.items()}
        for (name, (steps, values)), colour in zip(series.items(), theme.SERIES * len(series), strict=False):
            axes.plot(steps, values, color=colour.light, linewidth=0.8, alpha=0.28)
            axes.plot(steps, means[name], color=colour.light)
        low = min(float(mean.min()) for mean in means.values())
        # The first steps of a rounded model can be far above everything that is worth seeing.
        high = max(float(np.quantile(mean, 0.98)) for mean in means.values())
        room = max(high - low, 1e-3)
        axes.set_ylim(low - 0.08 * room, high + 0.12 * room)
        finals = {name: float(np.mean(s.values[-max(1, len(s.values) // 20) :])) for name, s in series.items()}
        ends = spread(list(finals.values()), 0.068 * 1.2 * room)
        last = max(int(s.steps[-1]) for s in series.values())
        for (name, final), end, colour in zip(finals.items(), ends, theme.SERIES * len(series), strict=False):
            axes.annotate(
                f"{name}\u2002{final:.3f}",
                (last, end),
                xytext=(10, 0),
                textcoords="offset points",
                va="center",
                color=colour.light,
                fontweight="bold",
                annotation_clip=False,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(f"{key}, nats per token")
        axes.xaxis.set_major_locator(mticker.MaxNLocator(8, integer=True))
        axes.margins(x=0.01)
    return figure
