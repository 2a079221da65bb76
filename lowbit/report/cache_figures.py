"""The record of `benchmarks.kv_cache` as a picture: speed against batch, and the change in nats against position."""

import itertools
from typing import Any

import matplotlib.ticker as mticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowbit.report import theme
from lowbit.report.kernel_figures import panels


def draw(record: dict[str, Any]) -> Figure:
    """Returns a panel of tokens/s for each context, by the first way to attend, and one of the changes in nats."""
    lengths = sorted({row["length"] for row in record["speed"]})
    figure, drawn = panels(len(lengths) + 1)
    colours = dict(zip(record["bytes_per_token"], theme.SERIES, strict=False))
    for axes, length in zip(drawn, lengths, strict=False):
        _speed(axes, record, length, colours)
    drawn[0].set_ylabel("tokens/s")
    _changes(drawn[-1], record["losses"], colours)
    handles, names = drawn[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _speed(axes: Axes, record: dict[str, Any], length: int, colours: dict[str, Any]) -> None:
    way = record["speed"][0]["attention"]
    for name, colour in colours.items():
        rows = [
            row
            for row in record["speed"]
            if (row["length"], row["attention"], row["cache"]) == (length, way, name) and "failed" not in row
        ]
        batches, rates = [row["batch"] for row in rows], [row["tokens_per_s"] for row in rows]
        axes.plot(batches, rates, color=colour.light, marker="o", label=name)
    axes.set_title(f"after {length:,} tokens, by {way}")
    axes.set_xlabel("sequences")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(mticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(mticker.NullFormatter())


def _changes(axes: Axes, losses: dict[str, Any], colours: dict[str, Any]) -> None:
    middles = [(a + b) / 2 for a, b in itertools.pairwise(losses["positions"])]
    for name, row in losses["caches"].items():
        axes.plot(middles, row["change_by_position"], color=colours[name].light, marker="o")
    axes.set_title("what rounding costs")
    axes.set_xlabel("position in the text")
    axes.set_ylabel("change, nats a token")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:g}"))
