"""The frontier: how well a model predicts against how many bits or bytes it takes."""

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.ticker as mticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lowbit.errors import DataError
from lowbit.report import theme
from lowbit.report.labels import spread
from lowbit.report.results import Row, trained_and_rounded


def draw_frontier(rows: list[Row]) -> Figure:
    """Draws nats/token against bits per weight (left) and against bytes of the file (right).

    Methods are series with their name beside them. A float model is a line across the left panel, as it
    would stretch the axis of bits, and a point in the right one.

    Raises:
      DataError: there are no rows.
    """
    if not rows:
        raise DataError("no results to draw a frontier of", "evaluate at least one model")
    with theme.style():
        figure = Figure(figsize=(10.4, 4.7), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.08))
        quantized = [row for row in rows if row.method != "float"]
        _series(left, quantized, lambda row: row.bits_per_weight, labelled=True)
        _series(right, rows, lambda row: row.bytes / 1e6, labelled=False)
        for row in rows:
            if row.method == "float":
                _float_line(left, row, labelled=True)
                _float_line(right, row, labelled=False)
        _bits_axis(left, quantized)
        _bytes_axis(right, rows)
        _gap_of_rounding(left, quantized)
        left.set_ylabel("nats per token, held-out text (lower is better)")
        left.yaxis.set_major_locator(mticker.MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        left.margins(x=0.08, y=0.16)
        right.margins(x=0.1)
    return figure


def write_frontier(rows: list[Row], path: str | Path) -> None:
    """Draws the frontier into a PNG file, on light paper.

    Raises:
      DataError: there are no rows.
    """
    figure = draw_frontier(rows)
    with theme.style():
        figure.savefig(path, format="png")


def _series(axes: Axes, rows: list[Row], place: Callable[[Row], float], labelled: bool) -> None:
    """Draws each method as a line through its widths, named at its worst width."""
    names = theme.methods(rows)
    for name, (colour, marker) in theme.method_marks(names).items():
        line = sorted((row for row in rows if row.method == name), key=place)
        axes.plot(
            [place(row) for row in line],
            [row.nll for row in line],
            color=colour.light,
            marker=marker,
            markersize=8,
            markeredgecolor=theme.PAPER.light,
            markeredgewidth=1.5,
            zorder=3,
        )
        if labelled:
            # Where it is worst a method stands furthest from the others.
            worst = max(line, key=lambda row: row.nll)
            axes.annotate(
                theme.method_label(name),
                (place(worst), worst.nll),
                xytext=(9, 6),
                textcoords="offset points",
                color=colour.light,
                fontweight="bold",
                zorder=4,
            )


def _float_line(axes: Axes, row: Row, labelled: bool) -> None:
    """Draws the loss of the float model across the panel."""
    axes.axhline(row.nll, color=theme.SLATE.light, linewidth=1.2, linestyle=(0, (5, 4)), zorder=1)
    if labelled:
        axes.annotate(
            f"float, {row.bits_per_weight:g} bit",
            (1, row.nll),
            xycoords=("axes fraction", "data"),
            xytext=(0, -5),
            textcoords="offset points",
            ha="right",
            va="top",
            color=theme.SLATE.light,
        )


def _gap_of_rounding(axes: Axes, rows: list[Row]) -> None:
    """Marks what training wins over rounding at 2 bits, where both were measured."""
    low, high = trained_and_rounded(rows, 2)
    if low is None or high is None:
        return
    axes.plot(
        [low.bits_per_weight] * 2, [low.nll, high.nll], color=theme.MUTED.light, linewidth=1, linestyle=":", zorder=1
    )
    axes.annotate(
        f"{low.nll - high.nll:+.2f} nats".replace("-", "−"),
        (low.bits_per_weight, 0.5 * low.nll + 0.5 * high.nll),
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=theme.MUTED.light,
    )


def _bits_axis(axes: Axes, rows: list[Row]) -> None:
    axes.set_title("by width of the quantized matrices")
    axes.set_xlabel("stored bits per weight, scales included")
    axes.set_xscale("log")
    widths = sorted({row.bits for row in rows})
    axes.xaxis.set_major_locator(mticker.FixedLocator(widths))
    axes.xaxis.set_major_formatter(mticker.FixedFormatter([f"{width:g}" for width in widths]))
    axes.xaxis.set_minor_locator(mticker.NullLocator())


def _bytes_axis(axes: Axes, rows: list[Row]) -> None:
    axes.set_title("by size of the file")
    axes.set_xlabel("megabytes on disk")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(mticker.LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)))
    axes.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(mticker.NullLocator())
    _width_labels(axes, rows)


def _width_labels(axes: Axes, rows: list[Row]) -> None:
    """Names the widths in a line along the foot of the panel, below the models that have them."""
    lowest: dict[float, Row] = {}
    for row in rows:
        if row.bits not in lowest or row.nll < lowest[row.bits].nll:
            lowest[row.bits] = row
    sizes = [math.log(row.bytes / 1e6) for row in lowest.values()]
    room = max(math.log(row.bytes / 1e6) for row in rows) - min(math.log(row.bytes / 1e6) for row in rows)
    places = spread(sizes, 0.07 * room)
    for row, place in zip(lowest.values(), places, strict=True):
        axes.annotate(
            "float" if row.method == "float" else f"{row.bits:g}",
            (math.exp(place), 0.03),
            xycoords=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=10,
            color=theme.MUTED.light,
        )
    quantized = [place for row, place in zip(lowest.values(), places, strict=True) if row.method != "float"]
    if quantized:
        axes.annotate(
            "bits per weight",
            (math.exp(max(quantized)), 0.03),
            xycoords=axes.get_xaxis_transform(),
            xytext=(12, 0),
            textcoords="offset points",
            va="bottom",
            fontsize=10,
            color=theme.MUTED.light,
        )
