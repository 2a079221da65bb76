"""Where the weights lie against the levels of their grid."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lowbit.errors import DataError
from lowbit.report import theme


@dataclasses.dataclass(frozen=True)
class WeightHistogram:
    """The weights of one model before and after training, in units of their own scales.

    Args:
      title: what is shown, such as "2 bit".
      before: weights of the pretrained model over the scale that training starts from, flat `[m]`.
      after: float master weights after training over the trained scale, flat `[m]`.
      levels: the grid's levels, ascending.
    """

    title: str
    before: np.ndarray
    after: np.ndarray
    levels: Sequence[float]


def draw_histograms(histograms: Sequence[WeightHistogram]) -> Figure:
    """Draws small multiples: the pretrained weights as an outline, the trained ones filled, the levels below.

    Raises:
      DataError: there are no histograms.
    """
    if not histograms:
        raise DataError("no weights to draw histograms of", "give at least one histogram")
    columns = min(len(histograms), 3)
    lines = -(-len(histograms) // columns)
    with theme.style():
        figure = Figure(figsize=(10.4, 2.5 * lines + 0.3), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(histograms) :]:
            axes.set_axis_off()
        for axes, histogram in zip(grid.flat, histograms, strict=False):
            reach = 1.9 * max(abs(float(level)) for level in histogram.levels)
            edges = np.linspace(-reach, reach, 90)
            for weights, filled in ((histogram.before, False), (histogram.after, True)):
                counts, _ = np.histogram(weights, edges)
                share = counts / max(len(weights), 1)
                if filled:
                    axes.stairs(share, edges, fill=True, color=theme.BLUE.light, alpha=0.55)
                else:
                    axes.stairs(share, edges, color=theme.SLATE.light, linewidth=1.3, zorder=3)
            axes.set_title(histogram.title)
            axes.set_yticks([])
            axes.grid(visible=False)
            levels = [float(level) for level in histogram.levels]
            axes.set_xticks(levels, [f"{level:.3g}" for level in levels] if len(levels) <= 8 else _sparse(levels))
            axes.tick_params(axis="x", length=7, width=1.5, color=theme.INK.light, labelsize=9)
        figure.supxlabel("weight in units of its scale; ticks are the levels", color=theme.MUTED.light, fontsize=10)
    return figure


def _sparse(levels: list[float]) -> list[str]:
    """Labels the outermost levels and the one nearest to zero only."""
    shown = {0, len(levels) - 1, int(np.argmin(np.abs(levels)))}
    return [f"{level:.3g}" if index in shown else "" for index, level in enumerate(levels)]
