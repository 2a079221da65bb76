"""The figures of a sweep: nats over a setting, a map of two settings, and the best of each width."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.ticker as mticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from lowbit.report import theme
from lowbit.report.distances import draw_distances
from lowbit.report.labels import spread
from lowbit.report.sweep import (
    RATE,
    WIDTH,
    Setting,
    SweepResults,
    best_by_width,
    float_setting,
    label,
    settings_of,
    show,
)


def draw_sweep(results: SweepResults) -> dict[str, Figure]:
    """Returns the figures that the axes of a sweep allow, by name.

    "response": nats/token over the learning rate, or the first axis of numbers, one line a width (or a value of the
    next axis). "map": the same as a table of shades. "best": the best setting of each width over bits per weight.
    Where there are more axes, each place shows the best over them. A sweep with a float model among its points is a
    study, and has "distances" to that model alone.

    Raises:
      DataError: no point is finished.
    """
    across, series = _across(results), _series(results)
    figures: dict[str, Figure] = {}
    if not best_by_width(results):
        return figures
    if float_setting(results) is not None:
        return {"distances": draw_distances(results)}
    if across is not None:
        figures["response"] = _response(results, across, series)
    if across is not None and series is not None:
        figures["map"] = _map(results, across, series)
    if WIDTH in results.axes:
        figures["best"] = _best(results)
    return figures


def _across(results: SweepResults) -> str | None:
    """The setting along the horizontal axis."""
    numeric = [key for key in results.axes if key != WIDTH and _is_numeric(results.values(key))]
    return RATE if RATE in numeric else next(iter(numeric), None)


def _series(results: SweepResults) -> str | None:
    """The setting that tells lines apart."""
    across = _across(results)
    return WIDTH if WIDTH in results.axes else next((key for key in results.axes if key != across), None)


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _cells(results: SweepResults, across: str, series: str | None) -> dict[tuple[Any, Any], Setting]:
    """The setting shown at each (value of series, value of across): the best over all other axes."""
    text, cells = results.texts[0], dict[tuple[Any, Any], Setting]()
    for setting in settings_of(results):
        place = (None if series is None else setting.values[series], setting.values[across])
        mean = setting.mean(text)
        before = cells[place].mean(text) if place in cells else None
        if place not in cells or before is None or (mean is not None and mean < before):
            cells[place] = setting
    return cells


def _response(results: SweepResults, across: str, series: str | None) -> Figure:
    text, cells = results.texts[0], _cells(results, across, series)
    lines = [None] if series is None else results.values(series)
    with theme.style():
        figure = Figure(figsize=(8.6, 4.9), layout=ConstrainedLayoutEngine(rect=(0, 0, 0.9, 1)))
        axes = figure.subplots()
        ends: dict[Any, tuple[float, float]] = {}
        for value, colour in zip(lines, theme.SERIES * len(lines), strict=False):
            drawn = [(x, cells[value, x]) for x in results.values(across) if (value, x) in cells]
            well = [(x, mean) for x, setting in drawn if (mean := setting.mean(text)) is not None]
            if not well:
                continue
            for x, setting in drawn:
                nats = setting.nats(text)
                axes.plot([x] * len(nats), nats, "o", color=colour.light, markersize=4, alpha=0.35, linewidth=0)
            axes.plot(*zip(*well, strict=True), color=colour.light)
            axes.plot(
                *min(well, key=lambda place: place[1]),
                "o",
                color=colour.light,
                markersize=9,
                markeredgecolor=theme.PAPER.light,
                markeredgewidth=1.5,
                zorder=3,
            )
            ends[value] = well[-1]
        _axis_of_values(axes, results, across)
        axes.set_ylabel(f"nats per token, {text} (lower is better)")
        axes.margins(x=0.03)
        low, high = axes.get_ylim()
        places = spread([y for _, y in ends.values()], 0.055 * (high - low))
        for (value, _), place in zip(ends.items(), places, strict=True):
            colour = theme.SERIES[lines.index(value) % len(theme.SERIES)]
            name = "" if value is None or series is None else _named(series, value)
            axes.annotate(
                name,
                (1.0, place),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=colour.light,
                fontweight="bold",
                annotation_clip=False,
            )
    return figure


def _map(results: SweepResults, across: str, series: str) -> Figure:
    """Each row is shaded by what it loses against its own best, which is outlined."""
    text, cells = results.texts[0], _cells(results, across, series)
    columns, rows = results.values(across), results.values(series)
    with theme.style():
        size = (2.4 + 1.15 * len(columns), 1.3 + 0.52 * len(rows))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for j, row in enumerate(rows):
            means = {x: setting.mean(text) for x in columns if (setting := cells.get((row, x))) is not None}
            known = [mean for mean in means.values() if mean is not None]
            for i, x in enumerate(columns):
                mean = means.get(x)
                above = 0.0 if mean is None else mean - min(known)
                # A nat above the best is the darkest: more is lost either way.
                shade = 0.62 * math.sqrt(min(above, 1.0))
                axes.add_patch(
                    Rectangle((i, j), 0.96, 0.92, facecolor=theme.VERMILLION.light, alpha=shade, linewidth=0)
                )
                if mean is not None and above == 0.0:
                    axes.add_patch(Rectangle((i, j), 0.96, 0.92, fill=False, edgecolor=theme.INK.light, linewidth=1.6))
                failed = x in means and mean is None
                axes.annotate(
                    f"{mean:.3f}" if mean is not None else "failed" if failed else "",
                    (i + 0.48, j + 0.47),
                    ha="center",
                    va="center",
                    color=theme.MUTED.light if failed else theme.INK.light,
                )
        axes.set_xlim(-0.02, len(columns))
        axes.set_ylim(len(rows), -0.04)
        axes.set_xticks([i + 0.48 for i in range(len(columns))], [show(x) for x in columns])
        axes.set_yticks([j + 0.47 for j in range(len(rows))], [_named(series, row) for row in rows])
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
        axes.set_xlabel(label(across))
    return figure


def _best(results: SweepResults) -> Figure:
    text, best = results.texts[0], best_by_width(results)
    with theme.style():
        figure = Figure(figsize=(7.6, 4.7), layout="constrained")
        axes = figure.subplots()
        for setting in settings_of(results):
            mean = setting.mean(text)
            if mean is not None:
                axes.plot(_bits(setting), mean, "o", color=theme.BLUE.light, markersize=5, alpha=0.3)
        frontier = sorted(((_bits(setting), setting) for setting in best.values()), key=lambda place: place[0])
        axes.plot(
            [bits for bits, _ in frontier],
            [setting.mean(text) or 0.0 for _, setting in frontier],
            color=theme.BLUE.light,
            marker="s",
            markersize=8,
            markeredgecolor=theme.PAPER.light,
            markeredgewidth=1.5,
            zorder=3,
        )
        others = [key for key in results.axes if key != WIDTH]
        for bits, setting in frontier:
            words = [f"{setting.mean(text):.3f}", *(f"{label(key)} {show(setting.values[key])}" for key in others)]
            axes.annotate(
                "\n".join(words),
                (bits, setting.mean(text) or 0.0),
                xytext=(-5, -9),  # the line falls: there is room below it
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=9,
                color=theme.MUTED.light,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(mticker.FixedLocator([bits for bits, _ in frontier]))
        axes.xaxis.set_major_formatter(mticker.FixedFormatter([show(s.values[WIDTH]) for _, s in frontier]))
        axes.xaxis.set_minor_locator(mticker.NullLocator())
        axes.set_xlabel("bits per weight of the quantized matrices, at their stored size")
        axes.set_ylabel(f"nats per token, {text} (lower is better)")
        axes.margins(x=0.06, y=0.16)
        narrowest, widest = (math.log(place) for place in axes.get_xlim())
        axes.set_xlim(left=math.exp(narrowest - 0.2 * (widest - narrowest)))  # where the first label stands
    return figure


def _bits(setting: Setting) -> float:
    """Stored bits per weight, or the width itself where the file has none."""
    stored = next((point.bits_per_weight for point in setting.points if point.bits_per_weight is not None), None)
    return float(setting.values[WIDTH]) if stored is None else stored


def _axis_of_values(axes: Axes, results: SweepResults, key: str) -> None:
    values = results.values(key)
    if min(values) > 0 and max(values) >= 5 * min(values):
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(mticker.FixedLocator(values))
    axes.xaxis.set_major_formatter(mticker.FixedFormatter([show(value) for value in values]))
    axes.xaxis.set_minor_locator(mticker.NullLocator())
    axes.set_xlabel(label(key))


def _named(key: str, value: Any) -> str:
    return f"{show(value)} bit" if key == WIDTH else f"{label(key)} {show(value)}"
