"""Allocations of widths as pictures: maps of kinds of matrix by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lowbit.report import theme
from lowbit.report.flight_figures import HEAT

MANY = 16
"""Layers beyond which the widths are not written into their fields."""


def draw_widths(record: dict[str, Any]) -> Figure:
    """Returns the map of the record of an allocation: layers along, kinds of matrix down, darker for more bits."""
    layers = len(next(iter(record["widths"].values())))
    with theme.style():
        figure = Figure(figsize=(max(5.0, 1.8 + _breadth(layers)), 3.4), layout="constrained")
        axes = figure.subplots()
        image = _draw(axes, record["widths"], record["candidates"])
        axes.set_title(f"{record['bits_per_weight']:.2f} bits/weight, by {record['by']}")
        _draw_key(figure, image, [axes], record["candidates"])
    return figure


def draw_choices(record: dict[str, Any]) -> Figure:
    """Returns the maps of a record of `benchmarks.mixed_precision`: a line a budget, a column a measure."""
    chosen = [choice for choice in record["choices"] if choice["name"].startswith("by ")]
    budgets = list(dict.fromkeys(choice["budget"] for choice in chosen))
    names = list(dict.fromkeys(choice["name"] for choice in chosen))
    layers = len(next(iter(chosen[0]["widths"].values())))
    candidates = sorted(record["settings"]["widths"])
    with theme.style():
        size = (1.2 + (0.8 + _breadth(layers)) * len(names), 0.4 + 2.9 * len(budgets))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(budgets), len(names), squeeze=False)
        for choice in chosen:
            axes = grid[budgets.index(choice["budget"])][names.index(choice["name"])]
            image = _draw(axes, choice["widths"], candidates)
            axes.set_title(f"{choice['bits_per_weight']:.2f} bits, {choice['name']}")
        _draw_key(figure, image, list(grid.flat), candidates)
    return figure


def _breadth(layers: int) -> float:
    """Inches of a map."""
    return 0.42 * min(layers, MANY) + 0.12 * max(0, layers - MANY)


def _draw(axes: Axes, by_path: Mapping[str, Sequence[float]], candidates: Sequence[float]) -> AxesImage:
    names = [path.split("/")[-2].removesuffix("_proj") for path in by_path]
    widths = np.asarray(list(by_path.values()))
    layers = widths.shape[1]
    image = axes.imshow(
        widths, vmin=candidates[0], vmax=candidates[-1], cmap=HEAT, aspect="auto", interpolation="nearest"
    )
    axes.grid(visible=False)
    axes.set_xlabel("layer")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(np.unique(np.linspace(0, layers - 1, min(layers, MANY)).astype(int)))
    if layers <= MANY:
        middle = (candidates[0] + candidates[-1]) / 2
        for (row, layer), bits in np.ndenumerate(widths):
            ink = theme.PAPER if bits > middle else theme.INK
            axes.text(layer, row, f"{bits:g}", ha="center", va="center", fontsize=9, color=ink.light)
    return image


def _draw_key(figure: Figure, image: AxesImage, axes: Sequence[Axes], candidates: Sequence[float]) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, ticks=list(candidates))
    bar.ax.set_yticklabels([f"{bits:g}" for bits in candidates])
    bar.set_label("bits")
    bar.outline.set_visible(False)
