"""An allocation of widths as a picture: a map of kinds of matrix by layer."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowbit.report import theme
from lowbit.report.flight_figures import HEAT

MANY = 16
"""Layers beyond which the widths are not written into their fields."""


def draw_widths(record: dict[str, Any]) -> Figure:
    """Returns the map of the record of an allocation: layers along, kinds of matrix down, darker for more bits."""
    names = [path.split("/")[-2].removesuffix("_proj") for path in record["widths"]]
    widths = np.asarray(list(record["widths"].values()))
    layers, candidates = widths.shape[1], record["candidates"]
    with theme.style():
        figure = Figure(figsize=(max(5.0, 1.8 + 0.42 * min(layers, MANY) + 0.12 * max(0, layers - MANY)), 3.4))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        image = axes.imshow(
            widths, vmin=candidates[0], vmax=candidates[-1], cmap=HEAT, aspect="auto", interpolation="nearest"
        )
        axes.set_title(f"{record['bits_per_weight']:.2f} bits/weight, by {record['by']}")
        axes.grid(visible=False)
        axes.set_xlabel("layer")
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(np.unique(np.linspace(0, layers - 1, min(layers, MANY)).astype(int)))
        if layers <= MANY:
            middle = (candidates[0] + candidates[-1]) / 2
            for (row, layer), bits in np.ndenumerate(widths):
                ink = theme.PAPER if bits > middle else theme.INK
                axes.text(layer, row, f"{bits:g}", ha="center", va="center", fontsize=9, color=ink.light)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, ticks=candidates)
        bar.ax.set_yticklabels([f"{bits:g}" for bits in candidates])
        bar.set_label("bits")
        bar.outline.set_visible(False)
    return figure
