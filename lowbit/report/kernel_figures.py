"""The record of `bench cpu` as pictures: time against bits, and against tokens at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.ticker as mticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowbit.report import theme
from lowbit.report.kernel_tables import bandwidth, weights


def draw(record: dict[str, Any]) -> dict[str, Figure]:
    """Returns the figures of a record of `lowbit.bench.cpu.measure`, by name."""
    return {"bits": over_bits(record), "batch": over_batch(record)}


def over_bits(record: dict[str, Any]) -> Figure:
    """One token: microseconds over bits per weight, a panel a shape, with what reading the bytes alone would take."""
    threads = max(record["plan"]["threads"])
    shapes = record["plan"]["shapes"]
    figure, axes_of = panels(len(shapes))
    for axes, (k, n) in zip(axes_of, shapes, strict=True):
        rows = [
            row
            for row in record["products"]
            if row["engine"] == "lowbit"
            and (row["k"], row["n"], row["batch"], row["threads"], row["groups"]) == (k, n, 1, threads, 1)
        ]
        bits = [row["bits"] for row in rows]
        reading = [1e6 * row["bytes"] / bandwidth(record, row["threads"]) for row in rows]
        axes.plot(bits, reading, color=theme.MUTED.light, linestyle=":", label="reading the weights alone")
        axes.plot(bits, [1e6 * r["seconds"] for r in rows], color=theme.BLUE.light, marker="o", label="product")
        axes.set_title(f"{n} x {k}, one token, {threads} threads")
        axes.set_xlabel("bits per weight")
        axes.xaxis.set_major_locator(mticker.FixedLocator(bits))
        axes.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(bottom=0)
    axes_of[0].set_ylabel("microseconds")
    axes_of[0].legend(frameon=False)
    return figure


def over_batch(record: dict[str, Any]) -> Figure:
    """Microseconds over tokens at a time: every width, numpy's float32, and the best of each other engine."""
    threads = max(record["plan"]["threads"])
    shapes = record["plan"]["shapes"]
    figure, axes_of = panels(len(shapes))
    for axes, (k, n) in zip(axes_of, shapes, strict=True):
        lines: dict[str, dict[int, float]] = {}
        for row in record["products"]:
            if (row["k"], row["n"], row["threads"]) != (k, n, threads) or row["engine"] == "reading":
                continue
            if row.get("groups", 1) != 1:
                continue
            name = weights(row) if row["engine"] == "lowbit" else f"{row['engine']}, {_kind(row)}"
            times = lines.setdefault(name, {})
            times[row["batch"]] = min(1e6 * row["seconds"], times.get(row["batch"], float("inf")))
        draw_over_tokens(axes, f"{n} x {k}, {threads} threads", lines)
    axes_of[0].set_ylabel("microseconds")
    axes_of[0].legend(frameon=False)
    return figure


def draw_over_tokens(axes: Axes, title: str, lines: Mapping[str, Mapping[int, float]]) -> None:
    """Draws microseconds over tokens at a time, both logarithmic: a line for each name, times by tokens."""
    for colour, (name, times) in zip(theme.SERIES, lines.items(), strict=False):
        axes.plot(list(times), list(times.values()), color=colour.light, marker="o", label=name)
    axes.set_title(title)
    axes.set_xlabel("tokens at a time")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(mticker.NullFormatter())


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    with theme.style():
        figure.savefig(path, format="png")


def _kind(row: dict[str, Any]) -> str:
    return "float32" if row["engine"] == "numpy" else "its fastest type"


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels side by side."""
    with theme.style():
        figure = Figure(figsize=(5.6 * count, 4.4), layout="constrained")
        return figure, list(figure.subplots(1, count, squeeze=False)[0])
