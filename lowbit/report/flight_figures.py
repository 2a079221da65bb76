"""Figures of the flight recorder: what happened to codes, scales and weights, over steps and layers."""

import itertools
from typing import NamedTuple

import matplotlib.ticker as mticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lowbit.report import theme
from lowbit.report.flight_log import FlightLog, short_name
from lowbit.report.labels import spread

HEAT = LinearSegmentedColormap.from_list("heat", ["#e8eef3", "#7fb2d6", theme.BLUE.light, "#04253d"])
LEVELS = LinearSegmentedColormap.from_list("levels", [theme.VERMILLION.light, "#f3efe9", theme.BLUE.light])


class Quantity(NamedTuple):
    """How a figure of the recorder is drawn.

    Attributes:
      words: what it is a share of, or a ratio of.
      percent: whether 1 is written as 100 %.
      decades: whether its axis is logarithmic.
      of_a_step: whether it describes the recorded step alone: then layers are compared by their mean over all records,
        as the last step, of the smallest learning rate, says little.
    """

    words: str
    percent: bool = True
    decades: bool = False
    of_a_step: bool = False


QUANTITIES = {
    "flips": Quantity("codes changed by one step", decades=True, of_a_step=True),
    "moved": Quantity("codes other than at the start"),
    "idle_rows": Quantity("channels without a flip in the step", of_a_step=True),
    "stuck_rows": Quantity("channels with every code of the start"),
    "dead_rows": Quantity("channels of a single code"),
    "clipped": Quantity("weights outside of the grid's range"),
    "change": Quantity("|W − W0| / |W0|, L1"),
    "change_l2": Quantity("|W − W0| / |W0|, L2"),
    "drift": Quantity("scale / best scale", percent=False),
    "update": Quantity("|A B| / |W|, L2"),
    "update_step": Quantity("|change of A B by one step| / |W|, L2", decades=True, of_a_step=True),
}


def draw_quantity(log: FlightLog, name: str) -> Figure:
    """Draws one quantity of each kind of parameter: by step (mean over layers), and by layer.

    Raises:
      DataError: the log does not have the quantity.
    """
    quantity, kinds = QUANTITIES[name], log.of(name)
    with theme.style():
        # Room on the left: the page's font may be wider than the one that is measured here.
        figure = Figure(figsize=(10.4, 3.6), layout=ConstrainedLayoutEngine(rect=(0.015, 0, 0.985, 1)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        colours = list(itertools.islice(itertools.cycle(theme.SERIES), len(kinds)))
        marker = "o" if len(log.steps) == 1 else None
        for values, colour in zip(kinds.values(), colours, strict=True):
            left.plot(log.steps, values.mean(axis=1), color=colour.light, marker=marker, linewidth=1.7)
            by_layer = values.mean(axis=0) if quantity.of_a_step else values[-1]
            if len(by_layer) > 1:
                right.plot(by_layer, color=colour.light, marker="o", markersize=3.5, linewidth=1.2)
        if quantity.decades and any(np.any(values > 0) for values in kinds.values()):
            left.set_yscale("log", nonpositive="mask")
            left.yaxis.set_minor_locator(mticker.NullLocator())
        if quantity.percent:
            left.yaxis.set_major_formatter(mticker.FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        _name_ends(left, list(kinds), colours)
        left.set_title(f"{quantity.words}: mean over layers")
        left.set_xlabel("step")
        left.xaxis.set_major_locator(mticker.MaxNLocator(6, integer=True))
        right.set_title("mean over records" if quantity.of_a_step else f"after step {log.steps[-1]}")
        right.set_xlabel("layer")
        right.xaxis.set_major_locator(mticker.MaxNLocator(8, integer=True))
    return figure


def _name_ends(axes: Axes, names: list[str], colours: list[theme.Colour]) -> None:
    """Writes each line's name beside its last value that is shown, moved apart where they would overlap."""
    (low, high), decades = axes.get_ylim(), axes.get_yscale() == "log"
    ends = []
    for line in axes.lines:
        values = np.asarray(line.get_ydata(), float)
        shown = values[np.isfinite(values) & ((values > 0) | (not decades))]
        ends.append(float(shown[-1]) if shown.size else low)
    bottom, top, *heights = (np.log([low, high, *ends]) if decades else np.array([low, high, *ends])).tolist()
    placed = spread([(height - bottom) / (top - bottom) for height in heights], 0.075)
    lift = max(0.0, -min(placed))
    for name, height, colour in zip(names, placed, colours, strict=True):
        axes.annotate(
            name,
            (1, height + lift),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour.light,
            fontweight="bold",
            annotation_clip=False,
        )


def draw_heat_maps(log: FlightLog, name: str = "flips") -> Figure:
    """Draws one quantity of each stacked parameter as a map: steps along, layers up, in decades.

    Raises:
      DataError: the log does not have the quantity.
    """
    kinds = {kind: values for kind, values in log.of(name).items() if values.shape[1] > 1} or log.of(name)
    shown = np.concatenate([values.ravel() for values in kinds.values()])
    positive = shown[shown > 0]
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()), high * 1e-4) if positive.size else 0.1
    with theme.style():
        columns = min(len(kinds), 4)
        lines = -(-len(kinds) // columns)
        figure = Figure(figsize=(10.4, 1.9 * lines + 0.7), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        norm = LogNorm(low, max(high, low * 1.001))
        image = None
        for axes, (kind, values) in zip(grid.flat, kinds.items(), strict=False):
            image = axes.imshow(
                np.maximum(values.T, low), norm=norm, cmap=HEAT, aspect="auto", origin="lower", interpolation="nearest"
            )
            axes.set_title(kind, pad=6)
            axes.grid(visible=False)
            ticks = np.unique(np.linspace(0, len(log.steps) - 1, 4).astype(int))
            axes.set_xticks(ticks, [str(step) for step in log.steps[ticks]])
            axes.yaxis.set_major_locator(mticker.MaxNLocator(4, integer=True))
        for axes in grid.flat[len(kinds) :]:
            axes.set_axis_off()
        assert image is not None
        bar = figure.colorbar(image, ax=grid, shrink=0.8, pad=0.015)
        bar.ax.yaxis.set_major_formatter(mticker.FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        bar.ax.yaxis.set_minor_formatter(mticker.NullFormatter())
        bar.outline.set_visible(False)
        figure.supxlabel("step", color=theme.MUTED.light, fontsize=10)
        figure.supylabel("layer", color=theme.MUTED.light, fontsize=10)
    return figure


def draw_levels(log: FlightLog) -> Figure:
    """Draws the share of each level over steps, lowest level at the bottom; layers of one width are averaged."""
    panels: dict[str, np.ndarray] = {}
    for path, layers in log.levels.items():
        counts = sorted({shares.shape[1] for shares in layers})
        for count in counts:
            title = short_name(path) + (f", {count} levels" if len(counts) > 1 else "")
            panels[title] = np.mean([shares for shares in layers if shares.shape[1] == count], axis=0)
    with theme.style():
        columns = min(len(panels), 4)
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(10.4, 1.9 * lines + 0.7), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axes, (title, shares) in zip(grid.flat, panels.items(), strict=False):
            colours = LEVELS(np.linspace(0, 1, shares.shape[1]))
            steps = log.steps if len(log.steps) > 1 else np.array([log.steps[0] - 0.5, log.steps[0] + 0.5])
            held = shares if len(log.steps) > 1 else np.repeat(shares, 2, axis=0)
            axes.stackplot(steps, held.T, colors=colours, edgecolor=theme.PAPER.light, linewidth=0.6)
            axes.set_title(title, pad=6)
            axes.set_ylim(0, 1)
            axes.margins(x=0)
            axes.grid(visible=False)
            axes.yaxis.set_major_formatter(mticker.PercentFormatter(1, decimals=0))
            axes.xaxis.set_major_locator(mticker.MaxNLocator(3, integer=True))
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("step", color=theme.MUTED.light, fontsize=10)
    return figure
